"""`score`: a bundle's answers to files of any size, which goes on where it was stopped, on one machine or with Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from hadskip_export.bulk.here import score_here
from hadskip_export.bulk.job import Job, Scored, inputs_of
from hadskip_export.data.tables import Columns
from hadskip_export.runtime.bundle import read_bundle
from hadskip_export.runtime.values import whole_number
from hadskip_export.support.errors import BudgetError, DataError

OnError = Literal["stop", "skip"]
ON_CPUS = ("ort", "openvino")


def score(
    bundle: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    rows: int = 10_000,
    on_error: OnError = "stop",
    text_column: str | None = None,
    pair_column: str | None = None,
    ray: bool = False,
    workers: int | None = None,
    **options: Any,
) -> Scored:
    """Writes the answers to each input as parts of JSON lines, see `bulk.job`, with one part in memory at a time. The
    same command goes on after the parts that are there, and does nothing where all are.

    Args:
        inputs: files as `read_texts` reads them, or folders of such; each line of the answers begins with the `line`
            of its row and has the row's other columns.
        out: the folder of answers.
        rows: of a part; what is lost at most when the work is stopped.
        on_error: what a bad row does: `stop` ends the work, `skip` gives it an `error` for an answer.
        ray: on a cluster of Ray's, that of RAY_ADDRESS or of this machine alone.
        workers: of Ray, predictors that compute at a time, each with `threads` threads (1); all CPUs' if left out.
        options: as for `Predictor.load`.

    Raises:
        DataError: see `inputs_of`, `Job.begin`, `Job.parts`.
        EngineError: Ray is not installed.
        HadskipError: see `Predictor.load`.
    """
    if on_error not in get_args(OnError):
        raise DataError(f"on_error={on_error!r}: expected 'stop' or 'skip'")
    if workers is not None and not ray:
        raise BudgetError(f"--workers {workers}: goes with --ray; --threads says how many threads compute here")
    whole_number("--rows", rows)
    if workers is not None:
        whole_number("--workers", workers)
    place = Path(bundle).resolve()
    engine = read_bundle(place).engine(*(options.get(name) for name in ("engine", "precision", "cut")))
    columns = Columns(text_column, pair_column)
    job = Job(place, inputs_of(inputs), Path(out).resolve(), rows, columns, on_error == "skip", options)
    job.begin()
    if not ray:
        return score_here(job)
    from hadskip_export.bulk.on_ray import score_on_ray

    return score_on_ray(job, workers, gpus=int(engine.engine not in ON_CPUS))
