// Classifies texts with a bundle's whole model: node classify.mjs BUNDLE TEXT [TEXT ...]
// Any bundle has one after `hadskip-export build BUNDLE --engine ort --cut whole`. It reads the folder BUNDLE/model as
// other programs do, and prints a JSON line per text, as `hadskip-export predict` does.

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

const [bundle, ...texts] = process.argv.slice(2);
if (!bundle || !texts.length) {
  console.error("usage: node classify.mjs BUNDLE TEXT [TEXT ...]");
  process.exit(2);
}

const folder = join(bundle, "model");
if (!existsSync(join(folder, "model.onnx"))) {
  console.error(`${bundle}: has no whole model; add it with hadskip-export build ${bundle} --engine ort --cut whole`);
  process.exit(2);
}

const read = async (name) => JSON.parse(await readFile(join(folder, name), "utf8"));
const { id2label } = await read("config.json");
const settings = await read("tokenizer_config.json");
const tokenizer = new Tokenizer(await read("tokenizer.json"), settings);
const session = await ort.InferenceSession.create(join(folder, "model.onnx"), { logSeverityLevel: 3 });
const labels = Object.keys(id2label).map((index) => id2label[index]);

// One call for all texts: the model takes batches, and skips each text's layers by itself.
const encoded = texts.map((text) => tokenizer.encode(text).ids);
const truncated = encoded.map((ids) => ids.length > settings.model_max_length);
const kept = encoded.map((ids, row) =>
  truncated[row] ? [...ids.slice(0, settings.model_max_length - 1), ids.at(-1)] : ids, // the last token is [SEP]
);
const length = Math.max(...kept.map((ids) => ids.length));
const int64 = (value) =>
  new ort.Tensor(
    "int64",
    BigInt64Array.from(kept.flatMap((ids) => Array.from({ length }, (_, token) => BigInt(value(ids, token))))),
    [kept.length, length],
  );
const { logits, layers_run } = await session.run({
  input_ids: int64((ids, token) => ids[token] ?? 0),
  attention_mask: int64((ids, token) => (token < ids.length ? 1 : 0)),
  token_type_ids: int64(() => 0),
  // gate_thresholds: new ort.Tensor("float32", [...], [1, layers]) in place of the bundle's default operating point
  // max_layers: new ort.Tensor("int64", [4n], [1]) for at most four layers a text
});

const row = (tensor, index) => [...tensor.data].slice(index * tensor.dims[1], (index + 1) * tensor.dims[1]);
texts.forEach((_, index) => {
  const scores = row(logits, index);
  const exponentials = scores.map((logit) => Math.exp(logit - Math.max(...scores)));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  const probabilities = Object.fromEntries(labels.map((label, one) => [label, exponentials[one] / total]));
  const label = labels[scores.indexOf(Math.max(...scores))];
  const layers = row(layers_run, index).flatMap((ran, layer) => (ran ? [layer + 1] : []));
  console.log(JSON.stringify({ label, probabilities, layers, truncated: truncated[index] }));
});
