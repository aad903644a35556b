"""`triton`: a bundle as a model of Triton Inference Server, which runs the Predictor in its Python backend."""

from pathlib import Path

from hadskip_export.runtime.bundle import read_bundle
from hadskip_export.runtime.choices import RouterName
from hadskip_export.runtime.engines import Cut
from hadskip_export.serving.triton.repository import Settings, write_model


def triton(
    bundle: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
    cut: Cut | None = None,
    threads: int | None = None,
    budget: float | None = None,
    router: RouterName = "gates",
    max_batch: int = 32,
    force: bool = False,
) -> Path:
    """Adds a model to a repository of Triton's, with a copy of the bundle in it.

    Args:
        out: the repository, a new one or one that has other models.
        name: the model's; that of the bundle's folder if left out.
        engine, precision, cut: which of the bundle's engines, see `Predictor.load`.
        threads, budget, router: as for `Predictor.load`. A request may ask for another budget by its parameter
            `budget`.
        max_batch: the most inputs that are computed together.
        force: replace a model of that name that this command wrote.

    Returns:
        The model's folder.

    Raises:
        BundleError: see `read_bundle`; a model of that name is there; a name that Triton cannot have.
        BudgetError: a budget or router that the bundle cannot have, or no number of inputs.
    """
    opened = read_bundle(bundle)
    settings = Settings(opened.engine(engine, precision, cut).name, threads, budget, router, max_batch)
    return write_model(opened, Path(out), name or opened.path.resolve().name, settings, force=force)
