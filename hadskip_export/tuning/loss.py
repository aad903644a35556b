"""How much of the metric is lost against full BERT, and how much at most."""

import math
from dataclasses import dataclass, field

import numpy as np

from hadskip_export.data.metrics import AGREEMENT, METRICS
from hadskip_export.data.problems import RANKING, Problem
from hadskip_export.support.errors import DataError

CONFIDENCE = 0.95
DRAWS = 500
BISECTIONS = 40


@dataclass(frozen=True)
class Loss:
    """The metric of full BERT less that of a model, on some texts, and at most on others like them, with 95 %
    confidence."""

    value: float
    most: float


@dataclass(frozen=True)
class Judge:
    """Compares answers with full BERT's on the same texts.

    Args:
        metric: of `METRICS`.
        full: full BERT's logits, float32 [n, labels].
        targets: as `Problem.targets` gives them; None without labels. The share of texts whose answer is another is
            the loss then, which no accuracy can lose more than.
        groups: of a ranking, see `groups_of`: whole queries are drawn anew to say what others may give.
    """

    problem: Problem
    metric: str
    full: np.ndarray
    targets: np.ndarray | None
    groups: np.ndarray
    _draws: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @property
    def measure(self) -> str:
        """The metric's name; `agreement` without labels."""
        return AGREEMENT if self.targets is None else self.metric

    def loss(self, logits: np.ndarray) -> Loss:
        """
        Args:
            logits: float32 [n, labels].
        """
        everything = np.arange(len(logits))
        value = self._difference(logits, everything, self.groups)
        if self.targets is None and not self.problem.is_score:
            return Loss(value, most_of_a_share(round(value * len(logits)), len(logits)))
        drawn = [self._difference(logits, *these) for these in self._drawn()]
        return Loss(value, max(value, float(np.quantile(drawn, CONFIDENCE))))

    def check_enough(self, most_lost: float) -> None:
        """
        Raises:
            DataError: no loss, or one that so few texts cannot show, even if they lose nothing.
        """
        have, what = len(self._units()), "queries" if self._by_query else "texts"
        if have < (need := fewest_texts(most_lost)):
            raise DataError(
                f"--max-loss {most_lost:g}: {have} {what} cannot show it, however they are answered; give at least"
                f" {need}, or allow more loss"
            )

    def _difference(self, logits: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> float:
        targets = self.problem.decide(self.full) if self.targets is None else self.targets
        score = METRICS[self.measure]
        full, ours = (score(self.problem, given[rows], targets[rows], groups) for given in (self.full, logits))
        return full - ours

    @property
    def _by_query(self) -> bool:
        """Whether what is drawn is a query with all of its documents, which are ranked against each other."""
        return self.problem.type == RANKING and len(np.unique(self.groups)) > 1

    def _units(self) -> list[np.ndarray]:
        """Rows of all that is drawn together."""
        if self._by_query:
            return [np.flatnonzero(self.groups == group) for group in np.unique(self.groups)]
        return list(np.arange(len(self.full))[:, None])

    def _drawn(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows of the texts that might have come instead, the same ones for every model, and their groups: a query that
        is drawn twice is two."""
        if not self._draws:
            random, units = np.random.default_rng(0), self._units()
            for _ in range(DRAWS):
                drawn = [units[index] for index in random.integers(0, len(units), len(units))]
                groups = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
                self._draws.append((np.concatenate(drawn), groups if self._by_query else np.zeros_like(groups)))
        return self._draws


def most_of_a_share(seen: int, count: int) -> float:
    """What a share that was seen so often among so many may be at most, with 95 % confidence (Clopper and Pearson
    1934): where seeing no more of it is as unlikely as 5 %."""
    if seen >= count:
        return 1.0
    low, high = seen / count, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _at_most(seen, count, middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _at_most(seen: int, count: int, share: float) -> float:
    """How likely it is to see no more (the binomial distribution)."""
    times = np.arange(seen + 1)
    ways = np.cumsum(np.log([1, *(count - times[:-1])]) - np.log([1, *times[1:]]))
    return float(np.exp(ways + times * math.log(share) + (count - times) * math.log1p(-share)).sum())


def fewest_texts(share: float) -> int:
    """How many texts show that a share is no larger, with 95 % confidence, if none of them is one of it.

    Raises:
        DataError: no loss.
    """
    if not 0 < share < 1:
        raise DataError(f"--max-loss {share:g}: expected a part of the metric between 0 and 1, as 0.01")
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-share))
