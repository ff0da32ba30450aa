// From a file to an answer, as the Python package does it: the same refusals, grey levels, resize, guard and decision.
// No DOM beyond decoding; every constant comes from space.json and from the model's own files.

/** Why a picture is not judged: the key of a text, and what to put into it. */
export class Refused extends Error {
  constructor(key, values = {}) {
    super(key);
    this.values = values;
  }
}

// --- reading -------------------------------------------------------------------------------------

const ascii = (bytes, start, length) => String.fromCharCode(...bytes.subarray(start, start + length));

/** Refuse what a browser would show wrongly or not at all, by what the file is, never by its name. */
export function checkFile(bytes) {
  if (!bytes.length) throw new Refused("reason_empty");
  if (ascii(bytes, 128, 4) === "DICM" || (bytes[0] === 2 && bytes[1] === 0) || (bytes[0] === 8 && bytes[1] === 0)) {
    throw new Refused("no_dicom");
  }
  const png = ascii(bytes, 1, 3) === "PNG", jpeg = bytes[0] === 0xff && bytes[1] === 0xd8;
  const webp = ascii(bytes, 0, 4) === "RIFF" && ascii(bytes, 8, 4) === "WEBP", bmp = ascii(bytes, 0, 2) === "BM";
  if (!(png || jpeg || webp || bmp)) throw new Refused("no_format");
  if (png && bytes[24] === 16) throw new Refused("too_deep");
  if ((png && chunks(bytes).includes("acTL")) || (webp && ascii(bytes, 12, 4) === "VP8X" && bytes[20] & 2)) {
    throw new Refused("animated");
  }
  if (jpeg && components(bytes) === 4) throw new Refused("reason_print_colours", { mode: "CMYK" });
}

function chunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), names = [];
  for (let at = 8; at + 8 <= bytes.length && names.at(-1) !== "IDAT"; at += 12 + view.getUint32(at)) {
    names.push(ascii(bytes, at + 4, 4));
  }
  return names;
}

/** Number of colour components in the frame header of a JPEG. */
function components(bytes) {
  for (let at = 2; at + 9 < bytes.length;) {
    if (bytes[at] !== 0xff) return 0;
    const marker = bytes[at + 1], length = (bytes[at + 2] << 8) | bytes[at + 3];
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return bytes[at + 9];
    at += 2 + length;
  }
  return 0;
}

/** A file as one 8-bit grey picture {data, width, height}; `read_image` of the Python package for what browsers decode. */
export async function readImage(blob, limits) {
  if (blob.size > limits.max_bytes) {
    throw new Refused("reason_file_too_large", { limit: limits.max_bytes / 2 ** 20 });
  }
  checkFile(new Uint8Array(await blob.arrayBuffer()));
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Refused("reason_damaged");
  }
  const { width, height } = bitmap;
  if (Math.min(width, height) < limits.min_side) {
    throw new Refused("reason_too_small", { width, height, limit: limits.min_side });
  }
  if (Math.max(width, height) > limits.max_side) {
    throw new Refused("reason_too_large", { width, height, limit: limits.max_side });
  }
  if (width * height > limits.max_pixels) {
    throw new Refused("reason_too_many_pixels", { limit: limits.max_pixels / 1e6 });
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "black"; // what is transparent becomes black, like the surround of a film
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  return { data: grey(context.getImageData(0, 0, width, height).data, limits), width, height };
}

/** Luminance (ITU-R BT.601, in Pillow's own arithmetic) of RGBA pixels; refused where colour can be seen. */
export function grey(rgba, limits) {
  const out = new Uint8Array(rgba.length / 4);
  let coloured = 0;
  for (let i = 0, j = 0; j < out.length; i += 4, j++) {
    const r = rgba[i], g = rgba[i + 1], b = rgba[i + 2];
    if (Math.max(r, g, b) - Math.min(r, g, b) > limits.colour_step) coloured++;
    out[j] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
  }
  if (coloured / out.length > limits.colour_share) throw new Refused("reason_colour");
  return out;
}

/** Browsers that hide fingerprints change the pixels a page reads; an answer on changed pixels would be worthless. */
export function canvasIsTrue() {
  const canvas = new OffscreenCanvas(64, 64), context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(64, 64);
  for (let i = 0; i < image.data.length; i += 4) image.data.set([(i / 4) % 256, (i / 64) % 256, 128, 255], i);
  context.putImageData(image, 0, 0);
  return context.getImageData(0, 0, 64, 64).data.every((value, i) => value === image.data[i]);
}

// --- preprocessing -------------------------------------------------------------------------------

