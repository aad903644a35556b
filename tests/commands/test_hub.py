"""`push`, `pull` and bundles in the hub's cache: the hub's own client, against a server here that speaks as the hub
does to it. Nothing of this ever met the hub itself."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hadskip_export import build, push
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.support.errors import BundleError, DataError
from tests.exporters.changing import copy_of
from tests.runtime.test_signatures import write_key

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/film-reviews"
TEXTS = ["a good film", "two hours I will not get back"]


class Hub(BaseHTTPRequestHandler):
    """One repository, in memory: `files` of the server."""

    server: "HubServer"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":  # of the card
            self.reply({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.reply({"url": f"{self.server.url}/{NAME}"})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            self.reply(
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in wanted]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "deletedFile":
                    del self.server.files[line["value"]["path"]]
            self.reply({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/{NAME}/commit/{COMMIT}"})
        else:
            self.reply({"error": self.path}, 404)

    def do_GET(self) -> None:
        if re.fullmatch(rf"/api/models/{NAME}(/revision/\w+)?", self.path.split("?")[0]):
            siblings = [{"rfilename": name} for name in self.server.files]
            self.reply({"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif re.match(rf"/api/models/{NAME}/tree/", self.path):
            self.reply([{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in self.server.files.items()])  # fmt: skip
        elif (found := re.match(rf"/{NAME}/resolve/\w+/(.+)", self.path)) and found[1] in self.server.files:
            self.content(self.server.files[found[1]])
        else:
            self.reply({"error": "Repository not found"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def content(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def reply(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def command(hub: HubServer, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, for the client reads where the hub is when it is imported."""
    line = [sys.executable, "-c", "from hadskip_export.cli import main; main()", *map(str, arguments)]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)


def answers(bundle: Path) -> list:
    with Predictor.load(bundle) as predictor:
        return predictor(TEXTS)


