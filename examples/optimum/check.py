"""Does a bundle serve without us? `python check.py BUNDLE EXPECTED`, in an environment that has optimum-onnx and not
this package: its `ORTModelForSequenceClassification` reads BUNDLE/model as it reads any exported model.

EXPECTED: JSON lines as `hadskip-export predict` prints them for the texts below, in their order, each with its `text`.
"""

import json
import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer

folder = Path(sys.argv[1]) / "model"
expected = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = ORTModelForSequenceClassification.from_pretrained(folder, file_name="model.onnx")
texts = [row["text"] for row in expected]
inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
probabilities = model(**inputs).logits
worst = 0.0
for row, logits in zip(expected, probabilities, strict=True):
    shifted = [2.718281828459045 ** float(logit - max(logits)) for logit in logits]
    theirs = {model.config.id2label[index]: value / sum(shifted) for index, value in enumerate(shifted)}
    worst = max(worst, *(abs(theirs[label] - value) for label, value in row["probabilities"].items()))
    if max(theirs, key=theirs.get) != row["label"] or worst > 1e-4:
        sys.exit(f"{row['text'][:60]!r}: optimum says {theirs}, the Predictor {row['probabilities']}")
print(f"{len(texts)} texts: optimum-onnx answers as the Predictor does, probabilities within {worst:.1e}")