const BITS = 22; // fixed point of Pillow's 8-bit resampling (libImaging/Resample.c)
const BICUBIC = { reach: 2, weigh: cubic };
export const BILINEAR = { reach: 1, weigh: (x) => Math.max(0, 1 - Math.abs(x)) };

function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** Pillow's coefficients for one direction: for every output place where to begin and what to weigh with.
 * `shown` is how much of `size` the output shows; it may end inside the last pixel. */
function coefficients(size, shown, wanted, { reach, weigh }) {
  const scale = shown / wanted, spread = Math.max(scale, 1), support = reach * spread;
  return Array.from({ length: wanted }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(size, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: last - first }, (_, x) => weigh((x + first - centre + 0.5) * (1 / spread)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** Grey levels in fixed point, as Pillow computes them; other numbers as they are. */
function arithmetic(data) {
  if (!(data instanceof Uint8Array)) return { begin: 0, weigh: (weights) => weights, end: (sum) => sum };
  return {
    begin: 1 << (BITS - 1),
    weigh: (weights) => Int32Array.from(weights, (w) => Math.trunc(w * 2 ** BITS + (w < 0 ? -0.5 : 0.5))),
    end: (sum) => Math.min(255, Math.max(0, sum >> BITS)),
  };
}

/** Resize with antialiasing, equal to Pillow's `resize` to the last bit; `data` are bytes or floats. */
export function resize({ data, width, height }, toWidth, toHeight, filter = BICUBIC, shown = [width, height]) {
  const { begin, weigh, end } = arithmetic(data);
  const direction = (...sizes) => coefficients(...sizes, filter).map(({ first, weights }) => ({ first, weights: weigh(weights) }));
  let rows = data;
  if (toWidth !== width || shown[0] !== width) {
    const across = direction(width, shown[0], toWidth);
    rows = new data.constructor(toWidth * height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < toWidth; x++) {
        const { first, weights } = across[x];
        let sum = begin;
        for (let k = 0, at = y * width + first; k < weights.length; k++, at++) sum += data[at] * weights[k];
        rows[y * toWidth + x] = end(sum);
      }
    }
  }
  if (toHeight === height && shown[1] === height) return rows;
  const down = direction(height, shown[1], toHeight), out = new data.constructor(toWidth * toHeight);
  for (let y = 0; y < toHeight; y++) {
    const { first, weights } = down[y];
    for (let x = 0; x < toWidth; x++) {
      let sum = begin;
      for (let k = 0, at = first * toWidth + x; k < weights.length; k++, at += toWidth) sum += rows[at] * weights[k];
      out[y * toWidth + x] = end(sum);
    }
  }
  return out;
}

/** Mean of blocks of `across` x `down` pixels, in the arithmetic of Pillow's `reduce`; the last ones may be smaller. */
export function reduce({ data, width, height }, across, down) {
  const wide = Math.ceil(width / across), high = Math.ceil(height / down), out = new Uint8Array(wide * high);
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      const right = Math.min(width, (x + 1) * across), bottom = Math.min(height, (y + 1) * down);
      const count = (right - x * across) * (bottom - y * down);
      let sum = count >> 1;
      for (let row = y * down; row < bottom; row++) {
        for (let column = x * across; column < right; column++) sum += data[row * width + column];
      }
      out[y * wide + x] = Math.floor((sum * Math.floor(2 ** 24 / count)) / 2 ** 24);
    }
  }
  return { data: out, width: wide, height: high };
}

/** The tensor (1, 3, H, W) of a grey picture: squeezed, three equal channels, standardised. */
export function pixels(picture, config) {
  const { input_size: [, height, width], mean, std } = config.pretrained_cfg;
  const small = resize(picture, width, height), out = new Float32Array(3 * small.length);
  for (let channel = 0; channel < 3; channel++) {
    const m = Math.fround(mean[channel]), s = Math.fround(std[channel]);
    for (let i = 0; i < small.length; i++) {
      out[channel * small.length + i] = Math.fround(Math.fround(Math.fround(small[i] / 255) - m) / s);
    }
  }
  return out;
}

/** numpy's percentile of grey levels, interpolated, from their histogram. */
function percentile(histogram, count, share) {
  const place = (share / 100) * (count - 1), low = Math.floor(place);
  const at = (rank) => {
    let seen = 0;
    return histogram.findIndex((number) => (seen += number) > rank);
  };
  return at(low) + (place - low) * (at(Math.min(low + 1, count - 1)) - at(low));
}

/** Whether a picture shows nothing: its grey levels hardly deviate once the outermost 2 % are clipped. */
export function isBlank({ data }, limits) {
  const histogram = histogramOf(data);
  const low = percentile(histogram, data.length, 1), high = percentile(histogram, data.length, 99);
  let sum = 0, squares = 0;
  histogram.forEach((number, value) => {
    const clipped = Math.min(high, Math.max(low, value));
    sum += number * clipped;
    squares += number * clipped * clipped;
  });
  return Math.sqrt(Math.max(0, squares / data.length - (sum / data.length) ** 2)) < limits.blank_deviation;
}

