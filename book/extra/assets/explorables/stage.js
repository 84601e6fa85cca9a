// What every explorable needs: a board that replaces the static picture, controls with labels, and
// one sentence below it that tells a reader who cannot see the board what has changed.
window.explorables = {
  makers: {},

  // Replaces the picture of a figure by a board; returns the board and the way to speak.
  stage(figure, { title, description, box }) {
    const picture = figure.querySelector(".explorable-picture");
    const holder = document.createElement("div");
    holder.className = "jxgbox explorable-board";
    holder.id = `${figure.id}-board`;
    picture.replaceWith(holder);
    const board = JXG.JSXGraph.initBoard(holder.id, {
      boundingbox: box, keepaspectratio: true, axis: false, title, description,
      showCopyright: false, showNavigation: false, showInfobox: false,
      pan: { enabled: false }, zoom: { enabled: false, wheel: false },
      keyboard: { enabled: true, dx: 8, dy: 8, panShift: false, panCtrl: false },
      resize: { enabled: true, throttle: 50 },
    });
    const words = document.createElement("p");
    words.className = "explorable-words";
    words.setAttribute("role", "status");
    holder.after(words);
    return { board, holder, say: (text) => { if (words.textContent !== text) words.textContent = text; } };
  },

  // A labelled slider below the board. `show` turns its value into text.
  slider(figure, { label, min, max, step, value, show, change }) {
    const row = document.createElement("label");
    const output = document.createElement("output");
    const input = Object.assign(document.createElement("input"), { type: "range", min, max, step });
    input.value = value;
    const set = (number) => { input.value = number; output.textContent = show(+input.value); };
    input.addEventListener("input", () => { set(input.value); change(+input.value); });
    set(value);
    row.append(label, input, output);
    this.controls(figure).append(row);
    return { get: () => +input.value, set };
  },

  button(figure, text, press) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.addEventListener("click", press);
    this.controls(figure).append(button);
  },

  controls(figure) {
    let found = figure.querySelector(".explorable-controls");
    if (!found) {
      found = document.createElement("div");
      found.className = "explorable-controls";
      figure.querySelector(".explorable-words").after(found);
    }
    return found;
  },

  axes(board, reach, names) {
    const look = { fixed: true, highlight: false, tabindex: null };
    const line = (a, b) => board.create("segment", [a, b], { ...look, cssClass: "x-axis", highlightCssClass: "x-axis", strokeWidth: 1 });
    line([-reach, 0], [reach, 0]);
    line([0, -reach], [0, reach]);
    const text = (x, y, words, css = "x-text") => board.create("text", [x, y, words], {
      ...look, display: "internal", cssClass: css, highlightCssClass: css, cssDefaultStyle: "", highlightCssDefaultStyle: "", fontSize: 17,
      anchorX: "middle", anchorY: "middle",
    });
    text(reach * 0.95, -reach * 0.07, names[0], "x-text x-name");
    text(-reach * 0.07, reach * 0.95, names[1], "x-text x-name");
    return text;
  },

  // A curve from arrays; `set` gives it new ones.
  curve(board, css, more = {}) {
    const made = board.create("curve", [[], []], {
      fixed: true, highlight: false, tabindex: null, cssClass: css, highlightCssClass: css, ...more,
    });
    return { set(xs, ys) { made.dataX = xs; made.dataY = ys; made.updateCurve(); }, made };
  },

  // Makes a point a stop of the Tab key that says what it is.
  handle(point, label) {
    const node = point.rendNode;
    node.setAttribute("tabindex", "0");
    node.setAttribute("role", "application");
    node.setAttribute("aria-label", label);
    return point;
  },

  still: () => matchMedia("(prefers-reduced-motion: reduce)").matches,
};
