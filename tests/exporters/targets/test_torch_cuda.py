"""PyTorch's engine reads the bundle's fp32 tensors, whatever the precision and cut."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from hadskip_export.exporters.targets import target_of
from hadskip_export.exporters.targets.base import Material
from hadskip_export.exporters.weights import read_about, write_tensors
from hadskip_export.runtime import read_bundle
from hadskip_export.support.errors import EngineError
from tests.exporters.changing import CUTS, copy_of, files_of


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_nothing_is_written_for_it(bundle: Path, tmp_path: Path, precision: str, cut):
    mine = copy_of(bundle, tmp_path)
    before, manifest = files_of(mine), read_bundle(mine).manifest
    files = target_of("torch-cuda").build(
        Material(mine, manifest, precision, cut, f"torch-cuda-{precision}", "engines")
    )
    assert set(files.values()) == {manifest.weights}
    assert ("whole" in files) == (cut == "whole") and {"embeddings", "layer_04", "head", "full"} < set(files)
    assert files_of(mine) == before


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        ({"family": "roberta"}, "the family roberta"),
        ({"activation": "silu"}, "the activation silu"),
        ({"segments": "no"}, "a model without segments"),
    ],
    ids=["family", "activation", "segments"],
)
def test_a_model_that_it_has_no_code_for_is_refused_by_name(bundle: Path, change: dict[str, str], lack: str, tmp_path):
    mine = copy_of(bundle, tmp_path)
    manifest = read_bundle(mine).manifest
    file = mine / manifest.weights
    about = read_about(mine, manifest.weights) | change
    tensors = load_file(file)
    file.unlink()
    write_tensors(mine, file.stem, tensors, about)
    with pytest.raises(EngineError, match=f"no code for {lack}"):
        target_of("torch-cuda").build(Material(mine, manifest, "fp16", "whole", "torch-cuda-fp16", "engines"))
