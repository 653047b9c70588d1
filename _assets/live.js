/* The live figures. A cell leaves <div class="live" data-live="NAME"> with a still picture and the numbers that the
   chapter computed, as JSON (gradcam_lib/live.py). Each function below builds the controls of one figure. The still
   stays in the page for print, and alone where this script does not run. */
(() => {
  "use strict";

  // --- building blocks ---

  /** An element with attributes, listeners (names that begin with "on") and children. */
  function make(tag, attributes = {}, ...children) {
    const node = tag.startsWith("svg:")
      ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  const minus = text => String(text).replaceAll("-", "−");
  /** At most so many decimals, without zeros at the end. */
  const short = (value, decimals = 4) => minus(+value.toFixed(decimals));
  const fixed = (value, decimals) => minus(value.toFixed(decimals).replace(/^-(0\.0*)$/, "$1"));
  /** On one line. */
  const together = text => text.replaceAll(" ", "\u00a0");
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  function choice(label, names, value, change) {
    const select = make("select", { onchange: () => change(select.value) },
      ...names.map(name => make("option", { value: name }, String(name))));
    select.value = value;
    return make("label", { class: "live-control" }, make("span", {}, label), select);
  }

  /** A slider with its label and, behind that, what its value means in words. */
  function slider(label, { min, max, step, value }, words, change) {
    const input = make("input", { type: "range", min, max, step, value }), said = make("span");
    const tell = () => {
      said.textContent = words(+input.value);
      input.setAttribute("aria-valuetext", said.textContent);
    };
    input.addEventListener("input", () => { tell(); change(+input.value); });
    tell();
    const node = make("label", { class: "live-control is-wide" }, make("span", {}, label, " ", said), input);
    return { node, input, set(value) { input.value = value; tell(); } };
  }

  /** What changes with the controls, read out to those who cannot see it. */
  const result = name => make("p", { class: "live-result", "data-result": name, "aria-live": "polite" });

  /** Calls move(x, y), from 0 to 1 across the node, while a mouse is over it or a finger on it. */
  function follow(node, move) {
    const at = event => {
      const box = node.getBoundingClientRect();
      move(clamp((event.clientX - box.left) / box.width, 0, 0.99999),
        clamp((event.clientY - box.top) / box.height, 0, 0.99999), event.type === "pointerdown");
    };
    node.addEventListener("pointerdown", at);
    node.addEventListener("pointermove", at);
  }

  /** A chart as wide as its place, drawn anew when that changes, so that its letters keep their size. */
  function chart({ x: [x0, x1], y: [y0, y1], xticks, yticks, xlabel, ylabel, height = 230 }, contents, move) {
    const host = make("div", { class: "live-chart" });
    const left = 48, right = 14, top = 24, bottom = 44;
    let width = 0;
    function draw() {
      if (!width) return;
      const X = x => left + (x - x0) / (x1 - x0) * (width - left - right);
      const Y = y => height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom);
      const line = (name, ax, ay, bx, by) =>
        make("svg:line", { class: name, x1: X(ax), y1: Y(ay), x2: X(bx), y2: Y(by) });
      const text = (words, x, y, anchor) => make("svg:text", { x, y, "text-anchor": anchor }, words);
      const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" },
        ...yticks.flatMap(y => [line("grid", x0, y, x1, y), text(short(y), left - 6, Y(y) + 4, "end")]),
        ...xticks.map(x => text(short(x), X(x), height - bottom + 18, "middle")),
        line("axis", x0, y0, x1, y0), line("axis", x0, y0, x0, y1),
        text(xlabel, (left + width - right) / 2, height - 6, "middle"), text(ylabel, 0, 13, "start"));
      const { lines = [], here, dots = [] } = contents();
      for (const { name, points } of lines)
        svg.append(make("svg:path", { class: name, d: "M" + points.map(([x, y]) => `${X(x)} ${Y(y)}`).join("L") }));
      if (here !== undefined) svg.append(line("here", here, y0, here, y1));
      for (const { name, x, y } of dots) svg.append(make("svg:circle", { class: name, cx: X(x), cy: Y(y), r: 5 }));
      host.replaceChildren(svg);
    }
    follow(host, x => move(clamp(x0 + (x * width - left) / (width - left - right) * (x1 - x0), x0, x1)));
    new ResizeObserver(([{ contentRect }]) => { width = contentRect.width; draw(); }).observe(host);
    return { node: host, draw };
  }

  // --- convolution ---

  /** (2.7) of a size n: places of a kernel of 3 rows. */
  const outputSize = (n, stride, padding) => Math.floor((n + 2 * padding - 2 - 1) / stride) + 1;

  /** (2.8), without dilation: x is 0 outside the picture. */
  function convolve(x, w, stride, padding) {
    const size = outputSize(x.length, stride, padding);
    return Array.from({ length: size }, (_, i) => Array.from({ length: size }, (_, j) => {
      let y = 0;
      for (let u = 0; u < 3; u++)
        for (let v = 0; v < 3; v++) y += pixel(x, stride * i + u - padding, stride * j + v - padding) * w[u][v];
      return y;
    }));
  }
  const pixel = (x, i, j) => x[i]?.[j] ?? 0;

  const mix = (a, b, share) => a.map((value, k) => value + (b[k] - value) * share);
  const BLUE = [35, 105, 189], WHITE = [250, 250, 250], RED = [169, 55, 59];

  function paint(canvas, values, colour) {
    const n = values.length, context = canvas.getContext("2d");
    canvas.width = canvas.height = n;
    const picture = context.createImageData(n, n);
    values.flat().forEach((value, k) => picture.data.set([...colour(value), 255], 4 * k));
    context.putImageData(picture, 0, 0);
  }

  /** Grey from 0, or from what is below it, to the largest value. */
  function greys(values) {
    const all = values.flat(), low = Math.min(0, ...all), high = Math.max(low + 1e-9, ...all);
    const words = `black: ${short(low, 2)}, white: ${short(high, 2)}`;
    return { colour: value => mix([0, 0, 0], [255, 255, 255], (value - low) / (high - low)), words };
  }

  /** Signed, as map_grid of plots.py has it: white is 0. */
  function signs(values) {
    const most = Math.max(1e-9, ...values.flat().map(Math.abs));
    const words = `blue: ${short(-most, 2)}, white: 0, red: ${short(most, 2)}`;
    return { colour: value => mix(WHITE, value < 0 ? BLUE : RED, Math.abs(value) / most), words };
  }

  function convolution({ x, kernels }) {
    const own = "your own", names = Object.keys(kernels);
    let name = names.at(-1), w = kernels[name].map(row => [...row]), stride = 1, padding = 0, y;
    let pinned = [Math.floor(x.length / 2), Math.floor(x.length / 3)], place = pinned;

    function grid(label, attributes = {}) {
      const canvas = make("canvas"), mark = make("i", { class: "window" }), words = make("span");
      const node = make("div", { class: "live-grid", ...attributes }, canvas, mark);
      const legend = make("div", { class: "live-hint" }), head = make("div", {}, label, " ", words);
      return { node, canvas, mark, words, legend, all: make("div", {}, head, node, legend) };
    }
    const set = (node, n, i, j, size) => {
      const share = value => `${100 * value / n}%`;
      Object.assign(node.style, { top: share(i), left: share(j), width: share(size), height: share(size) });
    };

    const input = grid("picture"), frame = make("i", { class: "frame" });  // between the picture and its padding
    input.node.append(frame);
    const output = grid("map", { tabindex: 0, role: "application", "aria-label":
      "Feature map: the arrow keys move the window" });
    const pixels = Array.from({ length: 9 }, () => make("i"));
    const weights = w.flat().map((_, k) => make("input", {
      type: "number", step: 0.25, "aria-label": `kernel, row ${Math.floor(k / 3) + 1}, column ${k % 3 + 1}`,
      oninput: event => {
        w[Math.floor(k / 3)][k % 3] = Number(event.target.value) || 0;
        preset.querySelector("select").value = own;
        compute();
      } }));
    const fill = () => weights.forEach((node, k) => { node.value = +w[Math.floor(k / 3)][k % 3].toFixed(4); });
    const sum = result("sum"), size = result("size");

    const preset = choice("kernel", [...names, own], name, chosen => {
      if (chosen !== own) w = kernels[chosen].map(row => [...row]);
      fill();
      compute();
    });

    function compute() {
      y = convolve(x, w, stride, padding);
      const n = x.length + 2 * padding;
      const padded = Array.from({ length: n }, (_, i) =>
        Array.from({ length: n }, (_, j) => pixel(x, i - padding, j - padding)));
      const grey = greys(x), scale = Math.abs(w.flat().reduce((a, b) => a + b)) < 1e-9 ? signs(y) : greys(y);
      paint(input.canvas, padded, grey.colour);
      paint(output.canvas, y, scale.colour);
      set(frame, n, padding, padding, x.length);
      frame.hidden = !padding;
      input.legend.textContent = grey.words;
      output.legend.textContent = scale.words;
      input.words.textContent = `${x.length} × ${x.length}` + (padding ? `, padded ${n} × ${n}` : "");
      output.words.textContent = `${y.length} × ${y.length}`;
      size.textContent =
        `Size of the map: ⌊(${x.length} + 2 · ${padding} − (3 − 1) − 1) / ${stride}⌋ + 1 = ${y.length}`;
      pinned = pinned.map(value => clamp(value, 0, y.length - 1));
      point(pinned);
    }

    function point(at) {
      place = at.map(value => clamp(value, 0, y.length - 1));
      const [i, j] = place, grey = greys(x), terms = [];
      set(input.mark, x.length + 2 * padding, stride * i, stride * j, 3);
      set(output.mark, y.length, i, j, 1);
      pixels.forEach((node, k) => {
        const u = Math.floor(k / 3), v = k % 3, value = pixel(x, stride * i + u - padding, stride * j + v - padding);
        const [shade] = grey.colour(value), weight = w[u][v];
        node.textContent = short(value, 3);
        node.style.cssText = `background: rgb(${shade}, ${shade}, ${shade}); color: ${shade > 118 ? "#000" : "#fff"}`;
        const sign = weight < 0 ? "− " : terms.length ? "+ " : "";
        if (weight) terms.push(together(`${sign}${short(Math.abs(weight))} · ${short(value, 3)}`));
      });
      sum.textContent = `Row ${i}, column ${j}: ${terms.join(" ") || "0"} ${together(`= ${short(y[i][j])}`)}`;
    }

    const pin = at => { point(at); pinned = place; };
    follow(output.node, (h, v, pressed) =>
      (pressed ? pin : point)([Math.floor(v * y.length), Math.floor(h * y.length)]));
    follow(input.node, (h, v, pressed) => {  // the window whose middle is nearest
      const n = x.length + 2 * padding, nearest = value => Math.round((Math.floor(value * n) - 1) / stride);
      (pressed ? pin : point)([nearest(v), nearest(h)]);
    });
    // Back to the place that was pressed or reached by keys, when the mouse goes on to the kernel.
    for (const { node } of [input, output])
      node.addEventListener("pointerleave", event => event.pointerType === "mouse" ? point(pinned) : pin(place));
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    output.node.addEventListener("keydown", event => {
      const step = steps[event.key];
      if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      pin([place[0] + step[0], place[1] + step[1]]);
    });

    fill();
    compute();
    return [
      make("div", { class: "live-controls" }, preset,
        choice("stride", [1, 2, 3], stride, value => { stride = +value; compute(); }),
        choice("padding", [0, 1], padding, value => { padding = +value; compute(); })),
      make("div", { class: "live-pictures" }, input.all, output.all),
      make("div", { class: "live-kernel" },
        make("div", { "aria-hidden": "true" }, make("span", { class: "title" }, "window"), ...pixels),
        make("span", { class: "live-sign", "aria-hidden": "true" }, "∗"),
        make("div", {}, make("span", { class: "title" }, "kernel"), ...weights)),
      sum, size,
    ];
  }

  // --- softmax and cross-entropy ---

  /** (4.2): no exponent above 0. */
  function softmax(z) {
    const m = Math.max(...z), powers = z.map(value => Math.exp(value - m)), sum = powers.reduce((a, b) => a + b);
    return powers.map(power => power / sum);
  }

  function softmaxAndLoss({ z: start, label: truth, classes }) {
    const wide = Math.ceil(Math.max(...start.map(Math.abs))) + 4;
    let z = [...start], label = truth;
    const bar = name => {
      const words = make("span"), node = make("div", { class: name }, words, make("i"));
      return { node, words };
    };
    const rows = classes.map((name, k) => ({
      name: make("span", {}, name),
      input: make("input", { type: "range", min: -wide, max: wide, step: 0.1, "aria-label": `score of ${name}`,
        oninput: event => { z[k] = +event.target.value; compute(); } }),
      z: make("span", { class: "number" }), p: bar("live-bar"), gradient: bar("live-bar is-signed"),
    }));
    const loss = result("loss");
    const target = choice("true class", classes, classes[label], name => { label = classes.indexOf(name); compute(); });

    function compute() {
      const p = softmax(z);
      rows.forEach((row, k) => {
        const gradient = p[k] - (k === label ? 1 : 0);
        row.input.value = z[k];
        row.input.setAttribute("aria-valuetext", `${short(z[k], 2)}, probability ${fixed(p[k], 3)}`);
        row.name.className = k === label ? "is-true" : "";
        row.z.textContent = fixed(z[k], 2);
        row.p.words.textContent = fixed(p[k], 3);
        row.gradient.words.textContent = fixed(gradient, 3);
        row.gradient.node.classList.toggle("is-negative", gradient < 0);
        row.p.node.style.cssText = `--from: 0; --size: ${p[k]}`;
        const size = Math.abs(gradient) / 2;
        row.gradient.node.style.cssText = `--from: ${gradient < 0 ? 0.5 - size : 0.5}; --size: ${size}`;
      });
      // log p by the scores: the probability itself may be too small to be written.
      const m = Math.max(...z), log = z[label] - m - Math.log(z.reduce((sum, value) => sum + Math.exp(value - m), 0));
      loss.textContent = `Cross-entropy: −log p(${classes[label]}) = ${fixed(Math.max(0, -log), 3)} nats`;
    }

    compute();
    return [
      make("div", { class: "live-controls" }, target,
        make("button", { type: "button", onclick: () => {
          const p = softmax(z);
          z = z.map((value, k) => clamp(value - (p[k] - (k === label ? 1 : 0)), -wide, wide));
          compute();
        } }, "Step: z − (p − y)"),
        make("button", { type: "button", onclick: () => {
          [z, label] = [[...start], truth];
          target.querySelector("select").value = classes[label];
          compute();
        } }, "Reset")),
      make("div", { class: "live-scores" },
        ...["class", "score z", "", "p", "p − y"].map(title => make("b", {}, title)),
        ...rows.flatMap(row => [row.name, row.input, row.z, row.p.node, row.gradient.node])),
      loss,
    ];
  }

  // --- the step size over a run ---

  /** Shares of the largest step size, as gradcam_lib.optimizers has them; t is the share of the run that is done. */
  function shareOf(schedule, t, { start, end, warmUp }) {
    const between = (a, b, s) => b + (a - b) * (1 + Math.cos(Math.PI * s)) / 2;
    if (schedule === "constant") return 1;
    if (schedule === "linear") return 1 - t;
    if (schedule === "cosine") return (1 + Math.cos(Math.PI * t)) / 2;
    return t < warmUp ? between(start, 1, t / warmUp) : between(1, end, (t - warmUp) / (1 - warmUp));
  }

  function schedule({ steps, peak: first, schedules, start, end, warmUp: usual }) {
    let name = schedules.at(-1), peak = first, warmUp = usual, step = Math.round(steps / 10);
    const size = (schedule, k) => peak * shareOf(schedule, k / steps, { start, end, warmUp });
    const points = schedule => Array.from({ length: steps + 1 }, (_, k) => [k, size(schedule, k)]);
    const said = result("step");
    const graph = chart({
      x: [0, steps], y: [0, 2 * first], xlabel: "steps done", ylabel: "step size",
      xticks: [0, 1, 2, 3, 4].map(k => Math.round(k * steps / 4)), yticks: [0, 1, 2, 3, 4].map(k => k * first / 2),
    }, () => ({
      lines: [...schedules.filter(other => other !== name).map(other => ({ name: "faint", points: points(other) })),
        { name: "line", points: points(name) }],
      here: step, dots: [{ name: "dot", x: step, y: size(name, step) }],
    }), x => { along.set(Math.round(x)); go(Math.round(x)); });
    const along = slider("steps done:", { min: 0, max: steps, step: 1, value: step }, k => `${k} of ${steps}`, go);
    const warm = slider("warm-up:", { min: 5, max: 95, step: 5, value: 100 * usual }, v => `${v} %`,
      value => { warmUp = value / 100; show(); });

    function go(k) { step = k; show(); }
    function show() {
      warm.input.disabled = name !== "one-cycle";
      const value = size(name, step);
      said.textContent = `${name}: after ${step} of ${steps} steps, ` +
        `${fixed(100 * step / steps, 1)} % of the run, the step size is ${minus(+value.toPrecision(4))}.`;
      graph.draw();
    }

    show();
    return [
      make("div", { class: "live-controls" }, choice("schedule", schedules, name, value => { name = value; show(); }),
        slider("peak:", { min: first / 20, max: 2 * first, step: first / 20, value: first }, short,
          value => { peak = value; show(); }).node, warm.node),
      graph.node, make("div", { class: "live-controls" }, along.node), said,
    ];
  }

  // --- a threshold on a heat map ---

  function threshold({ height, width, pictures }) {
    const titles = pictures.map(({ title }, n) => `${n + 1}: ${title}`);
    let picture = pictures[0], k = 50, scores, best;

    /** Of the region of level k hundredths and more (9.3). */
    function score(k) {
      let both = 0, region = 0, object = 0;
      picture.level.forEach((level, n) => {
        const above = level >= k, inside = picture.mask[n] === "1";
        both += above && inside;
        region += above;
        object += inside;
      });
      return { iou: both / (region + object - both), precision: both / region, recall: both / object };
    }

    /** Paths round and over the pixels for which inside(n) holds. */
    function paths(inside) {
      const at = (i, j) => i >= 0 && j >= 0 && i < height && j < width && inside(i * width + j);
      let edge = "", area = "";
      for (let i = 0; i <= height; i++)
        for (let j = 0; j <= width; j++) {
          if (at(i, j) !== at(i - 1, j)) edge += `M${j} ${i}h1`;
          if (at(i, j) !== at(i, j - 1)) edge += `M${j} ${i}v1`;
          if (at(i, j)) area += `M${j} ${i}h1v1h-1z`;
        }
      return { edge, area };
    }

    const image = make("svg:image", { width, height });
    const [tint, halo, object, region] = ["tint", "halo", "object", "region"]
      .map(name => make("svg:path", { class: name }));
    const scene = make("svg:svg", {
      class: "live-scene", viewBox: `-0.2 -0.2 ${width + 0.4} ${height + 0.4}`, role: "img", "aria-label": "The picture: the object outlined in white, the region of the map in orange",
    }, image, tint, halo, object, region);
    const graph = chart({
      x: [0, 1], y: [0, 1], xlabel: "threshold", ylabel: "IoU",
      xticks: [0, 0.25, 0.5, 0.75, 1], yticks: [0, 0.25, 0.5, 0.75, 1],
    }, () => ({
      lines: [{ name: "line", points: scores.map(({ iou }, k) => [k / 100, iou]) }], here: k / 100,
      dots: [{ name: "best", x: best / 100, y: scores[best].iou }, { name: "dot", x: k / 100, y: scores[k].iou }],
    }), x => { cut.set(Math.round(100 * x)); go(Math.round(100 * x)); });
    const cut = slider("threshold:", { min: 0, max: 100, step: 1, value: k }, value => fixed(value / 100, 2), go);
    const numbers = make("p", { class: "live-numbers", "data-result": "scores", "aria-live": "polite" });
    const jump = make("button", { type: "button", onclick: () => { cut.set(best); go(best); } });

    function choose(title) {
      picture = pictures[titles.indexOf(title)];
      scores = Array.from({ length: 101 }, (_, k) => score(k));
      best = scores.reduce((best, { iou }, k) => iou > scores[best].iou ? k : best, 0);
      image.setAttribute("href", picture.image);
      const { edge } = paths(n => picture.mask[n] === "1");
      halo.setAttribute("d", edge);
      object.setAttribute("d", edge);
      jump.textContent = `Best: ${fixed(best / 100, 2)}, IoU ${fixed(scores[best].iou, 3)}`;
      show();
    }
    function go(value) { k = value; show(); }
    function show() {
      const { edge, area } = paths(n => picture.level[n] >= k), { iou, precision, recall } = scores[k];
      region.setAttribute("d", edge);
      tint.setAttribute("d", area);
      numbers.replaceChildren(...Object.entries({ IoU: iou, precision, recall }).map(([name, value]) =>
        make("span", {}, `${name} `, make("b", {}, fixed(value, 3)))));
      graph.draw();
    }

    choose(titles[0]);
    return [
      make("div", { class: "live-controls" }, choice("picture", titles, titles[0], choose), cut.node, jump),
      numbers, make("div", { class: "live-pair" }, scene, graph.node),
    ];
  }

  // --- every live figure of the page ---

  const FIGURES = { convolution, schedule, softmax: softmaxAndLoss, threshold };

  for (const figure of document.querySelectorAll(".live")) {
    const numbers = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    figure.append(make("div", { class: "live-body", role: "group", "aria-label": "Live figure" },
      ...FIGURES[figure.dataset.live](numbers)));
    figure.classList.add("is-live");
  }
})();
