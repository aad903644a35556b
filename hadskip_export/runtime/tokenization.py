"""Text to padded ids. Training and serving use this same file, so they see the same tokens."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from tokenizers import Tokenizer as BackendTokenizer

from hadskip_export.data.text import TOKENIZER_CONFIG, Text
from hadskip_export.runtime.manifest import MODEL_INPUTS
from hadskip_export.support.errors import BundleError, DataError, first_line
from hadskip_export.support.reading import read_at_most
from hadskip_export.support.words import counted

MOST_BYTES = 64 << 20  # of a tokenizer file; those of 250,000 tokens have 17 MB
MOST_SETTINGS = 16 << 20  # of the file beside it
PROBES = ("", "a \U00013000")  # no word, and one that hardly a vocabulary has: an Egyptian hieroglyph
Ids = Mapping[str, Sequence[int] | np.ndarray]  # what a tokenizer of `transformers` gives for one input
Input = Text | Ids
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Encoded:
    """One input as ids, not padded: int64 [s] each. `truncated`: it was longer than the model's maximum length."""

    ids: np.ndarray
    type_ids: np.ndarray
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Padded inputs, int64 [b, s] each; `attention_mask` is 1 on real tokens."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


CHARACTERS_PER_TOKEN = 64  # of the most tokens an input may have: what is read of a text before it is tokenised


