// The static page's own code in Node, without a browser: a JSON line of answer for each JSON line of question; arrays in
// base64.
// node page.mjs JUDGE [RUNTIME] < questions; JUDGE is judge.js under a name that ends in .mjs, RUNTIME the folder of
// onnxruntime-web.
// A question names what is asked and gives its picture as {data: base64, width, height}; see tests/release/test_page_code.py.
import { readFile } from "node:fs/promises";
import path from "node:path";
import readline from "node:readline";
import { pathToFileURL } from "node:url";

const [judgeFile, runtime] = process.argv.slice(2);
const page = await import(pathToFileURL(judgeFile));
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const picture = ({ data, width, height }) => ({ data: bytes(data), width, height });
const floats = (values) => Float32Array.from(values);
const encoded = ({ buffer, byteOffset, byteLength }) => Buffer.from(buffer, byteOffset, byteLength).toString("base64");
const models = {};

async function model(folder) {
  if (models[folder]) return models[folder];
  const ort = await import(pathToFileURL(path.join(runtime, "dist", "ort.node.min.mjs")));
  ort.env.wasm.numThreads = 1;
  globalThis.fetch = async (name) => new Response(await readFile(name));
  return (models[folder] = await page.Model.open(ort, folder));
}

const answers = {
  reduce: ({ picture: given, across, down }) => encoded(page.reduce(picture(given), across, down).data),
  input: ({ picture: given, rules }) => encoded(page.lungInput(picture(given), rules)),
  box: ({ outline, rules }) => page.boxOf(floats(outline), rules),
  view: ({ picture: given, outline, box, rules }) => {
    const { data, width, height } = page.lungView(picture(given), floats(outline), box, rules);
    return { data: encoded(data), width, height };
  },
  placed: ({ heat, box, rules }) => encoded(page.placed({ ...heat, data: floats(heat.data) }, box, rules).data),
  judge: async ({ picture: given, folder, limits }) => {
    const { refused, probability, heat } = await (await model(folder)).judge(picture(given), limits);
    return { refused: refused?.message ?? null, probability: probability ?? null, heat: heat ? encoded(heat.data) : null };
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const question = JSON.parse(line);
  console.log(JSON.stringify(await answers[question.asked](question)));
}
