"""A job on a cluster of Ray's: Ray Data streams the parts from whoever reads to workers that have the bundle loaded.

Each worker writes the parts it computes, so bundle, inputs and answers lie where every machine sees them under the same
path. A worker that dies is replaced, and what it had not written is given to another.
"""

import contextlib
import logging
import os
import pickle
import sys
from collections.abc import Iterator
from typing import Any

from hadskip_export.bulk.here import Tally
from hadskip_export.bulk.job import Job, Part, Scored
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.errors import HadskipError, optional_import

READING = 0  # CPUs: the workers have them all, and Ray would wait for one for ever


def score_on_ray(job: Job, workers: int | None, gpus: int) -> Scored:
    """See `commands.score`.

    Args:
        workers: predictors that compute at a time; as many as the cluster's CPUs allow if left out.
        gpus: of each worker.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers otherwise
    ray: Any = optional_import("ray", "ray")
    data: Any = optional_import("ray.data", "ray")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # bytes: a part for itself, so that workers share those of one file

    threads = job.options.get("threads") or 1
    most = workers or max(1, int(ray.cluster_resources()["CPU"]) // threads)
    names = [{"name": name} for name in job.inputs]
    parts = data.from_items(names, override_num_blocks=len(names)).flat_map(
        lambda row: _read(job, row["name"]), num_cpus=READING
    )
    done = parts.map_batches(
        _Worker, fn_constructor_args=(job,), batch_size=1, num_cpus=threads, num_gpus=gpus,
        compute=data.ActorPoolStrategy(size=most),
    )  # fmt: skip
    tally = Tally()
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what becomes of its workers; results are ours
        for row in done.iter_rows():
            found = pickle.loads(row["found"])
            if isinstance(found, Exception):
                raise found
            tally.add(*found)
    return tally.done


# What goes wrong is handed on like a result: Ray would print it several times over, with where it was in Ray.


def _read(job: Job, name: str) -> Iterator[dict[str, bytes]]:
    try:
        for part in job.parts(name):
            yield {"found": pickle.dumps(part)}
    except (HadskipError, OSError) as error:
        yield {"found": pickle.dumps(error)}


class _Worker:
    """Has the bundle, and takes a part at a time."""

    def __init__(self, job: Job):
        self._job = job
        self._predictor: Predictor | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        found: Part | Exception = pickle.loads(batch["found"][0])
        try:
            answer = found if isinstance(found, Exception) else self._compute(found)
        except (HadskipError, OSError) as error:
            answer = error
        return {"found": [pickle.dumps(answer)]}

    def _compute(self, part: Part) -> tuple[int, int, bool]:
        """Rows, those refused, and whether it was not there before."""
        if part.place.exists():
            return part.count, 0, False
        if self._predictor is None:
            options = self._job.options
            self._predictor = Predictor.load(self._job.bundle, **{**options, "threads": options.get("threads") or 1})
        return part.count, self._job.write(self._predictor, part), True