class Tokenizer:
    """A fast tokenizer file with its settings made once, so that many threads may share it.

    Args:
        file: `tokenizer.json`. What `tokenizer_config.json` beside it says counts, too: which side is cut, and whether
            the model is told its segments.
        max_length: tokens an input is cut to, special tokens included.
        vocab_size, type_vocab_size: tokens and segments that the model has embeddings of. The file does not tell: it
            may have more tokens, or fewer.

    Raises:
        BundleError: a file that cannot be read, or says what this package does not understand; a tokenizer that fails
            on any text it does not know, for want of a special token perhaps.
    """

    def __init__(self, file: Path, max_length: int, vocab_size: int | None = None, type_vocab_size: int = 2):
        self._file = file
        with _failures_named(f"{file}: cannot be read as a tokenizer"):
            self._backend = BackendTokenizer.from_buffer(read_at_most(file, MOST_BYTES))
        self.max_length, self._vocab_size, self._type_vocab_size = max_length, vocab_size, type_vocab_size
        settings = _settings(file.with_name(TOKENIZER_CONFIG))
        self._gives_segments = "token_type_ids" in settings["model_input_names"]
        self._keeps_end = settings["truncation_side"] == "left"
        with _failures_named(f"{file}: no tokenizer of up to {max_length} tokens"):
            self._backend.no_padding()
            self._backend.enable_truncation(max_length, strategy="longest_first", direction=settings["truncation_side"])
            for text in PROBES:
                if (length := len(self._backend.encode(text))) > max_length:
                    raise ValueError(f"it gives {length} to {text!r}")

    @property
    def truncation_side(self) -> Literal["left", "right"]:
        """Where a text that is too long is cut."""
        return "left" if self._keeps_end else "right"

    def vocabulary(self) -> list[str]:
        """Every token, sorted."""
        return sorted(self._backend.get_vocab())

    def takes(self, text: Text) -> bool:
        """Whether `encode` does."""
        try:
            self._from_text(0, text)
        except DataError:
            return False
        return True

    def part_read(self, text: Text) -> tuple[str, ...]:
        """A text, or the two of a pair, as far as they are read: five million characters would take half a minute."""
        most = CHARACTERS_PER_TOKEN * self.max_length
        return tuple(part[-most:] if self._keeps_end else part[:most] for part in _parts(text))

    def encode(self, inputs: Iterable[Input]) -> list[Encoded]:
        """One by one on the calling thread: the library's batch call would use a thread pool of its own.

        Args:
            inputs: whatever gives, one after the other, texts, pairs of texts, or inputs that are tokenised already:
                mappings with `input_ids` and, where they matter, `token_type_ids` and `attention_mask`, special tokens
                included; padding at either end is left out.

        Raises:
            DataError: an input is none of these, is not valid Unicode, or has tokens or segments that the model has no
                embeddings of; inputs in no order or in a table.
            BundleError: the tokenizer fails on a text.
        """
        return [
            self._from_ids(index, item) if isinstance(item, Mapping) else self._from_text(index, item)
            for index, item in enumerate(one_by_one(inputs))
        ]

    def _from_text(self, index: int, text: Text) -> Encoded:
        if not isinstance(text, str) and not _is_pair(text):
            raise DataError(f"input {index + 1}: {_why_no_text(text)}")
        first, *second = read = self.part_read(text)
        with _failures_named(f"{self._file}: this tokenizer fails on input {index + 1}"):
            try:
                encoding = self._backend.encode(first, second[0] if second else None)
            except (UnicodeEncodeError, TypeError) as error:  # a lone surrogate: its bindings call that "not a str"
                raise DataError(
                    f"input {index + 1}: a text that is not valid Unicode; it holds half of a character"
                ) from error
        if len(encoding) > self.max_length:  # what it adds to a pair is more than it leaves room for
            raise BundleError(
                f"{self._file}: this tokenizer gives input {index + 1} {len(encoding)} tokens, and the model takes"
                f" {self.max_length}; make its file anew"
            )
        if not len(encoding):
            raise DataError(f"input {index + 1}: a text of no tokens; this tokenizer adds none of its own")
        largest = max(encoding.ids)
        if self._vocab_size is not None and largest >= self._vocab_size:
            token = encoding.tokens[encoding.ids.index(largest)]
            raise DataError(
                f"input {index + 1}: the token {token!r} has the id {largest}, and the model has embeddings of"
                f" {self._vocab_size} tokens; leave it out, or resize and train the model's embeddings"
            )
        type_ids = encoding.type_ids if self._gives_segments else [0] * len(encoding)
        if not self._knows(max(type_ids)):
            raise DataError(f"input {index + 1}: segment {max(type_ids)}; {self._segments}")
        truncated = bool(encoding.overflowing) or read != _parts(text)
        return Encoded(np.array(encoding.ids, np.int64), np.array(type_ids, np.int64), truncated)

    def _knows(self, segment: int) -> bool:
        """A model that has none is not told any, whatever its tokenizer says."""
        return segment < self._type_vocab_size or self._type_vocab_size == 0

    @property
    def _segments(self) -> str:
        if self._type_vocab_size == 1:
            return "the model has embeddings of one segment, 0, and takes single texts, no pairs"
        return f"the model has embeddings of segments 0 to {self._type_vocab_size - 1}"

    def _from_ids(self, index: int, given: Ids) -> Encoded:
        try:
            ids = np.asarray(given["input_ids"])
            mask = np.asarray(given.get("attention_mask", np.ones_like(ids)))
            type_ids = np.asarray(given.get("token_type_ids", np.zeros_like(ids)))
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"input {index + 1}: tokenised, but without input_ids that are a list of numbers"
            ) from error
        if unknown := next((name for name in given if name not in MODEL_INPUTS), None):
            raise DataError(
                f"input {index + 1}: tokenised, with {unknown!r}, which no model here takes; leave all out but"
                f" {', '.join(MODEL_INPUTS)}"
            )
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.shape == mask.shape == type_ids.shape:
            raise DataError(
                f"input {index + 1}: expected input_ids, token_type_ids and attention_mask of one length, one list of"
                " whole numbers each; give a list of such inputs to ask for several"
            )
        if not np.isin(mask, (0, 1)).all():
            raise DataError(f"input {index + 1}: attention_mask other than 0 and 1")
        (real,) = np.nonzero(mask)  # padding is made anew, for the batch at hand
        if len(real) and real[-1] - real[0] >= len(real):
            raise DataError(
                f"input {index + 1}: attention_mask with a 0 between ones; padding is at an end, and no token is hidden"
            )
        ids, type_ids = ids[real], type_ids[real]
        if not 1 <= len(ids) <= self.max_length:
            raise DataError(f"input {index + 1}: {counted(len(ids), 'token')}; the model takes 1 to {self.max_length}")
        if ids.min() < 0 or (self._vocab_size is not None and ids.max() >= self._vocab_size):
            raise DataError(f"input {index + 1}: an id that is not in the vocabulary of {self._vocab_size}")
        if type_ids.min() < 0 or not self._knows(type_ids.max()):
            raise DataError(f"input {index + 1}: token_type_ids that cannot be; {self._segments}")
        return Encoded(ids.astype(np.int64), type_ids.astype(np.int64), truncated=False)


