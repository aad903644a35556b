"""PyTorch's engine reads the bundle's fp32 tensors, whatever the precision and cut."""

from pathlib import Path

import pytest

from hadskip_export.exporters.targets import target_of
from hadskip_export.exporters.targets.base import Material
from hadskip_export.runtime import read_bundle
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
