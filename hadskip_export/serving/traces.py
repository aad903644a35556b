"""Where a request's time goes, for OpenTelemetry: as its own environment variables (`OTEL_...`) have it, if asked."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

import hadskip_export
from hadskip_export.support.errors import EngineError, first_line, optional_import

EXTRA = "traces"
NAME = "hadskip-export"  # of the service, unless the environment has another
PROTOCOL = "http/protobuf"  # OTLP's, which needs no gRPC
UNSEEN = "^https?://[^/]+/(health|ready|metrics)$"  # what is asked every few seconds, and of no interest
FASTAPI = "opentelemetry.instrumentation.fastapi"


class Traces:
    """Of requests, each within the trace of who asks, and of what is done for one. Without a provider there are
    none."""

    def __init__(self, provider: Any = None):
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("hadskip_export", hadskip_export.__version__)

    def watch(self, app: FastAPI) -> None:
        """Has a span for each request from now on."""
        if self._provider is not None:
            fastapi = optional_import(FASTAPI, EXTRA)
            fastapi.FastAPIInstrumentor.instrument_app(
                app, tracer_provider=self._provider, excluded_urls=UNSEEN, exclude_spans=["receive", "send"]
            )

    def span(self, name: str, began: float, ended: float, **about: int) -> None:
        """Within that of the request which is being answered.

        Args:
            began, ended: by `time.monotonic`.
        """
        if self._tracer is None:
            return
        shift = time.time_ns() - time.monotonic_ns()
        attributes = {f"hadskip.{key}": value for key, value in about.items()}
        span = self._tracer.start_span(name, start_time=int(began * 1e9) + shift, attributes=attributes)
        span.end(int(ended * 1e9) + shift)


@contextmanager
def exported() -> Iterator[Traces]:
    """Traces that are sent to a collector; at the end what is left of them, too. No request waits for it.

    Raises:
        EngineError: a library is missing; a protocol that we do not speak, or variables of OpenTelemetry's that say
            what cannot be.
    """
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if (protocol := os.environ.get(name, PROTOCOL)) != PROTOCOL:
            raise EngineError(f"{name}={protocol}: traces are sent by {PROTOCOL}; set that, or nothing")
    optional_import(FASTAPI, EXTRA)
    exporter = optional_import("opentelemetry.exporter.otlp.proto.http.trace_exporter", EXTRA)
    sdk = optional_import("opentelemetry.sdk.trace", EXTRA)
    export = optional_import("opentelemetry.sdk.trace.export", EXTRA)
    resources = optional_import("opentelemetry.sdk.resources", EXTRA)
    told = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    try:
        provider = sdk.TracerProvider(resource=resources.Resource.create({} if told else {"service.name": NAME}))
        provider.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter()))
    except ValueError as error:  # of one of its variables
        raise EngineError(f"OpenTelemetry's variables (OTEL_...) say what cannot be: {first_line(error)}") from error
    try:
        yield Traces(provider)
    finally:
        provider.shutdown()
