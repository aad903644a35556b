"""Golden inputs and what the reference made of them, kept in the bundle so that any machine can check itself.

The inputs are words drawn from the tokenizer's vocabulary: a deployable file holds none of the user's sentences,
unless the user names a file of them.
"""

import io
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text, Tokenizer, pad
from hadskip_export.support.errors import BundleError, DataError, first_line
from hadskip_export.support.reading import read_at_most
from hadskip_export.verification.parity import apart, count_flips, largest_difference, ways_to_run
from hadskip_export.verification.references import Reference, thresholds_of

COUNT = 64
WORD_STARTS = "\u0120\u2581"  # what byte-level and sentence-piece vocabularies write before a word
INPUTS, OUTPUTS = "golden/inputs.jsonl", "golden/outputs.npz"
MOST_OWN_BYTES = 64 << 20  # of the user's golden inputs
MOST_BYTES = 4 * MOST_OWN_BYTES  # of either file in a bundle; JSON may take six bytes for two
MOST_OVERHEAD = 1 << 16  # bytes of an archive that are no numbers


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
    plain = {word.lstrip(WORD_STARTS) for word in vocabulary}
    words = sorted(word for word in plain if word.isalpha()) or vocabulary
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
        content = read_at_most(file, MOST_OWN_BYTES).decode("utf-8-sig")
        lines = [line.removesuffix("\n") for line in io.StringIO(content, newline=None) if line.strip()]
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
        BundleError: the bundle's golden files are not listed, cannot be read, or do not fit each other or the model.
    """
    try:
        for name in (INPUTS, OUTPUTS):
            if name not in bundle.manifest.files:
                raise ValueError(f"{name} is not listed in the manifest")
        texts = [_text(line) for line in read_at_most(bundle.file(INPUTS), MOST_BYTES).splitlines()]
        if not texts:
            raise ValueError("no texts")
        return _read_outputs(bundle, texts)
    except Exception as error:  # zipfile and numpy raise what they meet in a file that is none of theirs
        message = f"{bundle.path}: its golden files cannot be read ({first_line(error)}); build it again"
        raise BundleError(message) from error


def _text(line: bytes) -> Text:
    found = json.loads(line)
    if isinstance(found, str):
        return found
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(part, str) for part in found):
        raise ValueError("a line that is neither a text nor a pair of texts")
    return found[0], found[1]


def _read_outputs(bundle: Bundle, texts: list[Text]) -> Golden:
    """What the archive's size and an array's header say is held against what it should be, before it is read."""
    num_layers, labels = bundle.manifest.model.layers, bundle.manifest.model.labels
    numbers = len(texts) * (num_layers + len(labels)) + len(labels) * max(map(len, labels))
    content = read_at_most(bundle.file(OUTPUTS), min(MOST_BYTES, MOST_OVERHEAD + 8 * numbers))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("compressed arrays, which this package does not write")
        rows, there = len(texts), "labels.npy" in archive.namelist()  # older bundles have none
        names = tuple(_array(archive, "labels", "U", (None,)).tolist()) if there else labels
        arrays = {
            "thresholds": _array(archive, "thresholds", "f4", (num_layers,)),
            "margins": _array(archive, "margins", "f4", (rows, num_layers)),
            "routes": _array(archive, "routes", "b1", (rows, num_layers)),
            "logits": _array(archive, "logits", "f4", (rows, len(names))),
        }
    return Golden(texts, **arrays, labels=names)


def _array(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array of the archive. `shape`: what it must be, None where any number of elements will do."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is of another version than this package writes")
        found, _, kind = np.lib.format.read_array_header_1_0(file)
        bytes_there = member.file_size - file.tell()
    fits = len(found) == len(shape) and all(want in (None, have) for want, have in zip(shape, found, strict=True))
    if not fits or not kind.itemsize or (kind.kind != "U" if dtype == "U" else kind != np.dtype(dtype)):
        raise ValueError(f"{name} is {kind} {found}, expected {dtype} {shape}")
    if math.prod(found) * kind.itemsize != bytes_there:
        raise ValueError(f"{name} has {bytes_there} bytes, which its header does not say")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


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
    flips, largest, manifest = [], [], predictor.bundle.manifest
    margins = apart(manifest, golden.margins, golden.thresholds)
    for batch_size in ways_to_run(predictor.engine_info).values():
        logits, routes = predictor.run_as_built(encoded, batch_size, golden.thresholds.tolist())
        flips.append(count_flips(margins, golden.routes, routes, np.array(tolerance.margins)))
        same = (routes == golden.routes).all(axis=1)
        largest.append(largest_difference(logits[same], golden.logits[same]))
    farthest = float(np.max(largest))  # NaN stays NaN
    return GoldenCheck(
        len(golden.texts), max(flips), farthest, tolerance.logits, labels_agree=golden.labels == predictor.labels
    )
