"""`serve`: a bundle behind HTTP, as text-embeddings-inference's clients and Hugging Face's speak it."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hadskip_export.runtime.predictor import Predictor
from hadskip_export.serving.limits import Limits
from hadskip_export.support.errors import BudgetError, DataError, optional_import
from hadskip_export.support.progress import say


def serve(
    bundle: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    least_budget: float | None = None,
    inputs: int = Limits.inputs,
    queue: int = Limits.queue,
    batch_tokens: int = Limits.batch_tokens,
    body: int = Limits.body,
    timeout: float = Limits.timeout,
    traces: bool = False,
    **options: Any,
) -> None:
    """Serves until it is told to end (SIGTERM, Ctrl-C), then answers what it has accepted. A bundle that takes the
    place of this one is read and served from then on, without a request lost.

    On FastAPI and uvicorn: what most who serve a model in Python know, with the page that documents the routes.

    Args:
        host, port: where to listen; this machine's programs alone are heard unless told otherwise.
        token: what clients must send as their bearer token; nothing if left out.
        least_budget: while requests queue, lower the budget step by step, down to this one.
        inputs, queue, batch_tokens, body, timeout: how much is taken on, see `serving.limits.Limits`.
        traces: send a trace of each request to an OpenTelemetry collector, see `serving.traces`.
        options: as for `Predictor.load`.

    Raises:
        DataError: limits that are no numbers above 0; a port that is taken; an empty token, or one that no header can
            hold.
        BudgetError: `least_budget` that cannot be; a budget where full BERT answers.
        EngineError: the libraries of the server, or of `traces`, are missing.
        HadskipError: see `Predictor.load`.
    """
    for library in ("uvicorn", "fastapi", "prometheus_client"):
        optional_import(library, "serve")
    from hadskip_export.serving.app import create_app
    from hadskip_export.serving.server import listen, run
    from hadskip_export.serving.service import Service
    from hadskip_export.serving.traces import Traces, exported

    limits = Limits(inputs, queue, batch_tokens, body, timeout)
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise DataError("--token (or HADSKIP_TOKEN): empty, or more than printable ASCII; leave it out to serve all")
    for option, value in (("--least-budget", least_budget), ("--budget", options.get("budget"))):
        if value is not None and options.get("router") == "full":
            raise BudgetError(f"{option} {value:g}: --router full runs every layer, whatever the budget")
    with ExitStack() as open_until_the_end:
        place = open_until_the_end.enter_context(listen(host, port))
        told = open_until_the_end.enter_context(exported()) if traces else Traces()
        service = Service(lambda: Predictor.load(bundle, **options), Path(bundle), limits, least_budget, traces=told)
        app = create_app(service, token)
        told.watch(app)
        say(f"{service.predictor!r}")
        say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
        run(app, service, place)
