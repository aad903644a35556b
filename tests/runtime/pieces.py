"""Small honest pieces in numpy: every row's result depends on that row's real tokens alone, in whole numbers, so that
batched and one-at-a-time answers are equal to the last bit."""

from dataclasses import dataclass, field

import numpy as np

from hadskip_export.runtime.chain import Chain
from hadskip_export.runtime.tokenization import Batch, Encoded, pad

HIDDEN = 3


def total(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sum over real tokens and features, [b]."""
    return (hidden * mask[..., None]).sum(axis=(1, 2))


@dataclass
class Counting:
    """Any piece, keeping the sizes of the batches it was given."""

    piece: object
    batches: list[tuple[int, int]] = field(default_factory=list)  # (rows, length)

    def __call__(self, *inputs: np.ndarray):
        self.batches.append(inputs[0].shape[:2])
        return self.piece(*inputs)

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.batches)


def embeddings(input_ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
    position = np.arange(input_ids.shape[1])
    words = input_ids[..., None] * np.array([1, 2, 3]) + position[:, None] % 3 + token_type_ids[..., None]
    return words.astype(np.float32)


def layer(index: int):
    def run(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        shift = (index + 1) * (1 + total(hidden, mask) % 5)
        return (hidden + shift[:, None, None]) % 11

    return run


def gate(salt: int):
    """Margins from -3 to 3, in halves so that a threshold can lie exactly on one."""
    return lambda hidden, mask: ((total(hidden, mask) * (salt + 1) + salt) % 13 / 2 - 3).astype(np.float32)


def gates(salts: list[int]):
    """All gates as one piece, [b, L]."""
    return lambda hidden, mask: np.stack([gate(salt)(hidden, mask) for salt in salts], axis=1)


def head(hidden: np.ndarray) -> np.ndarray:
    return hidden[:, 0, :2]


def fused(index: int, salts: list[int]):
    """A layer and, in the same piece, the gates after it; margins of the others mean nothing."""

    def run(hidden: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        after = layer(index)(hidden, mask)
        margins = gates(salts)(after, mask)
        margins[:, : index + 1] = np.nan
        return after, margins

    return run


def first_token(piece):
    """Of a layer, only what the head reads."""
    return lambda hidden, mask: piece(hidden, mask)[:, :1]


def chain(salts: list[int], layout: str = "separate", whole: bool = False) -> Chain:
    """Layers and gates count; `none` is a chain without gates. `whole`: the last layer gives all tokens, as in bundles
    made before it gave the first one alone."""
    num_layers = len(salts)
    separate = [Counting(gate(salt)) for salt in salts] if layout == "separate" else []
    lookahead = Counting(gates(salts)) if layout in ("lookahead", "fused") else None
    looks = num_layers - 1 if layout == "fused" else 0  # the last layer has no gate after it
    made = [fused(index, salts) if index < looks else layer(index) for index in range(num_layers)]
    if not whole:
        made[-1] = first_token(made[-1])
    layers = {index: Counting(piece) for index, piece in enumerate(made)}
    return Chain(embeddings, layers, separate, lookahead, head, ("input_ids", "token_type_ids"), num_layers)


def one_at_a_time(batch: Batch, salts: list[int], threshold: float, most: int | None = None):
    """What the chain must give, by the plainest loop: (logits, routes)."""
    logits, routes = [], []
    for row in range(len(batch)):
        length = int(batch.attention_mask[row].sum())
        ids, mask, types = (
            array[row : row + 1, :length] for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        )
        hidden, route = embeddings(ids, types), []
        for index, salt in enumerate(salts):
            run = bool(gate(salt)(hidden, mask)[0] > threshold) and (most is None or sum(route) < most)
            if run:
                hidden = layer(index)(hidden, mask)
            route.append(run)
        logits.append(head(hidden)[0])
        routes.append(route)
    return np.array(logits, np.float32), np.array(routes, bool).reshape(len(batch), len(salts))


def ragged(lengths: list[int], seed: int) -> Batch:
    random = np.random.default_rng(seed)
    rows = [random.integers(1, 50, length) for length in lengths]
    return pad([Encoded(ids, (np.arange(len(ids)) > len(ids) / 2).astype(np.int64), False) for ids in rows])
