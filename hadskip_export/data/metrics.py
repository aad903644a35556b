"""Task metrics, by the names that recipes, summaries and manifests use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SCORES, SINGLE, Problem, ProblemType, same_answers
from hadskip_export.support.errors import DataError, optional_import

# decided [n] or [n, labels], targets of the same shape, logits [n, labels], groups [n] -> the figure
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]
EXTRA = "metrics"  # what installs the library of those that are not a line of NumPy
RELEVANT = 0.5  # above that a document, or a label, counts as one that should be there
AGREEMENT = "agreement"
LABELS: tuple[ProblemType, ...] = (SINGLE, MULTI)
OF_QUERIES = ("mrr", "ndcg")


@dataclass(frozen=True)
class Metric:
    """
    Args:
        problems: whose answers it measures.
        classes: that there must be where an input has one of them; any number if left out.
    """

    measure: Measure
    problems: tuple[ProblemType, ...]
    classes: int | None = None

    def __call__(self, problem: Problem, logits: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> float:
        """
        Args:
            logits: float [n, labels].
            targets: as `Problem.targets` gives them.
            groups: see `groups_of`.

        Raises:
            EngineError: its library is missing.
        """
        return float(self.measure(problem.decide(logits), targets, logits, groups))


def accuracy(decided: np.ndarray, targets: np.ndarray, *_others: np.ndarray) -> float:
    """Share of inputs with the right label, or with all labels right."""
    return float(np.mean(same_answers(decided, targets)))


def f1(decided: np.ndarray, targets: np.ndarray, *_others: np.ndarray) -> float:
    """F1 of class 1, which is GLUE's positive one; 0 where neither side has any."""
    both = np.sum((decided == 1) & (targets == 1))
    sides = np.sum(decided == 1) + np.sum(targets == 1)
    return float(2 * both / sides) if sides else 0.0


def matthews(decided: np.ndarray, targets: np.ndarray, *_others: np.ndarray) -> float:
    """Matthews' correlation, of any number of classes; 0 where one side is all one class and it is undefined."""
    classes = np.arange(1 + max(decided.max(), targets.max()))
    one_hot = (side[:, None] == classes for side in (decided, targets))
    ours, theirs = (side - side.mean(axis=0) for side in one_hot)
    scale = np.sqrt(np.sum(ours * ours) * np.sum(theirs * theirs))
    return float(np.sum(ours * theirs) / scale) if scale else 0.0


def macro_f1(decided: np.ndarray, targets: np.ndarray, *_others: np.ndarray) -> float:
    """Mean F1 of all classes that occur on either side, or of all labels; 0 of one that is never right."""
    return _sklearn().f1_score(targets, decided, average="macro", zero_division=0)


def micro_f1(decided: np.ndarray, targets: np.ndarray, *_others: np.ndarray) -> float:
    """F1 over all labels of all inputs."""
    return _sklearn().f1_score(targets, decided, average="micro", zero_division=0)


def auc(_decided: np.ndarray, targets: np.ndarray, logits: np.ndarray, _groups: np.ndarray) -> float:
    """Area under the ROC curve, mean over the labels that some inputs have and some have not; 0.5 where none is so."""
    scores = logits[:, 1:] - logits[:, :1] if targets.ndim == 1 and logits.shape[1] == 2 else logits
    columns = zip(targets.reshape(len(targets), -1).T > RELEVANT, scores.T, strict=True)
    areas = [_sklearn().roc_auc_score(truth, score) for truth, score in columns if 0 < truth.sum() < len(truth)]
    return float(np.mean(areas)) if areas else 0.5


