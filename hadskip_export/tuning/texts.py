"""The user's texts shared out: some to learn from, the others to choose on."""

import hashlib
import json
from pathlib import Path

import numpy as np

from hadskip_export.data.problems import RANKING, groups_of
from hadskip_export.data.tables import Examples
from hadskip_export.support.files import replaced


def digest_of(examples: Examples) -> str:
    """SHA-256 of texts and labels in their order."""
    return hashlib.sha256(json.dumps([examples.texts, examples.labels]).encode()).hexdigest()


def share_out(examples: Examples, to_choose: int, seed: int) -> tuple[Examples, Examples]:
    """(learned from, chosen on), drawn at random, of so many to choose on; of a ranking whole queries."""
    random = np.random.default_rng(seed)
    groups = groups_of(examples.texts)
    if examples.problem_type != RANKING or len(np.unique(groups)) == 1:
        groups = np.arange(len(examples))
    order = random.permutation(np.unique(groups))
    sizes = np.cumsum(np.bincount(groups)[order])
    chosen = np.isin(groups, order[: 1 + np.searchsorted(sizes, to_choose)])
    learned, chosen_on = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return examples[learned.tolist()], examples[chosen_on.tolist()]


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
            lines.write(json.dumps(values) + "\n")
