/* Pixels: a picture brought to a network's size exactly as Pillow does it, and a map enlarged as PyTorch does it.

A network's answer depends on how its picture was made smaller. A browser's own resizing takes too few pixels into
account, and differs from one browser to the next. So this is Pillow's (its Resample.c), to the last bit: each new pixel
is a weighted mean of all the old ones that it covers, along the rows and then along the columns, rounded to 8 bits in
between; the weights are whole multiples of 2^-22. Pure functions, for the page and for the worker. */
"use strict";

const FILTERS = {
  bilinear: {support: 1, at: x => (x = Math.abs(x)) < 1 ? 1 - x : 0},
  bicubic: {support: 2, at: x => {  // Keys's, with a = -1/2
    const a = -0.5;
    x = Math.abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
  }},
};
const BITS = 22;         // of the weights, behind the point
const STRIP = 1 << 21;   // pixels that are read at once: 8 MB

const halfToEven = x => x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);   // Python's round

/** Where a network looks in a picture of width × height: the size that this is brought to, and the square within that.
 *
 *  As torchvision's resize (the short side becomes `resize`) and center_crop (a square of `size`). */
function frame(width, height, {resize, size}) {
  const long = Math.trunc(resize * Math.max(width, height) / Math.min(width, height));
  const [w, h] = width <= height ? [resize, long] : [long, resize];
  return {w, h, size, left: halfToEven((w - size) / 2), top: halfToEven((h - size) / 2)};
}

/** For each of `count` new pixels from `from` on, of `to` in all: the first of the `n` old ones that it covers, and
 *  their weights. */
function weights(n, to, from, count, {support, at}) {
  const scale = n / to, stretch = Math.max(scale, 1), reach = support * stretch;
  return Array.from({length: count}, (_, i) => {
    const centre = (from + i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), n);
    const w = Array.from({length: end - first}, (_, x) => at((x + first - centre + 0.5) * (1 / stretch)));
    const sum = w.reduce((a, b) => a + b, 0);
    return {first, w: w.map(v => Math.trunc(v / sum * 2 ** BITS + Math.sign(v) * 0.5))};
  });
}

/** `n` rows of RGBA pixels, `width` wide, resized along their length. */
function alongRows(old, n, width, weights) {
  const narrow = new Uint8ClampedArray(n * weights.length * 4);   // which clamps to 0 ... 255
  for (let row = 0, to = 0; row < n; row++)
    for (const {first, w} of weights) {
      let r = 1 << BITS - 1, g = r, b = r;   // a half, so that the shift rounds
      for (let x = 0, from = 4 * (row * width + first); x < w.length; x++, from += 4) {
        r += old[from] * w[x];
        g += old[from + 1] * w[x];
        b += old[from + 2] * w[x];
      }
      narrow[to++] = r >> BITS;
      narrow[to++] = g >> BITS;
      narrow[to++] = b >> BITS;
      to++;
    }
  return narrow;
}

/** The part of a picture that a network sees: (size, size, 3) uint8, the same as `Preparation.crop` in Python.
 *
 *  rows(y, n)  the picture's rows y to y + n, RGBA; asked for from top to bottom, a strip at a time
 *  model       {resize, size, interpolation} */
function crop(rows, width, height, model) {
  const {w, h, size, left, top} = frame(width, height, model), filter = FILTERS[model.interpolation];
  const across = weights(width, w, left, size, filter), down = weights(height, h, top, size, filter);
  // Pillow's rule since its version 13: tall pictures are resized along the columns first, which is quicker.
  const columnsFirst = height > h && height - h > 2 * (width - w);
  const length = 4 * (columnsFirst ? width : size), sums = new Int32Array(size * length).fill(1 << BITS - 1);
  const last = down[size - 1], end = last.first + last.w.length;
  for (let y = down[0].first, n; y < end; y += n) {
    n = Math.min(Math.ceil(STRIP / width), end - y);
    const strip = columnsFirst ? rows(y, n) : alongRows(rows(y, n), n, width, across);
    down.forEach(({first, w}, i) => {
      for (let k = Math.max(y - first, 0); k < w.length && first + k < y + n; k++) {
        const from = (first + k - y) * length, to = i * length;
        for (let j = 0; j < length; j++) sums[to + j] += strip[from + j] * w[k];
      }
    });
  }
  const short = new Uint8ClampedArray(sums.map(v => v >> BITS));
  const seen = columnsFirst ? alongRows(short, size, width, across) : short;
  return seen.filter((_, i) => i % 4 < 3);
}

/** A map of h × w values enlarged to H × W, bilinearly, pixel centres kept in place (align_corners=False). */
function enlarge(map, h, w, H, W) {
  const places = (n, N) => Array.from({length: N}, (_, i) => {
    const at = Math.max((i + 0.5) * n / N - 0.5, 0), low = Math.trunc(at);
    return [low, Math.min(low + 1, n - 1), at - low];
  });
  const large = new Float32Array(H * W), columns = places(w, W), row = new Float32Array(w);
  places(h, H).forEach(([y0, y1, t], y) => {
    for (let x = 0; x < w; x++) row[x] = (1 - t) * map[y0 * w + x] + t * map[y1 * w + x];
    for (let x = 0; x < W; x++) {
      const [x0, x1, s] = columns[x];
      large[y * W + x] = (1 - s) * row[x0] + s * row[x1];
    }
  });
  return large;
}
