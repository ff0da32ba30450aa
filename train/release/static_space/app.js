// The page: what the visitor chooses, and the answer in words.
import * as ort from "./runtime/ort.wasm.min.mjs";
import { canvasIsTrue, decide, Model, readImage, Refused } from "./judge.js";

ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // several threads need headers that free static hosting does not send
ort.env.logLevel = "error";

const $ = (id) => document.getElementById(id);
const space = await (await fetch("space.json")).json();
const texts = Object.fromEntries(await Promise.all(space.languages.map(async (code) =>
  [code, { ...(await (await fetch(`languages/${code}.json`)).json()), ...space.texts.en, ...space.texts[code] }])));
const models = {};
const chosen = { file: null, kind: space.models[0].modality, point: null };
let language = pick(), turn = 0;

// --- words ---------------------------------------------------------------------------------------

function pick() {
  const wished = [localStorage.getItem("language"), ...navigator.languages].filter(Boolean);
  for (const wish of wished) {
    const found = space.languages.find((code) => code === wish) ??
      space.languages.find((code) => code.split("-")[0] === wish.split("-")[0]);
    if (found) return found;
  }
  return "en";
}

function say(key, values = {}) {
  const text = texts[language][key] ?? texts.en[key];
  if (text === undefined) throw new Error(`no text ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function element(tag, content = "", attributes = {}) {
  const made = document.createElement(tag);
  made.append(...[content].flat());
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const percent = (share) => (share > 0 && share < 1 ? Math.min(99, Math.max(1, Math.round(share * 100))) : Math.round(share * 100));

function speak() {
  document.documentElement.lang = language;
  document.documentElement.dir = language === "ar" ? "rtl" : "ltr";
  for (const place of document.querySelectorAll("[data-say]")) place.textContent = say(place.dataset.say);
  radios("kinds", "kind", space.models.map(({ modality }) => [modality, say(modality)]));
  const points = Object.keys(models[chosen.kind]?.screening.operating_points ?? {});
  if (!points.includes(chosen.point)) chosen.point = points[0] ?? null;
  radios("points", "point", points.map((name) => [name, texts.en[`point_${name}`] ? say(`point_${name}`) : name]));
  const source = space.models.find(({ modality }) => modality === chosen.kind);
  $("model").textContent = `${say("model")}: ${source.source} (${source.weights})`;
}

function radios(place, key, options) {
  const title = element("legend", say(key === "kind" ? "kind" : "point"));
  const made = options.map(([value, words]) => {
    const input = element("input", "", { type: "radio", name: key, value });
    input.checked = chosen[key] === value;
    input.addEventListener("change", () => { chosen[key] = value; show(); });
    return element("label", [input, words]);
  });
  $(place).replaceChildren(title, ...made);
  $(place).hidden = options.length === 0;
}

function state(key, words = say(key)) {
  $("state").dataset.state = key;
  $("state").textContent = words;
}

// --- the answer ----------------------------------------------------------------------------------

async function model(kind) {
  models[kind] ??= await Model.open(ort, `models/${kind}/`);
  return models[kind];
}

async function show() {
  const mine = ++turn, { file, kind } = chosen;
  speak();
  if (!file) return $("answer").replaceChildren(element("p", say("waiting"), { class: "message" }));
  $("answer").replaceChildren(element("p", say("working"), { class: "message" }));
  $("answer").setAttribute("aria-busy", "true");
  delete $("answer").dataset.decision;
  let picture = null, found;
  try {
    if (!canvasIsTrue()) throw new Refused("canvas_changed");
    const opened = await model(kind);
    picture = await readImage(file, space.limits);
    found = await opened.judge(picture, space.limits);
  } catch (problem) {
    if (!(problem instanceof Refused)) console.error(problem);
    found = { refused: problem instanceof Refused ? problem : new Refused("failed_here") };
  }
  if (mine !== turn) return; // a later choice has its own answer
  speak();
  const point = models[kind]?.screening.operating_points[chosen.point];
  const decision = found.refused ? "refused" : decide(found.probability, point);
  $("answer").replaceChildren(article(decision, found, point, picture, kind));
  Object.assign($("answer").dataset, { decision, probability: found.probability ?? "", score: found.score ?? "" });
  $("answer").removeAttribute("aria-busy");
}

function article(decision, found, point, picture, kind) {
  const title = element("h2", [element("span", "", { class: "sign", "aria-hidden": "true" }), say(decision)]);
  const verdict = element("div", [title, element("p", say(`${decision}_next`))], { class: "verdict" });
  const made = element("article", verdict, { class: decision });
  if (found.refused) {
    verdict.append(element("p", say(found.refused.message, { kinds: say(`${kind}s`), ...found.refused.values })));
  } else {
    verdict.append(element("p", `${say("probability")}: ${percent(found.probability)} %`, { class: "probability" }),
      bar(found.probability, point.threshold), element("p", figures(point, kind)));
  }
  if (picture) made.append(view(picture, found.heat));
  if (!found.refused) made.append(why(decision, point, kind));
  const limits = ["warning", ...(found.refused ? [] : ["probability_note"]), "limit_sources", "limit_disease", "limit_trial"];
  made.append(element("section", [element("h3", say("limits")), element("ul", limits.map((key) => element("li", say(key))))]));
  return made;
}

/** The probability as a bar, with a mark at the threshold. */
function bar(probability, threshold) {
  const label = `${say("probability")} ${percent(probability)} %`;
  const made = element("div", [element("meter", "", { min: 0, max: 1, value: probability, "aria-label": label }),
    element("span", "", { class: "tick", "aria-hidden": "true" })], { class: "bar" });
  made.lastChild.style.insetInlineStart = `${100 * threshold}%`;
  return made;
}

/** An operating point in words: from the test split, or else from the split on which it was chosen. */
function figures(point, kind) {
  const tested = models[kind].screening.tested?.[chosen.point];
  const { sensitivity, specificity } = tested ?? point.validation ?? {};
  const name = texts.en[`point_${chosen.point}`] ? say(`point_${chosen.point}`) : chosen.point;
  if (!sensitivity || !specificity) return `${name}: ${say("figures_unknown")}`;
  return `${name}: ` + say(tested ? "figures" : "figures_tuned", {
    found: Math.floor(sensitivity.value * 100 + 1e-6), flagged: Math.ceil((1 - specificity.value) * 100 - 1e-6),
    n: sensitivity.n + specificity.n, kinds: say(`${kind}s`),
  });
}

function why(decision, point, kind) {
  const [low, high] = point.abstain ?? [point.threshold, point.threshold];
  const side = { positive: "above", negative: "below", inconclusive: "within" }[decision];
  const notes = [say("familiar", { kinds: say(`${kind}s`) }),
    say(side, { threshold: percent(point.threshold), low: percent(low), high: percent(high) })];
  return element("section", [element("h3", say("why")), element("ul", notes.map((note) => element("li", note)))]);
}

/** The picture as the model took it, the heat map over it, and what its colours mean. */
function view(picture, heat) {
  const layers = element("div", canvasOf(picture, (i, rgba, at) => rgba.fill(picture.data[i], at, at + 3)), { class: "layers" });
  layers.firstChild.setAttribute("role", "img");
  layers.firstChild.setAttribute("aria-label", say("picture"));
  const caption = element("figcaption", element("p", say(heat ? "heat_note" : "picture")));
  if (heat) {
    const overlay = canvasOf(picture, tint(picture, heat));
    overlay.setAttribute("aria-hidden", "true");
    const slider = element("input", "", { type: "range", min: 0, max: 100, value: 60 });
    const strength = () => { overlay.style.opacity = slider.value / 100; };
    slider.addEventListener("input", strength);
    strength();
    layers.append(overlay);
    caption.prepend(element("label", [say("heat"), slider]), scale(),
      element("div", ["heat_low", "heat_mid", "heat_high"].map((key) => element("span", say(key))), { class: "ends fine" }));
  }
  return element("figure", [layers, caption]);
}

/** A canvas whose pixels `paint(index, rgba, at)` colours. */
function canvasOf({ width, height }, paint) {
  const canvas = element("canvas", "", { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0, at = 0; i < width * height; i++, at += 4) {
    paint(i, image.data, at);
    image.data[at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Colours a grey level under evidence 0..1: orange for, blue against, by the constants of the package's overlay. */
function blend(rgba, at, level, evidence) {
  const strength = space.heat.opacity * Math.abs(2 * evidence - 1);
  const colour = evidence > 0.5 ? space.heat.for : space.heat.against;
  for (let c = 0; c < 3; c++) rgba[at + c] = Math.round((1 - strength) * level + strength * colour[c]);
}

function tint(picture, heat) {
  const row = (y) => Math.min(heat.height - 1, Math.max(0, y)) * heat.width;
  const column = (x) => Math.min(heat.width - 1, Math.max(0, x));
  return (i, rgba, pixel) => { // bilinear between the centres of the map's cells
    const x = (((i % picture.width) + 0.5) * heat.width) / picture.width - 0.5;
    const y = ((Math.floor(i / picture.width) + 0.5) * heat.height) / picture.height - 0.5;
    const left = Math.floor(x), top = Math.floor(y), dx = x - left, dy = y - top;
    const above = (1 - dx) * heat.data[row(top) + column(left)] + dx * heat.data[row(top) + column(left + 1)];
    const below = (1 - dx) * heat.data[row(top + 1) + column(left)] + dx * heat.data[row(top + 1) + column(left + 1)];
    blend(rgba, pixel, picture.data[i], (1 - dy) * above + dy * below);
  };
}

function scale() {
  const canvas = canvasOf({ width: 256, height: 1 }, (i, rgba, at) => blend(rgba, at, 128, i / 255));
  canvas.className = "scale";
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

// --- the visitor ---------------------------------------------------------------------------------

function take(file) {
  if (!file) return;
  chosen.file = file;
  show();
}

$("file").addEventListener("click", ({ target }) => { target.value = ""; }); // the same file may be chosen again
$("file").addEventListener("change", ({ target }) => take(target.files[0]));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
$("language").append(...space.languages.map((code) => {
  const option = element("option", new Intl.DisplayNames([code], { type: "language" }).of(code), { value: code });
  option.selected = code === language;
  return option;
}));
$("language").addEventListener("change", ({ target }) => {
  language = target.value;
  localStorage.setItem("language", language);
  state($("state").dataset.state);
  show();
});

speak();
state("loading");
await show();
try {
  await model(chosen.kind);
  await show();
  state("loaded");
  await navigator.serviceWorker?.register("worker.js");
  await navigator.serviceWorker?.ready;
  if (navigator.serviceWorker) state("offline");
} catch (problem) {
  console.error(problem);
  state(models[chosen.kind] ? "loaded" : "failed_here");
}
