/* What takes long, away from the page: decoding and resizing pictures, fetching networks, running them.

Each message is {id, task, ...}, and is answered by {id, answer} or {id, error}; while bytes arrive, by {id, received}.
The worker keeps the networks and nothing else: a picture comes with each task. */
"use strict";
importScripts("resize.js");

const SIDE = 672;   // of the photograph on the page: 3 · 224 and 21 · 32, so that pixels fall on pixels
const sessions = {};

const tasks = {
  /** A file or a frame of the camera as a network sees it, and the same part of it with more pixels, to look at. */
  async prepare({source, reduce, model}) {
    // Like Python's load_image: the EXIF orientation counts, a colour profile does not.
    const bitmap = await createImageBitmap(source, {
      imageOrientation: "from-image", colorSpaceConversion: "none", ...reduce && {...reduce, resizeQuality: "high"},
    });
    const {width, height} = bitmap, {w, left, top} = frame(width, height, model), scale = width / w;
    const read = paper(width, Math.min(Math.ceil(STRIP / width), height));
    const rows = (y, n) => {
      read.fillRect(0, 0, width, n);   // white, under what is transparent
      read.drawImage(bitmap, 0, y, width, n, 0, 0, width, n);
      return read.getImageData(0, 0, width, n).data;
    };
    const seen = crop(rows, width, height, model), view = paper(SIDE, SIDE), side = model.size * scale;
    view.imageSmoothingQuality = "high";
    view.fillRect(0, 0, SIDE, SIDE);
    view.drawImage(bitmap, left * scale, top * scale, side, side, 0, 0, SIDE, SIDE);
    bitmap.close();
    const image = view.canvas.transferToImageBitmap();
    return [{crop: seen, view: image, width, height}, [image]];
  },

  /** Fetch a network, and ONNX Runtime with the first. Bytes are reported as they arrive. */
  async load({model}, report) {
    const [runtime, graph] = await Promise.all([
      self.ort ? null : bytes("ort/ort-wasm-simd-threaded.wasm", report), bytes(model.file, report),
    ]);
    if (!self.ort) {
      importScripts("ort/ort.wasm.min.js");
      // One thread: several would need headers that few hosts of static pages send.
      Object.assign(ort.env.wasm, {numThreads: 1, wasmBinary: runtime, wasmPaths: new URL("ort/", location.href).href});
    }
    sessions[model.id] = await ort.InferenceSession.create(graph, {executionProviders: ["wasm"]});
    return [{}];
  },

  /** The logits, and the Grad-CAM map of one class at one layer; with `parts`, also what the map is made of. */
  async explain({model, crop, target, layer, parts}) {
    const start = performance.now(), {id, size} = model;
    const inputs = {
      picture: new ort.Tensor("uint8", new Uint8Array(crop), [size, size, 3]),
      class: new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1]),
    };
    const names = ["map", ...parts ? ["weights", "features"] : []];
    const outputs = await sessions[id].run(inputs, ["logits", ...names.map(name => `${name}_${layer}`)]);
    const answer = {logits: outputs.logits.data};
    for (const name of names) answer[name] = outputs[`${name}_${layer}`].data;
    return [{...answer, milliseconds: performance.now() - start}];
  },
};

onmessage = async ({data: {id, task, ...given}}) => {
  try {
    const [answer, transfer] = await tasks[task](given, received => postMessage({id, received}));
    postMessage({id, answer}, transfer);
  } catch (error) {
    postMessage({id, error: error?.message || String(error)});
  }
};

/** A white sheet to draw on, its pixels in main memory, where they are not changed on the way. */
function paper(width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  context.fillStyle = "white";
  return context;
}

async function bytes(file, report) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file} could not be fetched (${response.status})`);
  const parts = [];
  for (let reader = response.body.getReader(), part; !(part = await reader.read()).done;) {
    parts.push(part.value);
    report(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