@pytest.fixture(scope="module")
def pushed(hub: HubServer, whole_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> HubServer:
    """The bundle on the hub, with a stranger's file beside it here that nobody named."""
    copy = copy_of(whole_bundle, tmp_path_factory.mktemp("pushed"))
    (copy / "notes.txt").write_text("mine alone")
    done = command(hub, tmp_path_factory.mktemp("home"), "push", copy, NAME, "--private")
    assert done.returncode == 0 and done.stdout.strip() == f"{hub.url}/{NAME}/commit/{COMMIT}", done.stderr
    return hub


def test_what_is_pushed_is_what_the_manifest_names_and_a_card(pushed: HubServer, whole_bundle: Path):
    manifest = read_bundle(whole_bundle).manifest
    assert pushed.files.keys() == {*manifest.files, "manifest.json", "manifest.sha256", "README.md"}
    for name, content in pushed.files.items():
        assert name == "README.md" or content == (whole_bundle / name).read_bytes()
    assert pushed.created[0]["name"] == "film-reviews" and pushed.created[0]["visibility"] == "private"
    card = pushed.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: hadskip-export\npipeline_tag: text-classification\n")
    assert "Labels: no, yes." in card and "| 2, the default | 2.00 |" in card and f"pull {NAME} --out bundle" in card


def test_what_is_pulled_answers_as_what_was_pushed(pushed: HubServer, whole_bundle: Path, tmp_path: Path):
    """And has nothing that a stranger added on the way."""
    pushed.files["pytorch_model.bin"] = b"\x80 a pickle"
    done = command(pushed, tmp_path / "home", "pull", NAME, "--out", tmp_path / "bundle")
    del pushed.files["pytorch_model.bin"]
    assert done.returncode == 0, done.stderr
    assert answers(tmp_path / "bundle") == answers(whole_bundle)
    names = {
        file.relative_to(tmp_path / "bundle").as_posix() for file in (tmp_path / "bundle").rglob("*") if file.is_file()
    }
    assert names == pushed.files.keys() - {"README.md"}


def test_a_signature_goes_with_its_bundle_and_not_with_another(pushed: HubServer, whole_bundle: Path, tmp_path: Path):
    private, public = write_key(tmp_path)
    signed = copy_of(whole_bundle, tmp_path)
    build(signed, sign=private)
    done = command(pushed, tmp_path / "home", "push", signed, NAME)
    assert done.returncode == 0, done.stderr
    done = command(pushed, tmp_path / "home", "pull", NAME, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    Predictor.load(tmp_path / "bundle", verify=public).close()
    done = command(pushed, tmp_path / "home", "push", whole_bundle, NAME)
    assert done.returncode == 0 and "model.sig" not in pushed.files, done.stderr


def test_what_was_damaged_or_is_not_there_is_refused_and_leaves_nothing(pushed: HubServer, tmp_path: Path):
    name = next(name for name in pushed.files if name.endswith(".onnx"))
    whole = pushed.files[name]
    pushed.files[name] = whole[:-1] + b"x"
    done = command(pushed, tmp_path / "home", "pull", NAME, "--out", tmp_path / "bundle")
    pushed.files[name] = whole
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()[-1]) < 400
    assert "Error: " in done.stderr and "Traceback" not in done.stderr
    missing = command(pushed, tmp_path / "home", "pull", "someone/else", "--out", tmp_path / "bundle")
    assert missing.returncode == 2 and "someone/else: the hub did not give it" in missing.stderr
    assert {place.name for place in tmp_path.iterdir()} <= {"home"}
    (tmp_path / "there").mkdir()
    there = command(pushed, tmp_path / "home", "pull", NAME, "--out", tmp_path / "there")
    assert there.returncode == 2 and "exists; remove it" in there.stderr


def in_cache(bundle: Path, cache: Path) -> Path:
    """A bundle as the hub's client keeps it: links into `blobs`, by hash."""
    snapshot, blobs = cache / "models--someone--x" / "snapshots" / COMMIT, cache / "models--someone--x" / "blobs"
    blobs.mkdir(parents=True)
    for file in bundle.rglob("*"):
        if file.is_file() and file.name != ".lock":
            link, content = snapshot / file.relative_to(bundle), file.read_bytes()
            blob = blobs / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_bundle_in_the_hubs_cache_loads_though_all_of_it_is_links(
    pushed: HubServer, whole_bundle: Path, tmp_path: Path
):
    """As the client itself put it there."""
    code = f"from huggingface_hub import snapshot_download; print(snapshot_download({NAME!r}))"
    environment = os.environ | {"HF_ENDPOINT": pushed.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    snapshot = Path(done.stdout.strip())
    assert (snapshot / "manifest.json").is_symlink()
    for _ in range(2):
        assert answers(snapshot) == answers(whole_bundle)
    made = snapshot.parent.parent / "hadskip-export" / snapshot.name
    blob = (snapshot / "manifest.json").resolve()
    assert (made / "manifest.json").stat().st_ino == blob.stat().st_ino  # no second copy


def test_links_that_lead_elsewhere_or_a_changed_blob_are_refused(whole_bundle: Path, tmp_path: Path):
    snapshot = in_cache(whole_bundle, tmp_path / "a")
    link = snapshot / "golden" / "inputs.jsonl"
    link.unlink()
    link.symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="leads to no file of the hub's cache"):
        Predictor.load(snapshot)
    other = in_cache(whole_bundle, tmp_path / "b")
    (other / "golden" / "inputs.jsonl").resolve().write_text("changed")
    with pytest.raises(BundleError, match=r"inputs.jsonl"):
        Predictor.load(other)


def test_many_may_load_it_for_the_first_time_at_once(whole_bundle: Path, tmp_path: Path):
    snapshot = in_cache(whole_bundle, tmp_path)
    code = f"from hadskip_export.runtime import read_bundle; read_bundle({str(snapshot)!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(6)]
    assert [process.communicate()[1] for process in processes] == [""] * 6
    assert [process.returncode for process in processes] == [0] * 6


def test_the_card_says_what_the_bench_found(whole_bundle: Path, tmp_path: Path):
    row = {"engine": "ort", "precision": "fp32", "cut": "whole", "batch": 1, "layers_run": 2.5, "p50": 1.25,
           "full_p50_ms": 3.0, "speedup": 2.4, "seq": 12.0, "data": "dev.csv"}  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps({"environment": {"chip": "An EPYC"}, "rows": [row]}))
    card = push(whole_bundle, NAME, bench=tmp_path / "bench.json", dry_run=True).card
    assert "## Time on An EPYC" in card and "| ort-fp32-whole | 1 | 2.50 | 1.25 | 3.00 | 2.40 |" in card
    for change, why in (({"cut": "gates"}, "ort-fp32-gates, which this bundle has not"), ({"data": None}, "made-up")):
        (tmp_path / "bench.json").write_text(json.dumps({"environment": {}, "rows": [row | change]}))
        with pytest.raises(DataError, match=why):
            push(whole_bundle, NAME, bench=tmp_path / "bench.json", dry_run=True)
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(DataError, match="not what hadskip-export bench --json wrote"):
        push(whole_bundle, NAME, bench=tmp_path / "bench.json", dry_run=True)
