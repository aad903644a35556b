// Classifies texts with a bundle's one-file graph: node classify.mjs BUNDLE TEXT [TEXT ...]
// A bundle has one after `hadskip-export build BUNDLE --graph`. A JSON line per text, as `hadskip-export predict` prints.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

const [bundle, ...texts] = process.argv.slice(2);
if (!bundle || !texts.length) {
  console.error("usage: node classify.mjs BUNDLE TEXT [TEXT ...]");
  process.exit(2);
}

const read = async (name) => JSON.parse(await readFile(join(bundle, name), "utf8"));
const { model, graph, tokenizer: tokenizerFile } = await read("manifest.json");
if (!graph) {
  console.error(`${bundle}: has no graph; add it with hadskip-export build ${bundle} --graph`);
  process.exit(2);
}

const tokenizer = new Tokenizer(await read(tokenizerFile), {});
const session = await ort.InferenceSession.create(join(bundle, graph), { logSeverityLevel: 3 });

const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);

for (const text of texts) {
  const { ids } = tokenizer.encode(text);
  const truncated = ids.length > model.max_length;
  if (truncated) ids.splice(model.max_length - 1, ids.length - model.max_length); // the last token stays: [SEP]
  const { logits, layers_run } = await session.run({
    input_ids: int64(ids),
    attention_mask: int64(ids.map(() => 1)),
    token_type_ids: int64(ids.map(() => 0)),
    // gate_threshold: new ort.Tensor("float32", [t], []) in place of the manifest's router.threshold; a higher t skips more
  });
  const exponentials = [...logits.data].map((logit) => Math.exp(logit - Math.max(...logits.data)));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  const probabilities = Object.fromEntries(model.labels.map((label, row) => [label, exponentials[row] / total]));
  const label = model.labels.reduce((best, one) => (probabilities[one] > probabilities[best] ? one : best));
  const layers = [...layers_run.data].flatMap((ran, index) => (ran ? [index + 1] : []));
  console.log(JSON.stringify({ label, probabilities, layers, truncated }));
}
