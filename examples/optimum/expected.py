"""Writes what `check.py` expects: `python expected.py BUNDLE FILE`, with this package."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from hadskip_export import build
from hadskip_export.runtime import Predictor
from hadskip_export.verification.golden import read_golden

bundle = Path(sys.argv[1])
if not (bundle / "model" / "model.onnx").is_file():
    build(bundle, engine="ort", cut="whole")
with Predictor.load(bundle, engine="ort-fp32-whole") as predictor:
    texts = [text for text in read_golden(predictor.bundle).texts if isinstance(text, str) and text]
    texts += ["A gripping film!", "It's dull, naïve and 90 minutes too long."]
    answers = predictor(texts)
lines = [json.dumps({"text": text, **asdict(answer)}) for text, answer in zip(texts, answers, strict=True)]
Path(sys.argv[2]).write_text("\n".join(lines) + "\n")
