"""A bundle may come from anybody: whatever it is made of, it is refused in one line, soon and without much memory."""

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hadskip_export.runtime.bundle import DIGEST, MANIFEST
from tests.runtime.editing import change_manifest, copy_of, rehash, set_value, write_manifest

SECONDS = 60  # generous: on a busy machine Python alone takes some to start
BYTES = 2 << 30  # of address space
WEIGHTS, PIECE = "model/weights/fp32.safetensors", "model/layer_02.onnx"

READ = """
import sys
from hadskip_export.runtime.bundle import read_bundle
from hadskip_export.support.errors import BundleError
try:
    read_bundle(sys.argv[1])
except BundleError as error:
    print(error)
"""


def refusal(bundle: Path) -> str:
    """What a process of its own, with little time and memory, says of a bundle."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(bundle)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_sound_bundle_is_read_in_so_little(bundle: Path):
    assert refusal(bundle) == ""


def in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / name).unlink()
        make(bundle / name)

    return change


def sparse(size: int) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        with file.open("wb") as handle:
            handle.truncate(size)

    return make


def bind(file: Path) -> None:
    with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as made:  # a socket's whole path must be short
        made.bind(file.name)


THINGS = {
    "pipe": os.mkfifo,
    "socket": bind,
    "folder": Path.mkdir,
    "device": lambda file: file.symlink_to("/dev/zero"),
    "nothing": lambda file: None,
    "link to itself": lambda file: file.symlink_to(file),
}


@pytest.mark.parametrize(
    "name",
    [MANIFEST, WEIGHTS]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in (DIGEST, PIECE, "golden/outputs.npz", "model/tokenizer.json")
    ],
)
@pytest.mark.parametrize("thing", THINGS)
def test_what_stands_in_the_place_of_a_file_is_not_waited_for(bundle: Path, tmp_path: Path, thing: str, name: str):
    copy = copy_of(bundle, tmp_path)
    in_place_of(name, THINGS[thing])(copy)
    message = refusal(copy)
    assert str(copy) in message and message.count("\n") == 1
    if thing == "pipe":
        assert "not a regular file" in message and Path(name).name in message


def manifest_is(content: bytes) -> Callable[[Path], None]:
    return lambda bundle: write_manifest(bundle, content)


def says(*path, value) -> Callable[[Path], None]:
    return lambda bundle: change_manifest(bundle, set_value(*path, value=value))


def without_gates(layers: int) -> Callable[[Path], None]:
    def change(plain: dict) -> None:
        plain["model"]["layers"] = layers
        plain["router"] = {"kind": "static", "route": [1]}
        plain["points"][0]["thresholds"] = []

    return lambda bundle: change_manifest(bundle, change)


def a_terabyte_of_weights(bundle: Path) -> None:
    in_place_of(WEIGHTS, sparse(1 << 40))(bundle)
    change_manifest(bundle, set_value("files", WEIGHTS, "size", value=1 << 40))


def one_file_many_times(bundle: Path) -> None:
    """Under a name of its own each time, as file systems have it."""
    sparse(8 << 30)(bundle / "large")
    change_manifest(
        bundle,
        lambda plain: plain["files"].update({f"{'./' * n}large": {"size": 8 << 30, "sha256": ""} for n in range(300)}),
    )


ABSURD = {
    "300,000,000 layers": (says("model", "layers", value=300_000_000), "tolerance for each gate"),
    "300,000,000 layers, one on the route": (without_gates(300_000_000), "tolerance for each gate"),
    "2^70 layers": (says("model", "layers", value=2**70), MANIFEST),
    "2^70 tokens": (says("model", "max_length", value=2**70), "sizes"),
    "2^40 segments": (says("model", "type_vocab_size", value=2**40), "sizes"),
    "-1 words": (says("model", "vocab_size", value=-1), "sizes"),
    "no hidden size": (says("model", "hidden_size", value=0), "sizes"),
    "a budget below 0": (
        lambda bundle: change_manifest(
            bundle, lambda plain: (plain["points"][0].update(budget=-1), plain.update(default_budget=-1))
        ),
        "budgets",
    ),
    "a digit a byte": (manifest_is(b'{"format": ' + b"9" * 1_000_000 + b"}"), MANIFEST),
    "NaN": (manifest_is(b'{"format": NaN}'), MANIFEST),
    "infinity": (manifest_is(b'{"format": 1e999}'), MANIFEST),
    "deep": (manifest_is(b'{"format": ' + b"[" * 1_000_000), MANIFEST),
    "deep, beside the format": (manifest_is(b'{"format": 2, "x": ' + b'{"x":' * 500_000), MANIFEST),
    "half a character": (manifest_is(b'{"format": "\\ud800"}'), MANIFEST),
    "a manifest of a gigabyte": (in_place_of(MANIFEST, sparse(1 << 30)), "1,073,741,824 bytes"),
    "digests of a gigabyte": (in_place_of(DIGEST, sparse(1 << 30)), "1,073,741,824 bytes"),
    "a million digests": (
        in_place_of(DIGEST, lambda file: file.write_text(f"{'0' * 64}\n" * 1_000_000)),
        "65,000,000 bytes",
    ),
    "weights of a terabyte": (a_terabyte_of_weights, "bytes in files"),
    "one file many times": (one_file_many_times, "bytes in files"),
    "a size below 0": (says("files", WEIGHTS, "size", value=-1), "the manifest says -1"),
    "a size of 2^70": (says("files", WEIGHTS, "size", value=2**70), "the manifest says"),
    "an engine's folder is the machine": (says("engines", 0, "folder", value="/"), "outside engines/"),
    "an engine's folder is above": (says("engines", 0, "folder", value="engines/../.."), "leaves the bundle"),
}


@pytest.mark.parametrize("what", ABSURD)
def test_absurd_numbers_and_sizes_are_refused(bundle: Path, tmp_path: Path, what: str):
    copy = copy_of(bundle, tmp_path)
    change, told = ABSURD[what]
    change(copy)
    message = refusal(copy)
    assert told in message and str(copy) in message and message.count("\n") == 1


@pytest.mark.parametrize(
    "change",
    [
        says("files", "x" * 1_000_000, value={"size": 1, "sha256": ""}),
        says("engines", 0, "files", "head", value="y" * 1_000_000),
        says("router", "kind", value="z" * 1_000_000),
        says("format", value="w" * 1_000_000),
        says("model", "inputs", value=["v" * 1_000_000]),
        says("engines", 0, "folder", value="../" * 300_000),
    ],
)
def test_a_value_of_a_megabyte_is_not_quoted_whole(bundle: Path, tmp_path: Path, change):
    copy = copy_of(bundle, tmp_path)
    change(copy)
    message = refusal(copy)
    assert message.startswith(str(copy)) and message.count("\n") == 1
    assert len(message) < 2100


@pytest.mark.parametrize(
    ("piece", "other"),
    [
        ("gate_01", "gates"), ("gate_02", "head"), ("layer_02", "embeddings"), ("layer_01", "gate_01"),
        ("embeddings", "layer_01"), ("head", "full"), ("full", "head"), ("full", "embeddings"),
    ],
)  # fmt: skip
def test_a_piece_that_is_another_one_is_refused(bundle: Path, tmp_path: Path, piece: str, other: str):
    copy = copy_of(bundle, tmp_path)
    shutil.copyfile(copy / f"model/{other}.onnx", copy / f"model/{piece}.onnx")
    rehash(copy)
    message = refusal(copy)
    assert f"{piece}.onnx: takes " in message and f"not what {piece} does" in message


def test_an_engine_s_own_whole_graph_that_is_another_one_is_refused(whole_bundle: Path, tmp_path: Path):
    copy = copy_of(whole_bundle, tmp_path)
    shutil.copyfile(copy / "model/full.onnx", copy / "model/model.onnx")
    rehash(copy)
    assert "not what whole does" in refusal(copy)


def test_a_manifest_that_names_an_engine_s_file_as_another_piece_is_refused(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    says("engines", 0, "files", "gate_02", value="model/gates.onnx")(copy)
    assert "not what gate_02 does" in refusal(copy)
