"""Small honest pieces in numpy: every row's result depends on that row's real tokens alone, in whole numbers, so that
batched and one-at-a-time answers are equal to the last bit. The loop that they are compared by is the plainest."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from hadskip_export.runtime.policies import CappedPolicy, Decisions, ForcedPolicy, GatePolicy, Policy
from hadskip_export.runtime.programs.chain import Chain
from hadskip_export.runtime.tokenization import Batch, Encoded, pad

HIDDEN = 3
CUTS = ["gates", "all gates", "fused"]  # the cut `gates`, and the two ways that a target may have `layers`


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


def chain(salts: list[int], cut: str = "gates", every_token: bool = False) -> Chain:
    """Every piece counts. `cut`: one of `CUTS`, or `none` for a chain without gates. `every_token`: the last layer
    gives all of them."""
    num_layers = len(salts)
    one_by_one = [Counting(gate(salt)) for salt in salts] if cut == "gates" else []
    all_gates = Counting(gates(salts)) if cut in ("all gates", "fused") else None
    fuses = num_layers - 1 if cut == "fused" else 0  # the last layer has no gate after it
    made = [fused(index, salts) if index < fuses else layer(index) for index in range(num_layers)]
    if not every_token:
        made[-1] = first_token(made[-1])
    layers = {index: Counting(piece) for index, piece in enumerate(made)}
    return Chain(
        Counting(embeddings), layers, one_by_one, all_gates, Counting(head), ("input_ids", "token_type_ids"), num_layers
    )


# What a batch may be, and what it must give


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=9)
salts = st.lists(st.integers(0, 20), min_size=1, max_size=6)
thresholds = st.sampled_from([-1e9, -3.0, -1.5, 0.0, 0.5, 2.0, 3.0, 1e9])
cuts = st.sampled_from(CUTS)
seeds = st.integers(0, 1000)


def ragged(lengths: list[int], seed: int) -> Batch:
    random = np.random.default_rng(seed)
    rows = [random.integers(1, 50, length) for length in lengths]
    return pad([Encoded(ids, (np.arange(len(ids)) > len(ids) / 2).astype(np.int64), False) for ids in rows])


def drawn_routes(rows: int, num_layers: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((rows, num_layers)) < random.random()


def one_at_a_time(batch: Batch, salts: list[int], decider) -> tuple[np.ndarray, np.ndarray]:
    """What a program must give, (logits, routes), by the plainest loop: no batch, no padding.

    Args:
        decider: of a row, makes (layer, margin) -> whether the layer runs.
    """
    logits, routes = [], []
    for row in range(len(batch)):
        length = int(batch.attention_mask[row].sum())
        ids, mask, types = (
            array[row : row + 1, :length] for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        )
        decide, hidden, route = decider(row), embeddings(ids, types), []
        for index, salt in enumerate(salts):
            route.append(bool(decide(index, float(gate(salt)(hidden, mask)[0]))))
            if route[-1]:
                hidden = layer(index)(hidden, mask)
        logits.append(head(hidden)[0])
        routes.append(route)
    return np.array(logits, np.float32), np.array(routes, bool).reshape(len(batch), len(salts))


# Policies, and the plain function of one input that each is to be


@dataclass(frozen=True)
class Patience:
    """A policy with a memory, as rivals of HadSkip have it: after so many gates in a row that said skip, whatever
    comes is skipped."""

    threshold: float
    patience: int = 2

    def start(self, rows: int) -> Decisions:
        return _Patient(self, [0] * rows)

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        raise NotImplementedError("no threshold says that")


class _Patient:
    def __init__(self, policy: Patience, skipped: list[int]):
        self._policy, self._skipped = policy, skipped

    def rows(self, index: int, margins: Sequence[float]) -> list[bool]:
        runs = []
        for row, margin in enumerate(margins):
            going_on = self._skipped[row] < self._policy.patience
            runs.append(going_on and margin > self._policy.threshold)
            if going_on:
                self._skipped[row] = 0 if runs[-1] else self._skipped[row] + 1
        return runs


def plain_gates(thresholds: Sequence[float]):
    return lambda row: lambda index, margin: margin > thresholds[index]


def plain_routes(routes: np.ndarray):
    return lambda row: lambda index, margin: routes[row, index]


def plain_patience(threshold: float, patience: int = 2):
    def of_row(row: int):
        said: list[bool] = []

        def decide(index: int, margin: float) -> bool:
            stopped = any(not any(said[end - patience : end]) for end in range(patience, len(said) + 1))
            said.append(margin > threshold)
            return said[-1] and not stopped

        return decide

    return of_row


def plain_cap(decider, most: int):
    """A capped policy asks the other one all the same, and takes what it says as long as layers are left."""

    def of_row(row: int):
        decide, ran = decider(row), []

        def capped(index: int, margin: float) -> bool:
            ran.append(decide(index, margin) and sum(ran) < most)
            return ran[-1]

        return capped

    return of_row


@st.composite
def policies(draw, remembering: bool = True):
    """(rows, layers) -> a policy, and the plain function of one input that it is to be.

    Args:
        remembering: among them those that cannot be said by thresholds.
    """
    kind = draw(st.sampled_from(["gates", "forced", "patience"] if remembering else ["gates", "forced"]))
    at, seed = draw(st.lists(thresholds, min_size=6, max_size=6)), draw(seeds)
    most = draw(st.none() | st.integers(1, 6))

    def make(rows: int, num_layers: int):
        routes = drawn_routes(rows, num_layers, seed)
        made: tuple[Policy, object] = {
            "gates": (GatePolicy(at[:num_layers]), plain_gates(at)),
            "forced": (ForcedPolicy(routes), plain_routes(routes)),
            "patience": (Patience(at[0]), plain_patience(at[0])),
        }[kind]
        return made if most is None else (CappedPolicy(made[0], most), plain_cap(made[1], most))

    return make
