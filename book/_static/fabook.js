// Names for what the theme leaves without one, figures that enlarge on a click, and explorables,
// whose programs are loaded when a reader asks for them.
document.addEventListener("DOMContentLoaded", () => {
  for (const fold of document.querySelectorAll(".bd-sidebar-primary details > summary")) {
    const page = fold.closest("li")?.querySelector(":scope > a")?.textContent.trim();
    fold.setAttribute("aria-label", page ? `Pages of ${page}` : "Pages of this part");
  }
  for (const bar of document.querySelectorAll("details.hide > summary[aria-label]")) {
    bar.removeAttribute("aria-label"); // its visible text is its name
  }
  const pictures = "article .cell_output img, article figure img";
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
  for (const figure of document.querySelectorAll("figure.explorable")) {
    const button = figure.querySelector(".explorable-begin button");
    button.hidden = false;
    button.addEventListener("click", () => explore(figure, button));
  }
});

async function explore(figure, button) {
  const assets = new URL(`${document.documentElement.dataset.content_root}assets/`, location);
  const load = (name) => new Promise((resolve, reject) => {
    const css = name.endsWith(".css");
    const element = document.createElement(css ? "link" : "script");
    if (css) element.rel = "stylesheet";
    element[css ? "href" : "src"] = new URL(name, assets);
    element.addEventListener("load", resolve);
    element.addEventListener("error", () => reject(new Error(`${name} did not load`)));
    document.head.append(element);
  });
  button.disabled = true;
  try {
    await load("vendor/jsxgraph/jsxgraph.css");
    await load("vendor/jsxgraph/jsxgraphcore.js");
    await load("explorables/stage.js");
    await load(`explorables/${figure.dataset.explorable}.js`);
  } catch (error) {
    button.disabled = false;
    button.textContent = `${error.message}. Try again`;
    return;
  }
  const handle = window.explorables.makers[figure.dataset.explorable](figure);
  button.parentElement.remove();
  handle.rendNode.focus();
}

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

// A formula wider than its place is drawn smaller instead of scrolling.
function fit(within) {
  for (const formula of within.querySelectorAll("mjx-container[display]")) {
    formula.style.fontSize = formula.dataset.size ??= formula.style.fontSize; // MathJax's own
    const room = formula.clientWidth;
    if (room && formula.scrollWidth > room + 1) {
      const size = parseFloat(getComputedStyle(formula).fontSize);
      formula.style.fontSize = `${Math.floor((100 * size * room) / formula.scrollWidth) / 100 - 0.1}px`;
    }
  }
}
window.addEventListener("load", () => {
  window.MathJax?.startup?.promise?.then(() => {
    fit(document);
    let width = innerWidth;
    window.addEventListener("resize", () => {
      if (innerWidth !== width) fit(document);
      width = innerWidth;
    });
    document.addEventListener("toggle", (event) => fit(event.target), true);
    document.addEventListener("click", () => setTimeout(() => fit(document), 50));
  });
});

// On paper every fold is open, and the solutions of exercises stand at the end.
const undo = [];
window.addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("article details:not([open])")) {
    fold.open = true;
    undo.push(() => (fold.open = false));
  }
  const solutions = document.querySelectorAll("article .solution");
  if (!solutions.length) return;
  const appendix = document.createElement("section");
  appendix.className = "solutions";
  appendix.innerHTML = "<h2>Solutions</h2>";
  document.querySelector("article").append(appendix);
  for (const solution of solutions) {
    const place = document.createComment("solution");
    const folded = solution.classList.contains("toggle-hidden");
    solution.replaceWith(place);
    solution.classList.remove("toggle-hidden");
    appendix.append(solution);
    undo.push(() => {
      solution.classList.toggle("toggle-hidden", folded);
      place.replaceWith(solution);
    });
  }
  undo.push(() => appendix.remove());
});
window.addEventListener("afterprint", () => {
  for (const step of undo.splice(0)) step();
});
