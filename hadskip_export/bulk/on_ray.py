"""A job on a cluster of Ray's: Ray Data streams the parts from who reads to workers that have the bundle loaded.

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
from hadskip_export.support.errors import EngineError, HadskipError, first_line, optional_import

READING = 0  # CPUs: the workers have them all, and Ray would wait for one for ever


def score_on_ray(job: Job, workers: int | None, gpus: int) -> Scored:
    """See `commands.score`.

    Args:
        workers: the most predictors that compute at a time; as many as the cluster has room for if left out.
        gpus: of each worker.

    Raises:
        EngineError: Ray is not installed, fails, or has no machine that is large enough for a worker.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers otherwise
    ray: Any = optional_import("ray", "ray")
    data: Any = optional_import("ray.data", "ray")
    with _running(ray, data), job.begun():
        room = _room(ray, job.options["threads"], gpus)
        most = workers or room
        names = [{"name": name} for name in job.inputs]
        parts = data.from_items(names, override_num_blocks=len(names)).flat_map(
            lambda row: _read(job, row["name"]), num_cpus=READING, concurrency=room
        )
        done = parts.map_batches(
            _Worker, fn_constructor_args=(job,), batch_size=1, num_cpus=job.options["threads"], num_gpus=gpus,
            compute=data.ActorPoolStrategy(min_size=min(room, most), max_size=most),  # more where the cluster grows
        )  # fmt: skip
        tally = Tally(job)
        try:
            for row in done.iter_rows():
                found = pickle.loads(row["found"])
                if isinstance(found, Exception):
                    raise found
                tally.add(*found)
        except ray.exceptions.RayError as error:
            raise EngineError(f"Ray: {first_line(error)}; what is done stays, run the same command again") from error
    return tally.scored


@contextlib.contextmanager
def _running(ray: Any, data: Any) -> Iterator[None]:
    """With Ray, the application's own if it has it, set up so that workers share the parts of one file. What Ray prints
    of its workers goes to stderr: results are ours."""
    context, own = data.DataContext.get_current(), not ray.is_initialized()
    before = context.enable_progress_bars, context.target_max_block_size
    logger = logging.getLogger("ray.data")
    level = logger.level
    with contextlib.redirect_stdout(sys.stderr):
        try:
            if own:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            logger.setLevel(logging.ERROR)
            context.enable_progress_bars, context.target_max_block_size = False, 1  # bytes: a part for itself
            yield
        finally:
            context.enable_progress_bars, context.target_max_block_size = before
            logger.setLevel(level)
            if own:
                ray.shutdown()


def _room(ray: Any, threads: int, gpus: int) -> int:
    """For how many workers there is room: Ray waits without a word for a machine that is large enough.

    Raises:
        EngineError: for none.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = 0
    for machine in machines:
        fits = int(machine.get("CPU", 0)) // threads
        room += min(fits, int(machine.get("GPU", 0)) // gpus) if gpus else fits
    if not room:
        wanted = f"{threads} CPUs" + (f" and {gpus} GPU" if gpus else "")
        raise EngineError(f"--ray: none of {len(machines)} machines has {wanted} for a worker; choose other --threads")
    return room


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

    def _compute(self, part: Part) -> tuple[str, int, int, bool]:
        """As `Tally.add` takes it."""
        if part.done:
            return part.name, part.count, 0, False
        if self._predictor is None:
            self._predictor = Predictor.load(self._job.bundle, **self._job.options)
        return part.name, part.count, self._job.write(self._predictor, part), True
