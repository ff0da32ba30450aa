// transformers.js on a web folder: prints [[{label, score}, ...], ...] as JSON, a list for each picture.
// node classify.mjs FOLDER DTYPE PICTURE...
import path from "node:path";
import { env, pipeline } from "@huggingface/transformers";

const [folder, dtype, ...pictures] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const classify = await pipeline("image-classification", path.basename(folder), { dtype, device: "cpu" });
const found = [];
for (const picture of pictures) found.push(await classify(picture, { top_k: 2 }));
console.log(JSON.stringify(found));
