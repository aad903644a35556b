"""Text to padded ids. Training and serving use this same file, so they see the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as BackendTokenizer

from hadskip_export.errors import BundleError, DataError

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Encoded:
    """One input as ids, not padded. `truncated`: it was longer than the model's maximum length."""

    ids: list[int]
    type_ids: list[int]
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


class Tokenizer:
    """A fast tokenizer file with its settings made once, so that many threads may share it.

    Args:
        file: `tokenizer.json`.
        max_length: tokens an input is cut to, special tokens included.
    """

    def __init__(self, file: Path, max_length: int):
        try:
            self._backend = BackendTokenizer.from_file(str(file))
        except Exception as error:  # the Rust library raises plain Exception
            raise BundleError(f"{file}: cannot be read as a tokenizer ({error})") from error
        self._backend.no_padding()
        self._backend.enable_truncation(max_length, strategy="longest_first")

    def vocabulary(self) -> list[str]:
        """Every token, sorted."""
        return sorted(self._backend.get_vocab())

    def encode(self, inputs: Sequence[Text]) -> list[Encoded]:
        """One by one on the calling thread: the library's batch call would use a thread pool of its own.

        Raises:
            DataError: an input is neither a text nor a pair of texts, or is not valid Unicode.
        """
        if not isinstance(inputs, Sequence) or isinstance(inputs, str | bytes):
            raise DataError(f"expected a list of texts, got {type(inputs).__name__}")
        return [self._encode_one(index, text) for index, text in enumerate(inputs)]

    def _encode_one(self, index: int, text: Text) -> Encoded:
        pair = (text,) if isinstance(text, str) else text
        if not isinstance(pair, tuple | list) or len(pair) not in (1, 2) or not all(isinstance(t, str) for t in pair):
            raise DataError(f"input {index + 1}: expected a text or a pair of texts, got {type(text).__name__}")
        try:
            encoding = self._backend.encode(*pair)
        except (UnicodeEncodeError, TypeError) as error:  # a lone surrogate: its bindings call that "not a str"
            raise DataError(
                f"input {index + 1}: a text that is not valid Unicode; it holds half of a character"
            ) from error
        return Encoded(encoding.ids, encoding.type_ids, bool(encoding.overflowing))


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
