"""Nothing phones home: what works on local files looks up no host, and serving writes nothing into the home folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Python runs it when it starts, in every process that inherits the path; those that are forked are seen, too.
WATCH = """
import os, sys
watched = os.open(os.environ["WATCHED"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
calls = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
sys.addaudithook(lambda name, given: os.write(watched, f"{name} {given}\\n".encode()) if name in calls else None)
"""
# Not what a user's machine has: with any of these a library would keep silent of itself.
OF_THE_TESTS = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "JENKINS_URL")


def watched(tmp_path: Path, code: str, *arguments: str) -> tuple[str, list[str], str]:
    """Runs code in a process of its own whose home is new: what the network was asked, files in the home, output."""
    home, place, log = (tmp_path / name for name in ("home", "place", "log"))
    home.mkdir()
    place.mkdir()
    (place / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join(filter(None, [str(place), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {name: value for name, value in os.environ.items() if name not in OF_THE_TESTS}
    environment |= {"HOME": str(home), "PYTHONPATH": path, "WATCHED": str(log)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    files = [str(file.relative_to(home)) for file in home.rglob("*") if file.is_file()]
    return log.read_text(), files, done.stdout


def test_a_look_up_is_seen_in_a_forked_process_too(tmp_path: Path):
    code = "import os, socket; os.fork() or socket.getaddrinfo('127.0.0.1', 80)"
    assert "socket.getaddrinfo ('127.0.0.1', 80" in watched(tmp_path, code)[0]


SERVE = """
import sys, time
from hadskip_export.runtime import Predictor
with Predictor.load(sys.argv[1], engine=sys.argv[2]) as predictor:
    predictor(["a good film", "a plot"])
time.sleep(0.5)  # both libraries report from a thread of their own
"""


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_serving_asks_no_host_and_leaves_nothing_in_the_home(tmp_path: Path, openvino_bundle: Path, engine: str):
    pytest.importorskip("openvino")
    assert watched(tmp_path, SERVE, str(openvino_bundle), engine) == ("", [], "")


def test_an_application_may_let_them_report_for_itself(tmp_path: Path):
    pytest.importorskip("openvino_telemetry")
    code = """
import os, sys
from hadskip_export.support.errors import optional_import
if sys.argv[1]:
    os.environ["ORT_DISABLE_TELEMETRY"] = "0"
    import openvino_telemetry as theirs
before = dict(os.environ)
optional_import("onnxruntime", "ort")
optional_import("openvino", "openvino")
assert dict(os.environ) == before
import openvino_telemetry
print(openvino_telemetry.Telemetry.__name__, openvino_telemetry is globals().get("theirs", openvino_telemetry))
"""
    for first in ("", "theirs"):
        folder = tmp_path / f"first_{first}"
        folder.mkdir()
        assert watched(folder, code, first) == ("", [], "Telemetry True\n")


COMMANDS = """
import json, sys
from hadskip_export.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
"""


@pytest.mark.slow
def test_no_command_on_local_files_asks_a_host(tmp_path: Path, model_folder: Path, csv_files: tuple[Path, Path]):
    pytest.importorskip("openvino")
    run, bundle, (train, held_out) = tmp_path / "run", tmp_path / "bundle", csv_files
    quick = [f"--set={setting}" for setting in ("stage1_epochs=4", "stage1_lr=3e-3", "gate_width=8", "fit_steps=20")]
    commands = [
        ["train", "--model", model_folder, "--train", train, "--eval", held_out, "--budget", 2, "--out", run, *quick],
        ["build", run, "--out", bundle, "--engine", "ort"],
        ["build", bundle, "--engine", "openvino"],
        ["validate", bundle, "--engine", "openvino", "--data", held_out],
        ["calibrate", bundle, "--data", held_out, "--budget", 2],
        ["bench", bundle, "--data", held_out, "--batch", 40],
        ["predict", bundle, "a good film"],
        ["inspect", bundle],
        ["doctor"],
        ["estimate", "--model", "minilm", "--layers-run", 3, "--seq", 16],
    ]  # fmt: skip
    asked, written, _ = watched(tmp_path, COMMANDS, json.dumps([[str(word) for word in line] for line in commands]))
    assert asked == ""
    assert [file for file in written if "Microsoft" in file or "intel" in file] == []


@pytest.mark.parametrize("command", [["doctor"], ["inspect", "BUNDLE"], ["predict", "BUNDLE", "a good film"]], ids=str)
def test_whoever_has_no_home_can_work_all_the_same(bundle: Path, command: list[str]):
    environment = {name: value for name, value in os.environ.items() if name not in ("USER", "LOGNAME")}
    words = [str(bundle) if word == "BUNDLE" else word for word in command]
    code = "import sys; from hadskip_export.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False,
        env=environment | {"HOME": "/nonexistent"}, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout and "Traceback" not in done.stderr