// --- lungs ---------------------------------------------------------------------------------------
// hub_model/lungs.py, step by step; `rules` are its constants.

const GAP = 3; // `reducing_gap` of Pillow's `resize`

/** A histogram of bytes, of all or of the chosen ones. */
function histogramOf(data, chosen = () => true) {
  const counts = new Array(256).fill(0);
  data.forEach((value, i) => { if (chosen(i)) counts[value]++; });
  return counts;
}

/** Round as Python and numpy do: a half goes to the even neighbour. */
function round(value) {
  const low = Math.floor(value), rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

/** What the lung network sees: the picture at its size, each level the share of darker pixels; (side, side) in 0..1. */
export function lungInput(picture, { side }) {
  const across = Math.trunc(picture.width / side / GAP) || 1, down = Math.trunc(picture.height / side / GAP) || 1;
  const coarse = across > 1 || down > 1 ? reduce(picture, across, down) : picture;
  const shown = [Math.fround(picture.width / across), Math.fround(picture.height / down)];
  const small = resize(coarse, side, side, BILINEAR, shown), counts = histogramOf(small), darker = [];
  counts.reduce((seen, count, level) => ((darker[level] = seen), seen + count), 0);
  const brightest = Math.max(darker[small.reduce((most, value) => Math.max(most, value), 0)], 1);
  return Float32Array.from(small, (value) => darker[value] / brightest);
}

/** The box around the lungs as shares [left, top, right, bottom]; null where the outline is no lung. */
export function boxOf(outline, { side, likely, faint, tail, smallest, certain }) {
  const inside = outline.filter((value) => value >= likely);
  const certainty = inside.reduce((sum, value) => sum + value, 0) / Math.max(inside.length, 1);
  if (inside.length / outline.length < smallest || certainty < certain) return null;
  const columns = new Array(side).fill(0), rows = new Array(side).fill(0), least = Math.fround(faint);
  outline.forEach((value, i) => {
    if (value < least) return;
    columns[i % side] += value;
    rows[Math.floor(i / side)] += value;
  });
  const [[left, right], [top, bottom]] = [columns, rows].map((profile) => span(profile, tail));
  return [left, top, right, bottom];
}

/** Where the first and the last `tail` of a profile's mass end, as shares of its length. */
function span(profile, tail) {
  const total = profile.reduce((sum, value) => sum + value, 0), below = [0];
  for (const value of profile) below.push(below.at(-1) + value / total);
  const place = (mass) => {
    const at = Math.min(below.findLastIndex((share) => share <= mass), profile.length - 1);
    return (at + (mass - below[at]) / (below[at + 1] - below[at])) / profile.length;
  };
  return [place(tail), place(1 - tail)];
}

/** The part of a picture inside a box, to whole pixels. */
export function cut({ data, width, height }, box) {
  const left = Math.trunc(box[0] * width), top = Math.trunc(box[1] * height);
  const right = Math.min(width, Math.max(round(box[2] * width + 0.5), left + 1));
  const bottom = Math.min(height, Math.max(round(box[3] * height + 0.5), top + 1));
  const out = new data.constructor((right - left) * (bottom - top));
  for (let y = top; y < bottom; y++) {
    out.set(data.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  }
  return { data: out, width: right - left, height: bottom - top };
}

/** The picture cut to its lungs, a level being the share of lung that is darker. */
export function lungView(picture, outline, box, { side, likely }) {
  const view = cut(picture, box);
  const mask = { data: Uint8Array.from(outline, (value) => (value >= likely ? 255 : 0)), width: side, height: side };
  const inside = resize(cut(mask, box), view.width, view.height, BILINEAR);
  const counts = histogramOf(view.data, (i) => inside[i] > 127).map((count) => count + 1e-3);
  const total = counts.reduce((sum, count) => sum + count, 0), levels = [];
  counts.reduce((seen, count, level) => ((levels[level] = round((seen + count - count / 2) * (255 / total))), seen + count), 0);
  return { ...view, data: Uint8Array.from(view.data, (value) => levels[value]) };
}

/** A heat map of the view, put back into the frame of the whole picture; 0.5, neither for nor against, around it. */
export function placed(heat, box, { side }) {
  const [left, top] = box.slice(0, 2).map((edge) => Math.min(Math.trunc(edge * side), side - 1));
  const right = Math.min(side, Math.max(round(box[2] * side), left + 1));
  const bottom = Math.min(side, Math.max(round(box[3] * side), top + 1));
  const fine = resize(heat, right - left, bottom - top, BILINEAR), data = new Float32Array(side * side).fill(0.5);
  for (let y = top; y < bottom; y++) {
    data.set(fine.subarray((y - top) * (right - left), (y - top + 1) * (right - left)), y * side + left);
  }
  return { data, width: side, height: side };
}

// --- the model -----------------------------------------------------------------------------------

/** Float32 tensors of a safetensors file, by name. */
export function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length))), tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (dtype !== "F32") throw new Error(`${name} is ${dtype}; this page reads F32.`);
    tensors[name] = { shape, data: new Float32Array(buffer.slice(8 + length + from, 8 + length + to)) };
  }
  return tensors;
}