def pearson(decided: np.ndarray, targets: np.ndarray, *_others: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is all one number and it is undefined."""
    ours, theirs = (side.astype(np.float64) - side.mean(dtype=np.float64) for side in (decided, targets))
    scale = np.sqrt(np.sum(ours * ours) * np.sum(theirs * theirs))
    return float(np.sum(ours * theirs) / scale) if scale else 0.0


def spearman(decided: np.ndarray, targets: np.ndarray, *_others: np.ndarray) -> float:
    """Spearman's correlation: Pearson's of the ranks."""
    stats: Any = optional_import("scipy.stats", EXTRA)
    return pearson(stats.rankdata(decided), stats.rankdata(targets))


def mrr(decided: np.ndarray, targets: np.ndarray, _logits: np.ndarray, groups: np.ndarray) -> float:
    """Mean over queries of one by the rank of the first relevant document; a query without one counts as 0. A document
    that ties with one that is not relevant comes after it."""
    found = []
    for rows in _by_group(groups):
        relevant = targets[rows] > RELEVANT
        best = decided[rows][relevant].max(initial=-np.inf)
        found.append(1 / (1 + np.sum(decided[rows][~relevant] >= best)) if relevant.any() else 0.0)
    return float(np.mean(found))


def ndcg(decided: np.ndarray, targets: np.ndarray, _logits: np.ndarray, groups: np.ndarray) -> float:
    """NDCG@10, mean over queries that have a document of some relevance and more than one in all; 0 without any. A
    target below 0 gains nothing."""
    found = [
        _sklearn().ndcg_score(np.maximum(targets[rows], 0)[None], decided[rows][None], k=10)
        for rows in _by_group(groups)
        if len(rows) > 1 and targets[rows].max() > 0
    ]
    return float(np.mean(found)) if found else 0.0


def agreement(decided: np.ndarray, targets: np.ndarray, *others: np.ndarray) -> float:
    """Accuracy or, of scores, Pearson's correlation, where the teacher's answers stand in for those the texts lack."""
    scores = decided.ndim == 1 and decided.dtype.kind == "f"
    return pearson(decided, targets) if scores else accuracy(decided, targets, *others)


def telling_queries(name: str, targets: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """Rows of each query that has documents of different relevance, as the metric sees it: of others every order is as
    good."""
    worth = targets > RELEVANT if name == "mrr" else np.maximum(targets, 0)
    return [rows for rows in _by_group(groups) if worth[rows].min() < worth[rows].max()]


def check_tells(name: str, targets: np.ndarray | None, groups: np.ndarray, what: str) -> None:
    """
    Args:
        targets: None without labels.
        what: whose texts they are.

    Raises:
        DataError: a metric of queries, and none of them can be answered well or badly; or one of scores that differ,
            and they do not.
    """
    if name in ("pearson", "spearman") and targets is not None and targets.min() == targets.max():
        raise DataError(f"{what}: all have the label {targets[0]:g}, and {name} says nothing of such; give others, too")
    if name in OF_QUERIES and targets is not None and not telling_queries(name, targets, groups):
        raise DataError(
            f"{what}: no query has documents of different relevance, and {name} says nothing of such; give each query"
            " several, or leave out the labels, or train with another --metric, as pearson"
        )


def _by_group(groups: np.ndarray) -> list[np.ndarray]:
    """Rows of each group."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _sklearn() -> Any:
    return optional_import("sklearn.metrics", EXTRA)


METRICS = {
    "accuracy": Metric(accuracy, LABELS),
    "f1": Metric(f1, (SINGLE,), classes=2),
    "macro_f1": Metric(macro_f1, LABELS),
    "micro_f1": Metric(micro_f1, (MULTI,)),
    "matthews": Metric(matthews, (SINGLE,)),
    "auc": Metric(auc, (SINGLE, MULTI, RANKING), classes=2),
    "pearson": Metric(pearson, SCORES),
    "spearman": Metric(spearman, SCORES),
    "mrr": Metric(mrr, SCORES),
    "ndcg": Metric(ndcg, SCORES),
    AGREEMENT: Metric(agreement, (*LABELS, *SCORES)),
}
USUAL: dict[ProblemType, str] = {SINGLE: "accuracy", MULTI: "macro_f1", REGRESSION: "pearson", RANKING: "ndcg"}


def metric_of(problem: Problem, name: str | None) -> str:
    """The name of a problem's metric: `name`, or the usual one.

    Raises:
        DataError: not known, or none of this problem.
    """
    if name is None:
        return USUAL[problem.type]
    fit = [known for known, metric in METRICS.items() if problem.type in metric.problems and known != AGREEMENT]
    if name not in fit:
        raise DataError(f"--metric {name}: of {problem.type} there are {', '.join(fit)}")
    if problem.type == SINGLE and METRICS[name].classes not in (None, len(problem.labels)):
        raise DataError(f"--metric {name}: is for two classes, and there are {', '.join(problem.labels)}")
    return name
