// The scorecard can be sorted by a click on a heading, and filtered by words, paper and verdict.
document.addEventListener("DOMContentLoaded", () => {
  const element = document.querySelector("table.scorecard-all");
  const table = new DataTable(element, {
    paging: false,
    order: [],
    info: true,
    autoWidth: false,
    layout: { topStart: "info", topEnd: "search", bottomStart: null, bottomEnd: null },
    language: { search: "Search:", info: "_TOTAL_ claims", infoFiltered: "of _MAX_", infoEmpty: "no claim" },
  });
  const box = document.createElement("div");
  box.className = "filters";
  const chosen = [["Paper", 1], ["Paper's scale", 2]];
  for (const [label, column] of chosen) {
    const words = [...element.tBodies[0].rows].map((row) => {
      const cell = row.cells[column];
      return (cell.querySelector(".verdict") ?? cell).textContent.trim();
    });
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...[...new Set(words)].map((word) => new Option(word, word)));
    select.addEventListener("change", () => {
      const exact = column === 1 ? { exact: true } : {};
      table.column(column).search(select.value, exact).draw();
    });
    const name = document.createElement("label");
    name.append(`${label}: `, select);
    box.append(name);
  }
  table.table().container().prepend(box);
});
