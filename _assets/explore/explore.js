/* The page Explore: Grad-CAM in the reader's browser.

What the reader chose is in `state`. Any change of it calls `update`, which prepares the picture, runs the network and
draws: one run at a time, and always of the newest choice. What takes long is done by worker.js. The folder's
manifest.json says which networks and samples there are; the networks are written by gradcam_lib.export. */
"use strict";
(() => {
const root = document.querySelector("#explorer"), folder = new URL(".", document.currentScript.src);
const SIDE = 672, TOP = 5, TILES = 12;   // pixels of a map on the page; classes with a bar; feature maps that are shown

// 33 of the 256 colours of each map, as matplotlib has them; between these, the others are straight lines to 1/128.
const COLOURS = {
  inferno: "0000040403120b0724150b37210c4a2f0a5b3d09654a0c6b57106e64156e71196e7d1e6d8a226a972766a32c61b0315bbc3754" +
    "c63d4dd04545da4e3ce35933eb6429f1711ff67e14f98c0afb9b06fcaa0ffbba1ff9c932f5d949f2e865f3f586fcffa4",
  viridis: "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e23898e21918c" +
    "1f978b1f9f8821a68527ad8131b57b3dbc744cc26c5cc8636ece5881d34d95d840aadc32c0df25d5e21aeae51afde725",
  grey: "000000ffffff",
  signed: "1d4478" + "3266a8" + "8fadd4" + "f4f4f1" + "f0b184" + "d9772b" + "96480f",   // against, nothing, for
};
for (const name in COLOURS) COLOURS[name] = palette(COLOURS[name].match(/.{6}/g));

/** 256 colours from a few, as canvas pixels. */
function palette(stops) {
  const rgb = stops.map(hex => [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16)));
  return Uint32Array.from({length: 256}, (_, i) => {
    const at = i / 255 * (rgb.length - 1), k = Math.min(Math.floor(at), rgb.length - 2), t = at - k;
    const [r, g, b] = rgb[k].map((v, c) => Math.round((1 - t) * v + t * rgb[k + 1][c]));
    return (255 << 24 | b << 16 | g << 8 | r) >>> 0;
  });
}

const state = {model: null, picture: null, target: -1, layer: 0, colours: "inferno", opacity: 0.5, beside: false};
const loaded = new Set(), waiting = new Map();
let manifest, worker, $, prepared, shown, camera, busy = false, stale = false, messages = 0;

const number = n => n.toLocaleString("en");
const megabytes = n => `${(n / 1e6).toFixed(1)} MB`;
const percent = p => p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`;
const largest = values => values.reduce((a, b) => Math.max(a, b), 0);

/** Have the worker do something. `progress` is called with the number of each few bytes that arrive. */
function ask(task, given, progress) {
  return new Promise((resolve, reject) => {
    waiting.set(++messages, {resolve, reject, progress});
    worker.postMessage({id: messages, task, ...given});
  });
}

function startWorker() {
  worker = new Worker(new URL("worker.js", folder));
  worker.onmessage = ({data: {id, answer, error, received}}) => {
    const {resolve, reject, progress} = waiting.get(id);
    if (received) return progress(received);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(answer);
  };
  worker.onerror = event => {
    for (const {reject} of waiting.values()) reject(new Error(event.message || "its script did not start"));
    waiting.clear();
  };
}

// --- from a choice to a map ---

async function update(change) {
  Object.assign(state, change);
  stale = true;
  if (busy) return;
  busy = true;
  while (stale || camera) {
    stale = false;
    try {
      await step();
    } catch (error) {
      complain(error.message);
    }
    if (camera) await new Promise(requestAnimationFrame);
  }
  busy = false;
}

async function step() {
  const {model, layer, target} = state, live = Boolean(camera);
  if (live) {
    const source = await createImageBitmap($.video), before = state.picture;
    state.picture = {title: "the camera’s picture", source};
    if (before.source instanceof ImageBitmap) before.source.close();
  }
  const {picture} = state;
  if (prepared?.picture !== picture || prepared.model !== model) {
    try {
      prepared = {...await prepare(picture, model), picture, model};
    } catch (error) {
      if (prepared && prepared.picture !== picture && state.picture === picture) {
        state.picture = prepared.picture;   // what was there stays, and gets its map if it has none yet
        stale = true;
      }
      throw error;
    }
  }
  // A frame of the camera waits for its map, so that the two go together; any other picture is shown at once.
  if (!prepared.drawn && !(live && loaded.has(model.id))) {
    shown = null;
    drawPicture();
  }
  if (!loaded.has(model.id)) return;
  const parts = $.parts.open;
  const result = await ask("explain", {model, layer, target, parts, crop: prepared.crop}).catch(({message}) => {
    throw new Error(`The network could not be run: ${message}.`);
  });
  if (stale && !camera) return;   // the next one is on its way
  const {logits} = result, top = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  const [K, h, w] = model.layers[layer].shape;
  shown = {
    ...result, model: model.id, layer: model.layers[layer].name, class: target < 0 ? top : target, K, h, w,
    crop: prepared.crop, picture: picture.title,
  };
  if (!prepared.drawn) drawPicture();
  drawHeat();
  drawClasses();
  if (parts) drawParts();
  root.result = shown;
}

async function prepare(picture, model) {
  let {source} = picture;
  if (picture.file) {
    const response = await fetch(new URL(picture.file, folder)).catch(() => ({}));
    if (!response.ok) throw new Error(`The sample “${picture.title}” could not be fetched. Are you still connected?`);
    source = await response.blob();
  }
  try {
    return await ask("prepare", {source, model, reduce: picture.source instanceof Blob && await reduction(source)});
  } catch {
    throw new Error(`“${picture.title}” is not a picture that this browser can read. Try a JPEG, PNG or WebP.`);
  }
}

/** How a picture of more than 100 megapixels is made smaller while it is read; false for others. */
async function reduction(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  // This reads the header alone, and fails where there is none.
  await new Promise((resolve, reject) => Object.assign(image, {onload: resolve, onerror: reject}));
  URL.revokeObjectURL(image.src);
  const {naturalWidth: W, naturalHeight: H} = image, scale = Math.sqrt(1e8 / W / H);
  return scale < 1 && {resizeWidth: Math.floor(W * scale), resizeHeight: Math.floor(H * scale)};
}

/** Of what is still to be fetched: the runtime comes with the first network. */
const size = model => model.bytes + (loaded.size ? 0 : manifest.runtime.bytes);

async function load() {
  const {model} = state, total = size(model);
  let bytes = 0;
  $.load.hidden = true;
  $.progress.hidden = false;
  $.bar.max = total;
  const progress = more => {
    $.bar.value = bytes += more;
    const arriving = bytes < 0.99 * total;   // the rest are the runtime's scripts
    $.bytes.textContent = arriving ? `${megabytes(bytes)} of ${megabytes(total)}` : "Starting the network …";
  };
  progress(0);
  for (const radio of $.networks.querySelectorAll("input")) radio.disabled = true;
  try {
    await ask("load", {model}, progress);
    loaded.add(model.id);
    complain("");
  } catch (error) {
    complain(`The network could not be loaded: ${error.message}. Check that you are still connected, and try again.`);
  }
  for (const radio of $.networks.querySelectorAll("input")) radio.disabled = false;
  drawStart();
  update();
}

// --- drawing ---

/** Values in [0, 1] as colours, into a canvas of w × h. */
function paint(canvas, values, w, h, colours) {
  const image = new ImageData(w, h), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colours[Math.round(255 * Math.min(Math.max(values[i], 0), 1))];
  Object.assign(canvas, {width: w, height: h}).getContext("2d").putImageData(image, 0, 0);
}

/** The photograph, or the very pixels that the network is given. */
function drawPicture() {
  const {crop, view, model, width, height} = prepared, {size} = model, [photo, copy] = $.photos;
  const side = $.pixels.checked ? size : SIDE;
  const context = Object.assign(photo, {width: side, height: side}).getContext("2d");
  if ($.pixels.checked) {
    const image = context.createImageData(size, size);
    for (let i = 0, k = 0; i < crop.length; image.data[k++] = 255)
      for (const end = i + 3; i < end;) image.data[k++] = crop[i++];
    context.putImageData(image, 0, 0);
  } else context.drawImage(view, 0, 0);
  Object.assign(copy, {width: side, height: side}).getContext("2d").drawImage(photo, 0, 0);
  for (const canvas of $.photos) canvas.classList.toggle("pixels", $.pixels.checked);
  $.size.textContent = width === size && height === size ? `${size} × ${size} pixels, all that the network gets` :
    `${number(width)} × ${number(height)} pixels. The network gets the middle square, at ${size} × ${size}`;
  prepared.drawn = true;
  root.classList.toggle("drawn", Boolean(shown));
  if (!shown) for (const canvas of $.heats) canvas.hidden = true;
  for (const button of $.samples.children)
    button.setAttribute("aria-pressed", prepared.picture.file === button.dataset.file);
}

function drawHeat() {
  const {map, h, w, K} = shown, large = enlarge(map, h, w, SIDE, SIDE), most = largest(large);
  shown.most = most;
  root.classList.add("drawn");
  paint($.heat, large.map(v => v / (most || 1)), SIDE, SIDE, COLOURS[state.colours]);
  $.heat.hidden = !most && !state.beside;
  $.most.textContent = most ? most.toPrecision(2) : "0";
  const of = state.model.classes[shown.class], at = map.indexOf(largest(map));
  const third = (i, n) => Math.floor((i + 0.5) / n * 3), row = third(Math.floor(at / w), h), column = third(at % w, w);
  const place = `${["top", "middle", "bottom"][row]} ${["left", "centre", "right"][column]}`;
  const words = most ? `The evidence for “${of}” is strongest at the ${place.replace("middle centre", "middle")}.` :
    `The map is zero everywhere: at this layer nothing speaks for “${of}”. Try another layer, or another class.`;
  $.status.classList.toggle("empty", !most);
  $.status.textContent = words;
  $.stage.setAttribute("aria-label", `${prepared.picture.title}. ${words}`);
  const time = Math.round(shown.milliseconds);
  $.time.textContent = `${shown.layer}: ${number(K)} maps of ${h} × ${w}. Computed here in ${time} ms.`;
}

function drawClasses() {
  const {logits} = shown, most = logits.reduce((a, b) => Math.max(a, b)), {classes} = state.model;
  const exps = Array.from(logits, z => Math.exp(z - most)), sum = exps.reduce((a, b) => a + b);
  shown.p = exps.map(e => e / sum);
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]), rows = order.slice(0, TOP);
  if (!rows.includes(shown.class)) rows.push(shown.class);
  [...$.classes.children].forEach((button, i) => {
    const c = rows[i];
    button.hidden = c === undefined;
    button.setAttribute("aria-pressed", c === shown.class);
    if (button.hidden) return;
    button.dataset.class = c;
    button.style.setProperty("--p", shown.p[c]);
    button.firstChild.textContent = classes[c];
    button.lastChild.textContent = percent(shown.p[c]);
  });
}

/** How the map is made: the strongest feature maps, and the sum of the first few of all of them. */
function drawParts() {
  const {weights: alpha, features: A, K, h, w} = shown, cells = h * w, reach = new Float32Array(K);
  for (let k = 0; k < K; k++) {
    for (let i = k * cells; i < (k + 1) * cells; i++) reach[k] += Math.abs(A[i]) / cells;
    reach[k] *= Math.abs(alpha[k]);
  }
  const order = [...reach.keys()].sort((a, b) => reach[b] - reach[a]);
  const of = k => A.subarray(k * cells, (k + 1) * cells).map(a => alpha[k] * a);
  const peak = maps => Math.max(...maps.map(map => largest(map.map(Math.abs)))) || 1;
  const tiles = order.slice(0, TILES).map(of), scale = peak(tiles);
  [...$.tiles.children].forEach((tile, i) => {
    const k = order[i], [canvas, words] = tile.children, a = alpha[k].toPrecision(2).replace("-", "−");
    paint(canvas, tiles[i].map(v => 0.5 + v / scale / 2), w, h, COLOURS.signed);
    words.innerHTML = `<b>α = ${alpha[k] > 0 ? "+" : ""}${a}</b> map ${k}`;
  });
  // Every one of the first dozen, then ever more at a time.
  const stops = [];
  for (let n = 1; n < K; n = Math.max(n + 1, Math.round(n >= TILES ? 1.4 * n : 0))) stops.push(n);
  stops.push(K);
  const sum = new Float32Array(cells), sums = [];
  order.forEach((k, n) => {
    of(k).forEach((v, i) => sum[i] += v);
    if (stops[sums.length] === n + 1) sums.push(sum.slice());
  });
  shown.parts = {stops, sums, scale: peak(sums)};
  $.count.max = stops.length - 1;
  drawSum();
}

function drawSum() {
  const {map, h, w, K, most, parts: {stops, sums, scale}} = shown;
  const n = stops[$.count.value], sum = sums[$.count.value], positive = sum.map(v => Math.max(v, 0));
  paint($.sum, sum.map(v => 0.5 + v / scale / 2), w, h, COLOURS.signed);
  paint($.grown, enlarge(positive, h, w, SIDE, SIDE).map(v => v / (most || 1)), SIDE, SIDE, COLOURS[state.colours]);
  $.grown.hidden = !most;
  [...$.tiles.children].forEach((tile, i) => tile.classList.toggle("in", i < n));
  const r = correlation(positive, map).toFixed(2).replace("-", "−");   // of a map that is the same everywhere, none
  const likeness = r === "NaN" ? "" : `: correlation with the finished map ${r}`;
  $.sofar.textContent = n === K ? `All ${number(K)} maps: this is the Grad-CAM map.` :
    `The ${n > 1 ? `${number(n)} strongest` : "strongest"} of ${number(K)} maps${likeness}.`;
  $.count.setAttribute("aria-valuetext", $.sofar.textContent);
}

function correlation(a, b) {
  const mean = v => v.reduce((s, x) => s + x, 0) / v.length, [p, q] = [a, b].map(v => v.map(x => x - mean(v)));
  const dot = (x, y) => x.reduce((s, v, i) => s + v * y[i], 0);
  return dot(p, q) / Math.sqrt(dot(p, p) * dot(q, q));
}

/** The button that loads the chosen network, unless it is here already. */
function drawStart() {
  const here = loaded.has(state.model.id);
  $.start.hidden = here;
  $.progress.hidden = true;
  $.load.hidden = false;
  $.load.textContent = `Load this network (${megabytes(size(state.model))})`;
  $.search.disabled = !here;
  $.predictions.classList.toggle("ready", here);
}

function drawLook() {
  const {colours, beside, opacity} = state, stops = [...COLOURS[colours]].filter((_, i) => i % 15 === 0);
  const css = stops.map(c => `rgb(${c & 255} ${c >> 8 & 255} ${c >> 16 & 255})`);
  root.style.setProperty("--colours", css.join());
  root.style.setProperty("--opacity", beside ? 1 : opacity);
  root.style.setProperty("--part-opacity", opacity);
  $.stage.classList.toggle("beside", beside);
  $.opacity.disabled = beside;
  if (shown) drawHeat();
  if (shown?.parts) drawSum();
}

function complain(message) {
  $.problem.hidden = !message;
  $.problem.textContent = message;
}

// --- what the reader does ---

function choosePicture(picture) {
  stopCamera();
  complain("");
  update({picture, target: -1});
}

function chooseModel(model) {
  $.pixels.checked = model.size < 100;   // so few that each can be seen
  state.model = model;
  shown = null;
  const own = state.picture && !state.picture.file;
  const samples = manifest.samples.filter(sample => sample.model === model.id);
  $.samples.replaceChildren(...samples.map(sample => {
    const button = element(`<button type="button" class="sample"><img alt="" width="64" height="64"></button>`);
    button.dataset.file = sample.file;
    Object.assign(button.firstChild, {src: new URL(sample.file, folder), alt: `Sample: ${sample.title}`});
    button.title = sample.title;
    button.onclick = () => choosePicture(sample);
    return button;
  }));
  const last = model.layers.length - 1;
  $.layers.replaceChildren(...model.layers.map(({name, shape: [K, h, w]}, i) => choice("layer", i, i === last,
    `<code>${name.replace("features.", "")}</code><span>${h} × ${w}, ${number(K)} maps</span>`)));
  $.other.textContent = `or any other of the ${number(model.classes.length)} classes`;
  drawStart();
  update({layer: last, target: -1, picture: own ? state.picture : samples[0]});
}

async function startCamera() {
  complain("");
  if (!navigator.mediaDevices) return complain("Only pages from https or localhost may use a camera; this is neither.");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment", width: {ideal: 640}}});
    $.video.srcObject = stream;
    await $.video.play();
  } catch ({name, message}) {
    stream?.getTracks().forEach(track => track.stop());
    return complain({
      NotAllowedError: "This page may not use the camera: you, or your browser’s settings, refused it.",
      NotFoundError: "There is no camera here.",
    }[name] ?? `The camera could not be started: ${message}`);
  }
  camera = stream;
  stream.getVideoTracks()[0].onended = stopCamera;
  $.camera.textContent = "Stop the camera";
  $.status.setAttribute("aria-live", "off");   // too much to be read out
  update({target: -1});
}

function stopCamera() {
  if (!camera) return;
  camera.getTracks().forEach(track => track.stop());
  camera = $.video.srcObject = null;
  $.camera.textContent = "Use the camera";
  $.status.setAttribute("aria-live", "polite");
}

/** The searchable list of all classes: a combobox, as the ARIA practices describe it. */
function searchable(input, list) {
  let active = -1;
  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", false);
    input.removeAttribute("aria-activedescendant");
  };
  const activate = i => {
    active = Math.min(Math.max(i, 0), list.children.length - 1);
    [...list.children].forEach((option, k) => option.setAttribute("aria-selected", k === active));
    list.children[active]?.scrollIntoView({block: "nearest"});
    if (active >= 0) input.setAttribute("aria-activedescendant", list.children[active].id);
  };
  const open = () => {
    const sought = input.value.trim().toLowerCase(), {classes} = state.model;
    const all = classes.map((name, c) => ({name, c, at: name.toLowerCase().indexOf(sought)}));
    const found = all.filter(({at}) => at >= 0);
    // Names that begin so come first; of all classes, the more probable ones.
    found.sort((a, b) => (a.at > 0) - (b.at > 0) || (sought ? 0 : (shown?.p?.[b.c] ?? 0) - (shown?.p?.[a.c] ?? 0)));
    list.replaceChildren(...found.slice(0, 60).map(({name, c}) => {
      const option = element(`<li role="option" id="explore-class-${c}"><span></span><small></small></li>`);
      option.firstChild.textContent = name;
      option.lastChild.textContent = shown?.p ? percent(shown.p[c]) : "";
      option.onclick = () => choose(c);
      return option;
    }));
    if (!found.length) list.append(element(`<li class="none">No class has this in its name.</li>`));
    list.hidden = false;
    input.setAttribute("aria-expanded", true);
    active = -1;
    if (sought && found.length) activate(0);
  };
  const choose = c => {
    input.value = "";
    close();
    update({target: c});
  };
  input.oninput = input.onclick = open;
  input.onblur = close;
  input.onkeydown = event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (step) {
      if (list.hidden) open();
      activate(active + step);
    } else if (event.key === "Enter" && !list.hidden && active >= 0) list.children[active].click();
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
  };
  list.onmousedown = event => event.preventDefault();   // the field keeps the focus
}

// --- the page ---

function element(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstChild;
}

/** One of several, of which one is chosen: a radio button with the looks of a button. */
function choice(name, value, checked, html) {
  const input = `<input type="radio" name="explore-${name}" value="${value}"${checked ? " checked" : ""}>`;
  return element(`<label class="choice">${input}${html}</label>`);
}

const PAGE = `
<div class="networks" data-is="networks" role="radiogroup" aria-label="Network"></div>
<div class="pictures" role="group" aria-label="Picture">
  <div class="samples" data-is="samples"></div>
  <div class="own">
    <label class="button"><input type="file" accept="image/*" data-is="file">Choose a picture</label>
    <button type="button" class="button" data-is="camera">Use the camera</button>
    <span>or drop or paste one. No picture leaves this machine.</span>
  </div>
</div>
<p class="problem" role="alert" data-is="problem" hidden></p>
<div class="desk">
  <div class="view">
    <div class="framed">
      <div class="stage" role="img" aria-label="The picture" data-is="stage">
        <canvas data-is="photo"></canvas><canvas class="heat" data-is="heat" hidden></canvas>
        <video data-is="video" playsinline muted hidden></video>
      </div>
      <div class="start" data-is="start">
        <button type="button" class="primary" data-is="load"></button>
        <div data-is="progress" hidden>
          <progress data-is="bar" aria-label="Loading the network"></progress><span data-is="bytes"></span>
        </div>
        <small>It is fetched once, and runs in your browser.</small>
      </div>
      <div class="scale" aria-hidden="true"><span data-is="most"></span><i></i><span>0</span></div>
    </div>
    <p class="status" aria-live="polite" data-is="status"></p>
    <p class="fine"><span data-is="size"></span>. <span data-is="time"></span></p>
  </div>
  <div class="controls">
    <section class="predictions" data-is="predictions">
      <h3 id="explore-ask">What speaks for …</h3>
      <p class="later">The network’s predictions appear here once it is loaded.</p>
      <div class="classes" role="group" aria-labelledby="explore-ask" data-is="classes"></div>
      <div class="search">
        <label for="explore-search" data-is="other"></label>
        <input id="explore-search" type="text" role="combobox" aria-expanded="false" aria-autocomplete="list"
          aria-controls="explore-list" autocomplete="off" spellcheck="false" placeholder="Search by name"
          data-is="search">
        <ul id="explore-list" role="listbox" aria-label="Classes" data-is="list" hidden></ul>
      </div>
    </section>
    <section><h3 id="explore-layer">… at the layer</h3>
      <div class="layers" role="radiogroup" aria-labelledby="explore-layer" data-is="layers"></div></section>
  </div>
  <div class="look">
    <div class="choices" role="radiogroup" aria-label="Arrangement" data-is="arrangement"></div>
    <div class="choices" role="radiogroup" aria-label="Colours" data-is="colours"></div>
    <label class="slider">Opacity <input type="range" min="0" max="1" step="0.05" value="0.5" data-is="opacity"></label>
    <label class="check"><input type="checkbox" data-is="pixels"> the network’s own pixels</label>
  </div>
</div>
<details class="making" data-is="parts">
  <summary>How this map is made</summary>
  <p>The layer gives <i>K</i> feature maps <i>A<sup>k</sup></i>. Each gets one weight, α<sub><i>k</i></sub>: how much
  the class’s score would rise, on average, if that map were larger. The Grad-CAM map is their weighted sum, of which
  ReLU keeps what is positive: <i>L</i> = ReLU(∑ α<sub><i>k</i></sub> <i>A<sup>k</sup></i>).</p>
  <label class="slider" for="explore-count">Add the maps, strongest first</label>
  <input id="explore-count" type="range" min="0" max="1" value="0" data-is="count">
  <p class="status" aria-live="polite" data-is="sofar"></p>
  <div class="equation">
    <figure><canvas class="pixels" data-is="sum"></canvas><figcaption>their sum so far</figcaption></figure>
    <span class="arrow" aria-hidden="true">ReLU →</span>
    <figure>
      <div class="stage part">
        <canvas data-is="copy"></canvas><canvas class="heat" data-is="grown" hidden></canvas>
      </div>
      <figcaption>what is positive, on the picture</figcaption>
    </figure>
  </div>
  <p class="legend"><span>against the class</span><i></i><span>for it</span></p>
  <ol class="tiles" data-is="tiles"></ol>
  <p class="fine">The twelve with the largest |α| times mean |<i>A</i>|, each multiplied by its α; all on one scale.</p>
</details>`;

function build() {
  root.innerHTML = PAGE;
  $ = Object.fromEntries([...root.querySelectorAll("[data-is]")].map(node => [node.dataset.is, node]));
  Object.assign($, {photos: [$.photo, $.copy], heats: [$.heat, $.grown]});

  $.networks.append(...manifest.models.map((model, i) => choice("network", i, !i, `<b>${model.title}</b>` +
    `<span>${number(model.classes.length)} classes, pictures of ${model.size} × ${model.size} pixels</span>`)));
  for (const [value, words] of [["", "Overlay"], ["beside", "Side by side"]])
    $.arrangement.append(choice("arrangement", value, !value, words));
  for (const name of ["inferno", "viridis", "grey"])
    $.colours.append(choice("colours", name, name === "inferno", name));
  for (let i = 0; i <= TOP; i++)   // one more, for a class that is not among the first
    $.classes.append(element(`<button type="button" class="class" hidden><span></span><span></span></button>`));
  for (let i = 0; i < TILES; i++) $.tiles.append(element(`<li><canvas class="pixels"></canvas><span></span></li>`));
  searchable($.search, $.list);

  $.networks.onchange = ({target}) => chooseModel(manifest.models[target.value]);
  $.layers.onchange = ({target}) => update({layer: Number(target.value)});
  $.classes.onclick = ({target}) => {
    const bar = target.closest("button");
    if (bar) update({target: Number(bar.dataset.class)});
  };
  $.load.onclick = load;
  $.camera.onclick = () => camera ? stopCamera() : startCamera();
  $.arrangement.onchange = ({target}) => drawLook(state.beside = Boolean(target.value));
  $.colours.onchange = ({target}) => drawLook(state.colours = target.value);
  $.opacity.oninput = () => drawLook(state.opacity = Number($.opacity.value));
  $.pixels.onchange = drawPicture;
  $.count.oninput = () => shown?.parts && drawSum();
  $.parts.ontoggle = () => $.parts.open && update();

  const file = files => files?.[0] && choosePicture({title: files[0].name, source: files[0]});
  $.file.onchange = () => {
    file($.file.files);
    $.file.value = "";   // so that the same file can be chosen again
  };
  document.addEventListener("paste", event => file(event.clipboardData.files));
  root.ondragover = event => {
    event.preventDefault();
    root.classList.add("dropping");
  };
  root.ondragleave = event => root.contains(event.relatedTarget) || root.classList.remove("dropping");
  root.ondrop = event => {
    event.preventDefault();
    root.classList.remove("dropping");
    file(event.dataTransfer.files);
  };
  // Whoever leaves the page leaves the camera.
  addEventListener("pagehide", stopCamera);
  document.addEventListener("visibilitychange", () => document.hidden && stopCamera());
}

const tell = message => {
  root.innerHTML = `<p class="problem" role="alert"></p>`;
  root.firstChild.textContent = message;
};

(async () => {
  if (location.protocol === "file:") {
    const home = decodeURI(new URL("../..", folder).pathname);
    return tell("A page from the disk may not start a network: run python -m http.server in this book’s folder " +
      `(${home}) and open http://localhost:8000.`);
  }
  if (![self.WebAssembly, self.Worker, self.OffscreenCanvas, self.createImageBitmap].every(Boolean))
    return tell("This browser cannot run a network: it lacks WebAssembly, or a canvas in a worker. A current one can.");
  try {
    const response = await fetch(new URL("manifest.json", folder));
    if (!response.ok) throw new Error(response.status);
    manifest = await response.json();
  } catch (error) {
    return tell(`The list of networks could not be fetched (${error.message}). Reload the page to try again.`);
  }
  startWorker();
  build();
  drawLook();
  chooseModel(manifest.models[0]);
})();
})();
