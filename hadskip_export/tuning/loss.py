"""How much of the metric is lost against full BERT, and how much at most."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hadskip_export.data.metrics import AGREEMENT, METRICS, OF_QUERIES, telling_queries
from hadskip_export.data.problems import RANKING, Problem, same_answers
from hadskip_export.support.errors import DataError

CONFIDENCE = 0.95
QUANTILE = 1.6448536  # of the normal distribution, there
DRAWS = 200
BISECTIONS = 50
OF_CLASSES = ("f1", "macro_f1", "micro_f1", "matthews", "auc")  # to which each class may matter as much as all others


@dataclass(frozen=True)
class Loss:
    """The metric of full BERT less that of a model, on some texts, and at most on others like them, with 95 %
    confidence. Of a ranking, on queries that can lose anything."""

    value: float
    most: float


@dataclass(frozen=True)
class Judge:
    """Compares answers with full BERT's on the same texts.

    What is lost at most is exact of texts without labels (a share) and nearly so of accuracy (a difference of two
    shares). Of other metrics it is a bootstrap, and no less than what so few texts, queries or members of a class may
    hide.

    Args:
        metric: of `METRICS`.
        full: full BERT's logits, float32 [n, labels].
        targets: as `Problem.targets` gives them. None without labels: then the share of texts whose answer is another
            is the loss, which no accuracy can lose more than; of scores, 1 less their correlation with full BERT's.
        groups: of a ranking, see `groups_of`.
    """

    problem: Problem
    metric: str
    full: np.ndarray
    targets: np.ndarray | None
    groups: np.ndarray
    _full_scores: list[float] = field(default_factory=list)

    @property
    def measure(self) -> str:
        """The metric's name; `agreement` without labels."""
        return AGREEMENT if self.targets is None else self.metric

    def loss(self, logits: np.ndarray) -> Loss:
        """
        Args:
            logits: float32 [n, labels].
        """
        rows = np.concatenate(self._queries()) if self.measure in OF_QUERIES else np.arange(len(logits))
        value = self._score(self.full, rows, self.groups[rows]) - self._score(logits, rows, self.groups[rows])
        if self.measure in (AGREEMENT, "accuracy") and not self.problem.is_score:
            right, ours = (same_answers(self.problem.decide(given), self._targets) for given in (self.full, logits))
            return Loss(value, most_lost(int((right & ~ours).sum()), int((~right & ours).sum()), len(logits)))
        hidden = most_of_a_share(0, self._fewest())
        return Loss(value, max(value + hidden, float(np.quantile(self._drawn_losses(logits), CONFIDENCE))))

    def check_enough(self, share: float) -> None:
        """
        Raises:
            DataError: no loss, or one that so few cannot show, even if they lose nothing.
        """
        if (have := self._fewest()) < (need := fewest_texts(share)):
            what = "queries" if self._by_query else "of the rarest label" if self._by_class else "texts"
            counting = (
                "; only queries with documents of different relevance count" if self.measure in OF_QUERIES else ""
            )
            raise DataError(
                f"--max-loss {share:g}: {have} {what} cannot show it, however they are answered; give at least {need},"
                f" or allow more loss{counting}"
            )

    @property
    def _targets(self) -> np.ndarray:
        return self.problem.decide(self.full) if self.targets is None else self.targets

    @property
    def _by_query(self) -> bool:
        """Whether documents of a query are ranked against each other."""
        return self.problem.type == RANKING and len(np.unique(self.groups)) > 1

    @property
    def _by_class(self) -> bool:
        return self.targets is not None and self.metric in OF_CLASSES

    def _fewest(self) -> int:
        """What there is of queries, of members of the rarest class, or of texts."""
        if self._by_query:
            return len(self._queries())
        if self._by_class:
            one_hot = self._targets if self._targets.ndim == 2 else np.eye(len(self.problem.labels))[self._targets]
            return int(one_hot.sum(axis=0).min())
        return len(self.full)

    def _queries(self) -> list[np.ndarray]:
        """Rows of each that can lose anything. Others, of which there is nothing to lose, are not counted."""
        if self.measure in OF_QUERIES:
            return telling_queries(self.measure, self._targets, self.groups)
        return [np.flatnonzero(self.groups == query) for query in np.unique(self.groups)]

    def _score(self, logits: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> float:
        return METRICS[self.measure](self.problem, logits[rows], self._targets[rows], groups)

    def _drawn_losses(self, logits: np.ndarray) -> np.ndarray:
        """On texts that might have come instead, the same ones for every model, float [draws]."""
        if self._by_query:
            return self._drawn_by_query(logits)
        if not self._full_scores:
            self._full_scores.extend(self._score(self.full, rows, np.zeros_like(rows)) for rows in self._draws())
        ours = [self._score(logits, rows, np.zeros_like(rows)) for rows in self._draws()]
        return np.array(self._full_scores) - np.array(ours)

    def _draws(self) -> Iterator[np.ndarray]:
        random = np.random.default_rng(0)
        for _ in range(DRAWS):
            yield random.integers(0, len(self.full), len(self.full))

    def _drawn_by_query(self, logits: np.ndarray) -> np.ndarray:
        """A metric of rankings is the mean of the queries', so each is ranked once."""
        differences = []
        for rows in self._queries():
            same = np.zeros_like(rows)
            differences.append(self._score(self.full, rows, same) - self._score(logits, rows, same))
        drawn = np.random.default_rng(0).integers(0, len(differences), (DRAWS, len(differences)))
        return np.array(differences)[drawn].mean(axis=1)


def most_lost(lost: int, gained: int, count: int) -> float:
    """What `lost - gained` of so many may be at most as a share of all, with 95 % confidence: by the score of a
    difference of paired shares (Tango 1998), but no less than if what is lost in sum were all that changed, of which
    the bound is exact."""
    low, high = (lost - gained) / count, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _too_large(middle, lost, gained, count):
            high = middle
        else:
            low = middle
    return max(high, most_of_a_share(max(0, lost - gained), count))


def _too_large(difference: float, lost: int, gained: int, count: int) -> bool:
    """Whether so few losses are unlikelier than 5 %, were this the difference; the largest likelihood gives the
    share that is gained then."""
    linear = -lost - gained + (2 * count - lost + gained) * difference
    constant = -gained * difference * (1 - difference)
    share = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
    variance = count * (2 * share + difference * (1 - difference))
    return variance > 0 and lost - gained - count * difference < -QUANTILE * math.sqrt(variance)


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
