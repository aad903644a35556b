"""The user's texts shared out: some to learn from, the others to choose on."""

import hashlib
import json
from pathlib import Path

import numpy as np

from hadskip_export.data.examples import Examples
from hadskip_export.data.metrics import USUAL, telling_queries
from hadskip_export.data.problems import RANKING, groups_of
from hadskip_export.support.files import replaced


def digest_of(examples: Examples) -> str:
    """SHA-256 of texts and labels in their order."""
    return hashlib.sha256(json.dumps([examples.texts, examples.labels]).encode()).hexdigest()


def share_out(examples: Examples, to_choose: int, seed: int) -> tuple[Examples, Examples]:
    """(learned from, chosen on), drawn at random: of so many units to choose on, see `units_of`, and of each of them a
    text that comes several times once."""
    units = units_of(examples)
    order = np.random.default_rng(seed).permutation(to_choose_from(examples))
    chosen = np.isin(units, order[:to_choose])
    first: dict[object, int] = {}
    for row in np.flatnonzero(chosen).tolist():
        first.setdefault(examples.texts[row], row)
    return examples[np.flatnonzero(~chosen).tolist()], examples[list(first.values())]


def to_choose_from(examples: Examples) -> np.ndarray:
    """The units that show a loss, each once: of a ranking with labels, queries that can lose anything."""
    units, groups = units_of(examples), groups_of(examples.texts)
    if examples.problem_type != RANKING or not examples.labels or len(np.unique(groups)) == 1:
        return np.unique(units)
    told = telling_queries(USUAL[RANKING], np.array(examples.labels, np.float32), groups)
    return np.array([groups[rows[0]] for rows in told], np.int64)


def units_of(examples: Examples) -> np.ndarray:
    """What must not stand on both sides, numbered, int64 [n]: equal texts; of a ranking, documents of one query."""
    groups = groups_of(examples.texts)
    if examples.problem_type == RANKING and len(np.unique(groups)) > 1:
        return groups
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in examples.texts], np.int64)


def write_examples(file: Path, examples: Examples) -> None:
    """As JSONL, which `read_examples` reads back as it was."""
    with replaced(file) as part, part.open("w", encoding="utf-8") as lines:
        for row, text in enumerate(examples.texts):
            first, second = text if isinstance(text, tuple) else (text, None)
            values: dict[str, object] = {"text": first}
            if second is not None:
                values["text_pair"] = second
            if examples.labels:
                label = examples.labels[row]
                values["label"] = list(label) if isinstance(label, tuple) else label
            lines.write(json.dumps(values, ensure_ascii=False) + "\n")
