// Refinetti et al. 2021: which of eight equivalent solutions direct feedback alignment takes.
// Two erf units learn a teacher of two, from zero weights, in the limit of small steps. The
// equations are those of fabook.theory.refinetti2021.online and are compared with them in the tests.
(() => {
  const A = [0.6, 1.4];

  const feedback = {
    // The read-outs of all students without error: signed permutations of A.
    solutions: [[A[0], A[1]], [A[1], A[0]]].flatMap(([a, b]) =>
      [[a, b], [-a, b], [-a, -b], [a, -b]]),

    // The one that agrees best with F.
    winner(F) {
      const overlap = (v) => v[0] * F[0] + v[1] * F[1];
      return feedback.solutions.reduce((best, v) => (overlap(v) > overlap(best) ? v : best));
    },

    cosine: (v, F) => (v[0] * F[0] + v[1] * F[1]) / (Math.hypot(...v) * Math.hypot(...F)),

    // State: Q11, Q12, Q22, R11, R12, R21, R22, v1, v2, of which this is the velocity in time
    // t = learning rate * steps / N.
    velocity(s, F) {
      const [q11, q12, q22, r11, r12, r21, r22, v1, v2] = s;
      const C = [[q11, q12, r11, r12], [q12, q22, r21, r22], [r11, r21, 1, 0], [r12, r22, 0, 1]];
      const c = [-v1, -v2, A[0], A[1]];
      const norm = C.map((row, i) => Math.sqrt(1 + row[i]));
      const I2 = (a, b) => (2 / Math.PI) * Math.asin(C[a][b] / (norm[a] * norm[b]));
      const I3 = (a, b, d) => {  // E[g'(u_a) u_b g(u_d)]
        const n = 1 + C[a][a];
        const bd = C[b][d] - (C[a][b] * C[a][d]) / n;
        const dd = C[d][d] - (C[a][d] * C[a][d]) / n;
        return ((2 / Math.PI) * bd) / Math.sqrt(n * (1 + dd));
      };
      const sum = (f) => c.reduce((total, weight, a) => total + weight * f(a), 0);
      const drift = (i, n) => F[i] * sum((a) => I3(i, n, a));
      return [
        2 * drift(0, 0), drift(0, 1) + drift(1, 0), 2 * drift(1, 1),
        drift(0, 2), drift(0, 3), drift(1, 2), drift(1, 3),
        sum((a) => I2(0, a)), sum((a) => I2(1, a)),
      ];
    },

    // The path of the read-out from zero weights to time `until`, by the method of Bogacki and
    // Shampine with steps as long as the tolerance allows: {t, v1, v2}, and the state at the end.
    path(F, until = 2000, tolerance = 1e-7) {
      let s = Array(9).fill(0), t = 0, h = 0.01;
      const found = { t: [0], v1: [0], v2: [0] };
      const along = (...terms) => s.map((x, i) => x + terms.reduce((d, [w, k]) => d + w * k[i], 0));
      let k1 = feedback.velocity(s, F);
      for (let step = 0; t < until && step < 20000; step += 1) {
        h = Math.min(h, until - t);
        const k2 = feedback.velocity(along([h / 2, k1]), F);
        const k3 = feedback.velocity(along([(3 * h) / 4, k2]), F);
        const next = along([(2 * h) / 9, k1], [h / 3, k2], [(4 * h) / 9, k3]);
        const k4 = feedback.velocity(next, F);
        const wrong = Math.max(...s.map((_, i) =>
          h * Math.abs((-5 * k1[i]) / 72 + k2[i] / 12 + k3[i] / 9 - k4[i] / 8)));
        if (wrong <= tolerance) {
          s = next;
          t += h;
          k1 = k4;
          found.t.push(t);
          found.v1.push(s[7]);
          found.v2.push(s[8]);
        }
        h *= Math.min(4, Math.max(0.2, 0.9 * (tolerance / (wrong || 1e-300)) ** (1 / 3)));
      }
      return { ...found, state: s };
    },
  };

  const size = 1.4, ring = 1.95;
  const round = (x) => x.toFixed(2).replace("-", "−");
  const place = (v) => `(${v.map(round).join(", ")})`;

  function make(figure) {
    const x = window.explorables;
    const { board, holder, say } = x.stage(figure, {
      title: "The plane of the two read-out weights v1 and v2",
      description: "Eight solutions, the direction of the feedback F on a ring, to move with the arrow keys, and the path of the read-out from zero.",
      box: [-2.3, 2.3, 2.3, -2.3],
    });
    const text = x.axes(board, 2.25, ["v₁", "v₂"]);
    const fixed = { fixed: true, highlight: false, tabindex: null, withLabel: false };
    for (let k = 0; k < 8; k += 1) {
      const angle = (k * Math.PI) / 4;
      board.create("segment", [[0, 0], [ring * Math.cos(angle), ring * Math.sin(angle)]],
        { ...fixed, cssClass: "x-parabola", highlightCssClass: "x-parabola", strokeWidth: 1 });
    }
    const sector = board.create("curve", [[], []],
      { ...fixed, cssClass: "x-sector", highlightCssClass: "x-sector", fillColor: "#999" });
    const circle = board.create("circle", [[0, 0], ring],
      { ...fixed, cssClass: "x-ring", highlightCssClass: "x-ring", strokeWidth: 1, hasInnerPoints: false, fillColor: "none" });
    const stars = feedback.solutions.map((v) =>
      text(...v, "★", "x-star"));
    const way = x.curve(board, "x-way x-dfa", { strokeWidth: 2.5 });
    const walker = board.create("point", [0, 0], { ...fixed, showInfobox: false, size: 5, cssClass: "x-walker x-dfa", highlightCssClass: "x-walker x-dfa" });
    const handle = board.create("glider", [ring * Math.cos(0.35), ring * Math.sin(0.35), circle], {
      name: "F", withLabel: false, showInfobox: false, size: 7, cssClass: "x-handle", highlightCssClass: "x-handle",
    });
    const degrees = () => (Math.round((Math.atan2(handle.Y(), handle.X()) * 180) / Math.PI) + 360) % 360;
    const slider = x.slider(figure, {
      label: "direction of F", min: 0, max: 359, step: 1, value: degrees(), show: (d) => `${d}°`,
      change: (d) => {
        const angle = (d * Math.PI) / 180;
        handle.setPosition(JXG.COORDS_BY_USER, [ring * Math.cos(angle), ring * Math.sin(angle)]);
        draw();
      },
    });

    function draw() {
      const angle = (slider.get() * Math.PI) / 180;
      const F = [size * Math.cos(angle), size * Math.sin(angle)];
      const best = feedback.winner(F);
      const path = feedback.path(F);
      const end = [path.v1.at(-1), path.v2.at(-1)];
      stars.forEach((star, i) => {
        star.setAttribute({ cssClass: feedback.solutions[i] === best ? "x-star x-best" : "x-star" });
      });
      const middle = Math.atan2(best[1], best[0]);
      const from = Math.floor(middle / (Math.PI / 4)) * (Math.PI / 4);
      const arc = Array.from({ length: 20 }, (_, i) => from + (i / 19) * (Math.PI / 4));
      sector.dataX = [0, ...arc.map((a) => ring * Math.cos(a)), 0];
      sector.dataY = [0, ...arc.map((a) => ring * Math.sin(a)), 0];
      sector.updateCurve();
      way.set(path.v1, path.v2);
      walker.setPosition(JXG.COORDS_BY_USER, end);
      board.update();
      const near = Math.hypot(end[0] - best[0], end[1] - best[1]) < 0.02;
      const other = feedback.solutions.some((v) => Math.hypot(end[0] - v[0], end[1] - v[1]) < 0.02);
      const outcome = near ? "The path ends there"
        : other ? `The path ends at another, ${place(end)}`
          : `By the end of the run the path has come to ${place(end)} only, since a weak feedback weight learns slowly`;
      say(`F = ${place(F)} agrees best with the solution ${place(best)}. ${outcome}; cosine of v and F there ${round(feedback.cosine(end, F))}.`);
      holder.dataset.state = JSON.stringify({ F, best, end });
    }

    handle.on("drag", () => { slider.set(degrees()); draw(); });
    x.button(figure, "Flip the sign of F₁", () => { slider.set((540 - slider.get()) % 360); move(); });
    x.button(figure, "Swap F₁ and F₂", () => { slider.set((450 - slider.get()) % 360); move(); });
    function move() {
      const angle = (slider.get() * Math.PI) / 180;
      handle.setPosition(JXG.COORDS_BY_USER, [ring * Math.cos(angle), ring * Math.sin(angle)]);
      draw();
    }
    draw();
    return x.handle(handle, "Direction of the feedback F: turn it with the arrow keys");
  }

  window.explorables.makers.feedback = make;
  window.explorables.feedback = feedback;
})();