def one_by_one(inputs: Iterable[T]) -> Iterable[T]:
    """
    Raises:
        DataError: nothing that has inputs in an order.
    """
    if isinstance(inputs, list):
        return inputs
    kind = type(inputs).__name__
    if isinstance(inputs, set | frozenset):
        raise DataError(f"a {kind} of texts has no order, and answers come in that of the inputs; give a list")
    if getattr(inputs, "ndim", 1) != 1:
        raise DataError(f"expected texts one after the other, got {kind} of other dimensions; give one column of it")
    try:
        if not isinstance(inputs, str | bytes | bytearray | Mapping):
            return iter(inputs)
    except TypeError:
        pass
    raise DataError(f"expected a text, a pair of texts (a tuple) or a list of these, got {kind}")


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _is_pair(text: object) -> bool:
    return isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text)


def _why_no_text(text: object) -> str:
    kind = type(text).__name__
    if not isinstance(text, tuple):
        return f"expected a text or a pair of texts, got {kind}"
    parts = ", ".join(type(part).__name__ for part in text[:3]) + (", ..." if len(text) > 3 else "")
    return f"a tuple is one pair of texts, (str, str), got ({parts}); give several texts as a list"


@contextmanager
def _failures_named(what: str) -> Iterator[None]:
    """
    Raises:
        BundleError: the Rust library fails: with a plain Exception, or with a panic, which is none.
    """
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise BundleError(f"{what} ({first_line(error)}); make its file anew") from error


def _settings(file: Path) -> dict[str, Any]:
    """Of tokenizer_config.json, what the tokenizer's own file does not have; `transformers`' defaults where it is not
    said."""
    settings = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"], "truncation_side": "right"}
    try:
        settings |= dict(json.loads(read_at_most(file, MOST_SETTINGS)).items()) if file.exists() else {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{file}: cannot be read ({first_line(error)})") from error
    if settings["truncation_side"] not in ("left", "right") or not isinstance(settings["model_input_names"], list):
        raise BundleError(f"{file}: truncation_side or model_input_names is not what transformers writes")
    return settings


def share_batches(lengths: Sequence[int], most: int, most_padding: int) -> list[list[int]]:
    """Which inputs are computed together: those of similar length, so that short ones do not pay for long ones.

    Args:
        lengths: of the inputs, in tokens.
        most: inputs in a batch.
        most_padding: tokens in a batch.

    Returns:
        positions of inputs, shortest first, by batch.
    """
    batches: list[list[int]] = []
    padding = 0
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches:
            *_, shorter = batch = batches[-1]
            padding += len(batch) * (lengths[position] - lengths[shorter])
            if len(batch) < most and padding <= most_padding:
                batch.append(position)
                continue
        batches.append([position])
        padding = 0
    return batches


def pad(inputs: Sequence[Encoded]) -> Batch:
    """Pads to the longest of `inputs`. The padding id is 0 whatever the vocabulary: masked positions are never read."""
    shape = (len(inputs), max(len(encoded) for encoded in inputs))
    batch = Batch(*(np.zeros(shape, np.int64) for _ in range(3)))
    for row, encoded in enumerate(inputs):
        length = len(encoded)
        batch.input_ids[row, :length] = encoded.ids
        batch.attention_mask[row, :length] = 1
        batch.token_type_ids[row, :length] = encoded.type_ids
    return batch