/** The guard's out-of-distribution score, as the largest ratio of a part of it to its limit: above 1 is refused. */
export function outOfDistribution(features, tensors, limits) {
  const z = Array.from(features, (x, i) => (x - tensors.mean.data[i]) / tensors.scale.data[i]);
  const [kept, width] = tensors.basis.shape, basis = tensors.basis.data;
  const along = Array.from({ length: kept }, (_, k) => z.reduce((sum, x, i) => sum + x * basis[k * width + i], 0));
  const rest = z.map((x, i) => x - along.reduce((sum, a, k) => sum + a * basis[k * width + i], 0));
  const rms = (values) => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0) / values.length);
  const odds = z.reduce((sum, x, i) => sum + x * tensors.foreign.data[i], tensors.bias.data[0]);
  const scores = {
    distance: rms(along.map((a, k) => a / tensors.deviation.data[k])), residual: rms(rest), foreign: 1 / (1 + Math.exp(-odds)),
  };
  return Math.max(...Object.entries(limits).map(([name, limit]) => scores[name] / limit));
}

/** Decision for a probability at an operating point. */
export function decide(probability, point) {
  const [low, high] = point.abstain ?? [point.threshold, point.threshold];
  if (low <= probability && probability < high) return "inconclusive";
  return probability >= point.threshold ? "positive" : "negative";
}

/** One model with its files, opened once. */
export class Model {
  static async open(ort, folder) {
    const get = async (name) => {
      const answer = await fetch(folder + name);
      if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status}).`);
      return answer;
    };
    const model = new Model();
    model.ort = ort;
    model.config = await (await get("config.json")).json();
    model.screening = await (await get("screening.json")).json();
    model.guard = model.screening.guard ? readSafetensors(await (await get("guard.safetensors")).arrayBuffer()) : null;
    // a graph holds no weights: it reads them, by offset, from the file that every other loader opens
    const session = async (name, path) => ort.InferenceSession.create(await (await get(name)).arrayBuffer(), {
      executionProviders: ["wasm"], logSeverityLevel: 3,
      externalData: [{ path, data: new Uint8Array(await (await get(path)).arrayBuffer()) }],
    });
    model.session = await session("model.onnx", "model.safetensors");
    model.finder = model.screening.lungs ? await session("lungs.onnx", "lungs.safetensors") : null;
    return model;
  }

  /** The outline (side, side) and box of the lungs in a picture; a box of null where there are none. */
  async lungs(picture) {
    const rules = this.screening.lungs;
    const input = new this.ort.Tensor("float32", lungInput(picture, rules), [1, 1, rules.side, rules.side]);
    const { outlines: { data } } = await this.finder.run({ pictures: input });
    return { outline: data, box: boxOf(data, rules) };
  }

  /** Judge a grey picture: {refused, score} or {probability, score, heat: {data, width, height}}. */
  async judge(picture, limits) {
    if (isBlank(picture, limits)) return { refused: new Refused("reason_blank") };
    const rules = this.screening.lungs, found = this.finder && (await this.lungs(picture));
    if (found && !found.box) return { refused: new Refused("reason_no_lung") };
    const isCut = found && this.screening.view === "lungs";
    const view = isCut ? lungView(picture, found.outline, found.box, rules) : picture;
    const shape = [1, ...this.config.pretrained_cfg.input_size];
    const input = new this.ort.Tensor("float32", pixels(view, this.config), shape);
    const { logits, heatmap, features } = await this.session.run({ [this.session.inputNames[0]]: input });
    const score = this.guard ? outOfDistribution(features.data, this.guard, this.screening.guard.limits) : 0;
    if (score > 1) return { refused: new Refused("reason_foreign"), score };
    const probability = 1 / (1 + Math.exp(logits.data[0] - logits.data[1]));
    const [height, width] = heatmap.dims.slice(-2), heat = { data: heatmap.data, width, height };
    return { probability, score, heat: isCut ? placed(heat, found.box, rules) : heat };
  }
}
