"""What is written for Triton; whether Triton understands it is tests/triton's."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from hadskip_export import triton
from hadskip_export.cli import main
from hadskip_export.runtime.bundle import MANIFEST, read_bundle
from tests.exporters.changing import copy_of
from tests.runtime.editing import change_manifest, outcome, rehash


def test_a_model_is_added_beside_others_with_a_bundle_that_loads(bundle: Path, tmp_path: Path):
    models = tmp_path / "models"
    first = triton(bundle, models, name="first")
    done = CliRunner().invoke(main, ["triton", str(bundle), "--out", str(models), "--name", "second"])
    assert done.stdout == f"written: {models / 'second'}\n"
    assert {file.name for file in models.iterdir()} == {"first", "second"}
    copied = read_bundle(first / "1" / "bundle")
    assert copied.manifest == read_bundle(bundle).manifest
    listed = {"manifest.json", "manifest.sha256", *copied.manifest.files}
    assert {f.relative_to(copied.path).as_posix() for f in copied.path.rglob("*") if f.is_file()} == listed


def test_it_is_replaced_only_if_asked_and_only_if_it_is_ours(bundle: Path, tmp_path: Path):
    model = triton(bundle, tmp_path, name="model", max_batch=8)
    assert "exists already" in outcome(lambda: triton(bundle, tmp_path, name="model"))
    triton(bundle, tmp_path, name="model", max_batch=16, force=True)
    assert "max_batch_size: 16" in (model / "config.pbtxt").read_text()
    (model / "1" / "bundle" / MANIFEST).unlink()
    assert "not a model that this command wrote" in outcome(lambda: triton(bundle, tmp_path, name="model", force=True))


REFUSED = {
    "--name 'a/b'": {"name": "a/b"},
    "--name '..'": {"name": ".."},
    "budget 9": {"budget": 9},
    "there are no gates to ask": {"budget": 2, "router": "full"},
    "--max-batch=0": {"max_batch": 0},
    "--threads=0": {"threads": 0},
    "has no engine": {"engine": "openvino"},
    "router='dice'": {"router": "dice"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_triton_would_find_out_later_is_refused(bundle: Path, tmp_path: Path, message: str):
    options = {"name": "model"} | REFUSED[message]
    assert message in outcome(lambda: triton(bundle, tmp_path / "models", **options))
    assert not (tmp_path / "models").exists()


def test_an_engine_that_failed_its_check_is_refused(bundle: Path, tmp_path: Path):
    mine = copy_of(bundle, tmp_path)
    change_manifest(mine, lambda plain: plain["engines"][0].update(parity="failed", first_bad_piece="head"))
    assert "failed its parity check" in outcome(lambda: triton(mine, tmp_path / "models", name="model"))


def test_a_label_of_two_lines_is_refused(bundle: Path, tmp_path: Path):
    mine = copy_of(bundle, tmp_path)
    change_manifest(mine, lambda plain: plain["model"].update(labels=["no", "yes\nor so"]))
    rehash(mine)
    assert "a label of several lines" in outcome(lambda: triton(mine, tmp_path / "models", name="model"))
