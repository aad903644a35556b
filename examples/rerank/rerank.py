"""A reranker that skips layers, beside the same one with every layer: time, layers by rank, order.

    python rerank.py BUNDLE QUERIES [ENGINE]

QUERIES is a file of (query, document, relevance); documents of one query are ranked in one call.
"""

import sys
import time
from collections.abc import Callable
from itertools import groupby
from statistics import median

import numpy as np

from hadskip_export.data.examples import read_examples
from hadskip_export.data.metrics import METRICS
from hadskip_export.data.problems import RANKING, Problem
from hadskip_export.runtime import Predictor, Ranked

RANKS = ((1, 1), (2, 10), (11, 50), (51, 100))
TOP = 10
TURNS = 3


def timed(call: Callable[[], list[Ranked]]) -> tuple[float, list[Ranked]]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def main() -> None:
    bundle, file, *engine = sys.argv[1:]
    examples = read_examples(file, problem_type=RANKING)
    rows = sorted(range(len(examples)), key=lambda row: examples.texts[row][0])
    ratios, layers, true, given = [], [], {"gates": [], "full": []}, []
    with Predictor.load(bundle, engine=engine[0] if engine else None) as predictor:
        for query, of_query in groupby(rows, key=lambda row: examples.texts[row][0]):
            numbers = list(of_query)
            documents = [examples.texts[row][1] for row in numbers]
            relevance = np.array([examples.labels[row] for row in numbers], np.float32)
            times = {"gates": [], "full": []}
            found = {}
            for turn in range(TURNS):  # one after the other, so that a busy moment hits both
                for router in sorted(times, reverse=bool(turn % 2)):
                    seconds, found[router] = timed(lambda: predictor.rank(query, documents, router=router))  # noqa: B023
                    times[router].append(seconds)
            ratios.append(median(times["full"]) / median(times["gates"]))
            layers.append([len(one.layers) for one in found["gates"]])
            for router, ranked in found.items():
                true[router].append(ndcg(ranked, relevance))
            # The full model's first ten documents are worth 10, 9, ..., 1.
            worth = np.zeros(len(documents), np.float32)
            for place, one in enumerate(found["full"][:TOP]):
                worth[one.index] = TOP - place
            given.append(ndcg(found["gates"], worth))
        every = predictor.bundle.manifest.model.layers
    low, high = np.quantile(
        [np.median(np.random.default_rng(i).choice(ratios, len(ratios))) for i in range(500)], (0.025, 0.975)
    )
    mean = np.mean([row.mean() for row in map(np.array, layers)])
    print(f"{len(ratios)} queries, {len(examples)} documents, {mean:.2f} of {every} layers run")
    print(f"time of a query: full / gates {np.median(ratios):.2f} ({low:.2f} to {high:.2f})")
    for first, last in RANKS:
        ran = [count for row in layers for count in row[first - 1 : last]]
        print(f"layers at ranks {first} to {last}: {np.mean(ran):.2f}")
    print(f"NDCG@10 against the full model's order: {np.mean(given):.4f}")
    print(f"NDCG@10 against the labels: gates {np.mean(true['gates']):.4f}, full {np.mean(true['full']):.4f}")


def ndcg(ranked: list[Ranked], relevance: np.ndarray) -> float:
    places = np.empty(len(ranked), np.float32)
    places[[one.index for one in ranked]] = -np.arange(len(ranked))
    problem = Problem(RANKING, ("LABEL_0",))
    return METRICS["ndcg"](problem, places[:, None], relevance, np.zeros(len(ranked)))


if __name__ == "__main__":
    main()
