"""Does Node answer as the Predictor does? `python check.py BUNDLE`; the bundle gets a whole model if it has none."""

import json
import subprocess
import sys
from pathlib import Path

from hadskip_export import build
from hadskip_export.runtime import Predictor
from hadskip_export.verification.golden import read_golden

bundle = Path(sys.argv[1]).resolve()
if not (bundle / "model" / "model.onnx").is_file():
    build(bundle, engine="ort", cut="whole")
with Predictor.load(bundle, engine="ort-fp32-whole") as predictor:
    golden = [text for text in read_golden(predictor.bundle).texts if isinstance(text, str)]
    texts = [
        "A gripping film!",
        "It's dull, naïve and 90 minutes too long.",
        "東京 film",
        " ".join(["long"] * 600),
        *golden,
    ]
    expected = predictor(texts)
command = ["node", str(Path(__file__).with_name("classify.mjs")), str(bundle), *texts]
lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
worst = 0.0
for text, line, ours in zip(texts, lines, expected, strict=True):
    theirs = json.loads(line)
    far = max(abs(theirs["probabilities"][label] - value) for label, value in ours.probabilities.items())
    worst = max(worst, far)
    same = (theirs["label"], tuple(theirs["layers"]), theirs["truncated"]) == (ours.label, ours.layers, ours.truncated)
    if not same or far > 1e-4:
        sys.exit(f"{text[:60]!r}: Node says {line}, the Predictor {ours}")
print(f"{len(texts)} texts: Node answers as the Predictor does, probabilities within {worst:.1e}")
