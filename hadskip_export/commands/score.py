"""`score`: a bundle's answers to files of any size, which goes on where it was stopped, on one machine or with Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hadskip_export.bulk.here import score_here
from hadskip_export.bulk.job import Job, Scored, inputs_of
from hadskip_export.bulk.rows import OnError, check_on_error
from hadskip_export.data.columns import Columns
from hadskip_export.runtime.bundle import read_bundle
from hadskip_export.support.errors import BudgetError
from hadskip_export.support.values import several, whole_number

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
    same command goes on with the parts that are missing.

    Args:
        inputs: files as `read_texts` reads them, or folders of such; each line of the answers begins with the `line`
            of its row and has the row's other columns.
        out: the folder of answers.
        rows: of a part; what is lost at most when the work is stopped.
        on_error: what a bad row does: `stop` ends the work, `skip` gives it an `error` for an answer.
        ray: on a cluster of Ray's, that of RAY_ADDRESS or of this machine alone.
        workers: of Ray, the most predictors that compute at a time, each with `threads` threads (1); as many as there
            is room for if left out.
        options: as for `Predictor.load`.

    Raises:
        DataError: see `inputs_of`, `Job.begun`, `Job.parts`, `Job.write`.
        EngineError: see `bulk.on_ray.score_on_ray`.
        HadskipError: see `Predictor.load`.
    """
    check_on_error(on_error)
    inputs = several("inputs", inputs)
    if workers is not None and not ray:
        raise BudgetError(f"--workers {workers}: goes with --ray; --threads says how many threads compute here")
    for name, value in (("--rows", rows), ("--workers", workers), ("--threads", options.get("threads"))):
        if value is not None:
            whole_number(name, value)
    place = Path(bundle).resolve()
    engine = read_bundle(place).engine(*(options.pop(name, None) for name in ("engine", "precision", "cut")))
    if ray and options.get("threads") is None:
        options["threads"] = 1
    if options.get("verify") is not None:
        options["verify"] = str(Path(options["verify"]).resolve())
    job = Job.of(
        place, inputs_of(inputs), Path(out).resolve(), rows, Columns(text_column, pair_column),
        skips=on_error == "skip", engine=engine.name, **options,
    )  # fmt: skip
    if not ray:
        return score_here(job)
    from hadskip_export.bulk.on_ray import score_on_ray

    return score_on_ray(job, workers, gpus=int(engine.engine not in ON_CPUS))
