"""What an OpenTelemetry collector receives of a service, and that none is needed to answer."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from hadskip_export.cli import main
from hadskip_export.serving.traces import exported
from tests.serving.conftest import ask
from tests.serving.test_service import TEXTS, free_port, start

ASKER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # a trace that the client is in the middle of


class Collector:
    """Takes spans as OTLP over HTTP has them."""

    def __init__(self):
        self.requests: list[ExportTraceServiceRequest] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                requests.append(
                    ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[Span]:
        return [
            span for one in self.requests for resource in one.resource_spans for scope in resource.scope_spans
            for span in scope.spans
        ]  # fmt: skip

    def service(self) -> str:
        attributes = self.requests[0].resource_spans[0].resource.attributes
        return next(one.value.string_value for one in attributes if one.key == "service.name")


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.server.shutdown()
    found.server.server_close()


def end(process: subprocess.Popen[str]) -> str:
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    return said


def test_a_request_is_told_with_what_was_done_for_it(points_bundle: Path, collector: Collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    process, port = start(points_bundle, "--traces")
    assert (
        ask(
            port, "/predict", {"inputs": [[text] for text in TEXTS]}, traceparent=ASKER, Host="health-metrics:80"
        ).status
        == 200
    )
    assert ask(port, "/predict", {"inputs": "a", "budget": 99}).status == 422
    assert ask(port, "/metrics").status == 200
    assert "Traceback" not in end(process)
    spans = collector.spans()
    mine = [span for span in spans if span.trace_id.hex() == ASKER.split("-")[1]]
    request = next(span for span in mine if span.kind == Span.SPAN_KIND_SERVER)
    assert request.name == "POST /predict" and request.parent_span_id.hex() == ASKER.split("-")[2]
    within = sorted((span for span in mine if span is not request), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in within] == ["tokenize", "queue", "compute"]
    assert {span.parent_span_id for span in within} == {request.span_id}
    times = [time for span in within for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
    slack = 5_000_000  # ns: of clocks that are read one after the other
    assert all(earlier <= later + slack for earlier, later in itertools.pairwise(times))
    assert request.start_time_unix_nano <= times[0] + slack and times[-1] <= request.end_time_unix_nano + slack
    counts = {one.key: one.value.int_value for span in within for one in span.attributes}
    assert counts["hadskip.inputs"] == counts["hadskip.inputs_together"] == len(TEXTS)
    servers = [span.name for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert servers.count("POST /predict") == 2 and not any("metrics" in name or "health" in name for name in servers)


@pytest.mark.slow
def test_without_a_collector_it_answers_and_ends_as_ever(points_bundle: Path, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    process, port = start(points_bundle, "--traces")
    assert ask(port, "/predict", {"inputs": TEXTS[0]}).status == 200
    assert "Traceback" not in end(process)


REFUSED = {
    "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: traces are sent by http/protobuf": {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc: traces": {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
    "OpenTelemetry's variables (OTEL_...) say what cannot be": {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9999"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_variables_that_say_what_cannot_be_are_refused(points_bundle: Path, monkeypatch, message: str):
    for name, value in REFUSED[message].items():
        monkeypatch.setenv(name, value)
    refused = CliRunner().invoke(main, ["serve", str(points_bundle), "--traces", "--port", str(free_port())])
    assert refused.exit_code == 2 and message in refused.stderr and refused.stderr.count("\n") == 1


NAMES: dict[str, dict[str, str]] = {
    "hadskip-export": {},
    "reviews": {"OTEL_SERVICE_NAME": "reviews"},
    "films": {"OTEL_RESOURCE_ATTRIBUTES": "service.name=films,team=x"},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_service_is_called_as_the_environment_says(monkeypatch, collector: Collector, name: str):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    for key, value in NAMES[name].items():
        monkeypatch.setenv(key, value)
    with exported() as traces:
        traces.span("one", 1.0, 2.0)
    assert collector.service() == name


def test_nothing_of_it_is_imported_unless_asked(points_bundle: Path):
    code = (
        "import sys; from hadskip_export.serving import app, service; "
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"
