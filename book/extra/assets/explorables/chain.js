// Chu & Bacho 2024: feedback alignment on the chain f = w2 w1 with target y and feedback b.
// The formulas are those of fabook.theory.chu2023 and are compared with them in the tests.
(() => {
  const chain = {
    error: (w1, w2, y) => w1 * w2 - y,
    exponent: (w1, w2, b) => -(w1 * w1 + b * w2),
    alignment: (w1, w2, b) => (w1 * w1 + b * w2) / (Math.hypot(w1, w2) * Math.hypot(w1, b)),
    edge: (y, b) => -Math.cbrt(b * y),

    // The parabola w2 = w1^2 / 2b + c meets the hyperbola w1 w2 = y where this is zero:
    // w1^3 + 2bc w1 - 2by. Its real roots, rising.
    roots(p, q) {
      const disc = (q / 2) ** 2 + (p / 3) ** 3;
      let found;
      if (disc > 0) {
        const u = Math.cbrt(-q / 2 - Math.sign(q || 1) * Math.sqrt(disc));
        found = [u - p / (3 * u)];
      } else {
        const r = Math.sqrt(-p / 3);
        const angle = r === 0 ? 0 : Math.acos(Math.max(-1, Math.min(1, -q / 2 / r ** 3)));
        found = [0, 1, 2].map((k) => 2 * r * Math.cos((angle - 2 * Math.PI * k) / 3));
      }
      const slope = (x) => 3 * x * x + p;
      return found
        .map((x) => (slope(x) ? x - (x ** 3 + p * x + q) / slope(x) : x))
        .sort((a, b) => a - b);
    },

    // Where the flow from a start rests: the next root in the direction of w1' = -be.
    rest(w1, w2, y, b) {
      const e = chain.error(w1, w2, y);
      if (e === 0) return [w1, w2];
      if (b === 0) return w1 === 0 ? [w1, w2] : [w1, y / w1];
      const c = w2 - (w1 * w1) / (2 * b);
      const way = -Math.sign(b * e);
      const ahead = chain.roots(2 * b * c, -2 * b * y).filter((x) => way * (x - w1) > 0);
      const end = way > 0 ? Math.min(...ahead) : Math.max(...ahead);
      return [end, (end * end) / (2 * b) + c];
    },

    // The way there: n + 1 points of the parabola.
    path(w1, w2, y, b, n = 80) {
      const [end, last] = chain.rest(w1, w2, y, b);
      const part = (a, z, i) => a + ((z - a) * i) / n;
      const c = b === 0 ? 0 : w2 - (w1 * w1) / (2 * b);
      const xs = Array.from({ length: n + 1 }, (_, i) => part(w1, end, i));
      const ys = xs.map((x, i) => (b === 0 ? part(w2, last, i) : (x * x) / (2 * b) + c));
      return [xs, ys];
    },
  };

  const round = (x) => (Math.round(100 * x) / 100).toFixed(2).replace("-", "−");

  function sentence(start, end, y, b) {
    const e = chain.error(...start, y);
    const turn = (at) => {
      const cosine = chain.alignment(...at, b);
      return `${round(cosine)}, ${cosine > 0 ? "aligned" : "misaligned"}`;
    };
    const place = (at) => `(${at.map(round).join(", ")})`;
    const from = Math.abs(e) < 0.15 ? "next to a minimum of the loss" : `with error ${round(e)}`;
    if (Math.hypot(start[0], b) === 0) return "Nothing moves: no weight gets a signal.";
    const begin = `Start ${place(start)}, ${from}; cosine with the gradient ${turn(start)}.`;
    return chain.exponent(...end, b) < 0
      ? `${begin} It comes to rest at ${place(end)}; cosine ${turn(end)}, so the minimum is stable.`
      : `${begin} It rests there only until something disturbs it.`;
  }

  function make(figure) {
    const x = window.explorables;
    const y = 1;
    const { board, holder, say } = x.stage(figure, {
      title: "The plane of the two weights w1 and w2",
      description: "A point to move with the arrow keys, the minima of the loss, and the path of feedback alignment from the point to where it rests.",
      box: [-3.4, 3.4, 3.4, -3.4],
    });
    const text = x.axes(board, 3.3, ["w₁", "w₂"]);
    for (const k of [-2, 2]) { text(k, -0.25, String(k).replace("-", "−")); text(0.28, k, String(k).replace("-", "−")); }
    const stable = x.curve(board, "x-stable", { strokeWidth: 4 });
    const unstable = x.curve(board, "x-unstable", { strokeWidth: 2.5 });
    const parabola = x.curve(board, "x-parabola", { strokeWidth: 1 });
    const way = x.curve(board, "x-way", { strokeWidth: 2.5 });
    const point = { showInfobox: false, withLabel: false };
    const walker = board.create("point", [0, 0], { ...point, fixed: true, tabindex: null, size: 5, cssClass: "x-walker", highlightCssClass: "x-walker" });
    const start = board.create("point", [-0.5, -1.85], { ...point, name: "start", size: 7, cssClass: "x-handle", highlightCssClass: "x-handle", attractors: [] });
    let frame = 0;
    const slider = x.slider(figure, {
      label: "feedback b", min: -2, max: 2, step: 0.1, value: 1, show: round, change: () => draw(),
    });

    function minima(b) {
      const kept = [[], []], lost = [[], []];
      for (const branch of [-1, 1]) {
        const path = Array.from({ length: 121 }, (_, i) => branch * 0.25 * 16 ** (i / 120));
        for (const [list, wanted] of [[kept, true], [lost, false]]) {
          for (const w1 of path) {
            const good = chain.exponent(w1, y / w1, b) < 0 === wanted;
            list[0].push(good ? w1 : NaN);
            list[1].push(good ? y / w1 : NaN);
          }
          list[0].push(NaN);
          list[1].push(NaN);
        }
      }
      stable.set(...kept);
      unstable.set(...lost);
    }

    function draw(play = true) {
      const b = slider.get();
      const at = [start.X(), start.Y()];
      const path = chain.path(...at, y, b);
      const end = [path[0].at(-1), path[1].at(-1)];
      minima(b);
      const wide = Array.from({ length: 141 }, (_, i) => -3.5 + i / 20);
      const c = at[1] - (at[0] * at[0]) / (2 * b);
      parabola.set(b ? wide : [at[0], at[0]], b ? wide.map((w) => (w * w) / (2 * b) + c) : [-4, 4]);
      way.set(...path);
      cancelAnimationFrame(frame);
      const move = (i) => walker.setPosition(JXG.COORDS_BY_USER, [path[0][i], path[1][i]]);
      const last = path[0].length - 1;
      if (!play || x.still()) move(last);
      else {
        const began = performance.now();
        const tick = (now) => {
          const i = Math.min(last, Math.max(0, Math.round(((now - began) / 1200) * last)));
          move(i);
          board.update();
          if (i < last) frame = requestAnimationFrame(tick);
        };
        move(0);
        frame = requestAnimationFrame(tick);
      }
      board.update();
      say(sentence(at, end, y, b));
      holder.dataset.state = JSON.stringify({ start: at, end, y, b });
    }

    function put(w1, w2) {
      start.setPosition(JXG.COORDS_BY_USER, [w1, w2]);
      draw();
    }

    start.on("drag", () => draw(false));
    start.on("up", () => draw());  // the walker then goes the way
    function misaligned(kick) {  // half way from the edge of stability to the board's edge
      const b = slider.get();
      if (b === 0) return say("Without feedback, b = 0, no minimum is misaligned.");
      const edge = chain.edge(y, b);
      const w1 = (edge + Math.sign(edge) * 0.32) / 2;
      return put(w1, y / w1 + kick);
    }
    x.button(figure, "Above a misaligned minimum", () => misaligned(0.12));
    x.button(figure, "Below it", () => misaligned(-0.12));
    x.button(figure, "From small weights", () => put(0.1, 0.1));
    draw(false);
    return x.handle(start, "Start of the walker: move it with the arrow keys");
  }

  window.explorables.makers.chain = make;
  window.explorables.chain = chain;
})();
