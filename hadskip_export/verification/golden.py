"""Golden inputs and what the reference made of them, kept in the bundle so that any machine can check itself.

The inputs are words drawn from the tokenizer's vocabulary: a deployable file holds none of the user's sentences,
unless the user names a file of them.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text, Tokenizer, pad
from hadskip_export.support.errors import BundleError, DataError
from hadskip_export.verification.parity import count_flips, largest_difference, ways_to_run
from hadskip_export.verification.references import Reference, thresholds_of

COUNT = 64
ARRAYS = ("thresholds", "margins", "routes", "logits")
INPUTS, OUTPUTS = "golden/inputs.jsonl", "golden/outputs.npz"


@dataclass(frozen=True)
class Golden:
    """Texts, and what the reference made of them at these thresholds, float32 [L]: margins float32 [n, L], routes bool
    [n, L] and logits float32 [n, classes], of which `labels` are the names. (The bundle's own thresholds may change;
    see `add_points`.)"""

    texts: list[Text]
    thresholds: np.ndarray
    margins: np.ndarray
    routes: np.ndarray
    logits: np.ndarray
    labels: tuple[str, ...]


def vocabulary_texts(vocabulary: list[str], seed: int = 0) -> list[Text]:
    """Texts of 1 to 100 random words, every eighth one a pair, and one without a word."""
    words = [word for word in vocabulary if word.isalpha()] or vocabulary
    random = np.random.default_rng(seed)
    texts: list[Text] = [""]
    for number in range(1, COUNT):
        text = " ".join(random.choice(words, size=int(random.integers(1, 101))))
        texts.append((text, str(random.choice(words))) if number % 8 == 0 else text)
    return texts


def read_texts(file: Path) -> list[Text]:
    """The user's own golden inputs, one text a line.

    Raises:
        DataError: missing, unreadable or empty.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--golden {file}: cannot be read ({error})") from error
    if not lines:
        raise DataError(f"--golden {file}: no text in it")
    return list(lines)


def write_golden(bundle: Bundle, texts: list[Text], tokenizer: Tokenizer, reference: Reference) -> None:
    """Writes the golden inputs and the reference's answers into a bundle being built."""
    folder, thresholds = bundle.path, thresholds_of(bundle.manifest)
    found = [reference.trace(pad([encoded]), thresholds) for encoded in tokenizer.encode(texts)]
    (folder / INPUTS).parent.mkdir()
    (folder / INPUTS).write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    np.savez(
        folder / OUTPUTS,
        thresholds=thresholds,
        margins=np.stack([trace.margins for trace in found]),
        routes=np.stack([trace.route for trace in found]),
        logits=np.concatenate([trace.logits for trace in found]),
        labels=np.array(bundle.manifest.model.labels),
    )


def read_golden(bundle: Bundle) -> Golden:
    """
    Raises:
        BundleError: the bundle's golden files cannot be read.
    """
    try:
        lines = bundle.file(INPUTS).read_text(encoding="utf-8").splitlines()
        texts = [text if isinstance(text, str) else tuple(text) for text in map(json.loads, lines)]
        with np.load(bundle.file(OUTPUTS), allow_pickle=False) as arrays:
            labels = arrays["labels"].tolist() if "labels" in arrays else bundle.manifest.model.labels
            thresholds, margins, routes, logits = (arrays[name] for name in ARRAYS)
            golden = Golden(texts, thresholds, margins, routes, logits, tuple(labels))
        if not len(texts) == len(golden.margins) == len(golden.routes) == len(golden.logits) > 0:
            raise ValueError(f"{len(texts)} texts, {len(golden.logits)} answers")
        return golden
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{bundle.path}: its golden files cannot be read ({error}); build it again") from error


@dataclass(frozen=True)
class GoldenCheck:
    """An engine on this machine against the answers recorded when the bundle was built (by PyTorch)."""

    texts: int
    flips: int
    logits_largest: float
    logits_tolerance: float
    labels_agree: bool

    @property
    def passed(self) -> bool:
        return self.labels_agree and self.flips == 0 and self.logits_largest <= self.logits_tolerance


def check_golden(predictor: Predictor, golden: Golden) -> GoldenCheck:
    """Runs the golden inputs through the engine that `predictor` has loaded, in both ways that it has."""
    tolerance = predictor.engine_info.tolerance
    encoded = predictor.tokenizer.encode(golden.texts)
    flips, largest = [], []
    for batch_size in ways_to_run(predictor.engine_info).values():
        logits, routes = predictor.run_as_built(encoded, batch_size, golden.thresholds.tolist())
        flips.append(
            count_flips(golden.margins - golden.thresholds, golden.routes, routes, np.array(tolerance.margins))
        )
        same = (routes == golden.routes).all(axis=1)
        largest.append(largest_difference(logits[same], golden.logits[same]))
    farthest = float(np.max(largest))  # NaN stays NaN
    return GoldenCheck(
        len(golden.texts), max(flips), farthest, tolerance.logits, labels_agree=golden.labels == predictor.labels
    )
