// Names for what the theme leaves without one, and figures that enlarge on a click.
document.addEventListener("DOMContentLoaded", () => {
  for (const fold of document.querySelectorAll(".bd-sidebar-primary details > summary")) {
    const page = fold.closest("li")?.querySelector(":scope > a")?.textContent.trim();
    fold.setAttribute("aria-label", page ? `Pages of ${page}` : "Pages of this part");
  }
  for (const bar of document.querySelectorAll("details.hide > summary[aria-label]")) {
    bar.removeAttribute("aria-label"); // its visible text is its name
  }
  const pictures = "article .cell_output img, article figure > img, article figure > a > img";
  for (const picture of document.querySelectorAll(pictures)) {
    if (picture.closest("a, .sd-card, svg")) continue;
    const button = document.createElement("button");
    button.className = "enlarge";
    button.type = "button";
    button.setAttribute("aria-label", `Enlarge: ${picture.alt}`);
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => enlarge(picture));
  }
});

function enlarge(picture) {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", picture.alt || "Figure");
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Close";
  const copy = picture.cloneNode();
  copy.removeAttribute("width");
  copy.removeAttribute("style");
  dialog.append(close, copy);
  document.body.append(dialog);
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  dialog.showModal();
}
