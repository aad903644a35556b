"""Graphs and tensors of bundles, read and changed by `onnx` and `safetensors` alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hadskip_export.exporters.seal import seal
from hadskip_export.runtime.bundle import MANIFEST
from hadskip_export.runtime.engines import Cut
from hadskip_export.runtime.manifest import Manifest

CUTS: tuple[Cut, ...] = ("gates", "layers", "whole")
WEIGHTS = "model/weights/fp32.safetensors"


def copy_of(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "copy"))


def reseal(bundle: Path, change: Callable[[dict[str, Any]], Any] = lambda plain: None) -> None:
    """Changes the manifest as plain data and lists the files as they are now."""
    plain = json.loads((bundle / MANIFEST).read_bytes())
    change(plain)
    seal(bundle, msgspec.convert(plain, Manifest))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if name != ".lock"}


def run(file: Path, feed: dict[str, np.ndarray], names: list[str] | None = None) -> list[np.ndarray]:
    """What ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(names, feed)


def saved(model: onnx.ModelProto, bundle: Path, name: str = "tried.onnx") -> Path:
    """Writes a graph where its tensors are found."""
    file = bundle / "model" / name
    file.write_bytes(model.SerializeToString())
    return file


def initializers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Of a graph and its branches."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += initializers(attribute.g)
    return found


def change_graph(file: Path, change: Callable[[onnx.ModelProto], Any]) -> None:
    """Rewrites one graph, its tensors from then on inside it, and reseals the bundle, if it is in one."""
    model = onnx.load(file)  # with its tensors
    change(model)
    file.unlink()  # it may be a link
    file.write_bytes(model.SerializeToString())
    reseal(file.parents[1])


def change_tensors(bundle: Path, change: Callable[[dict[str, np.ndarray]], Any], file: str = WEIGHTS) -> None:
    """Rewrites a file of tensors, whose places stay, and reseals the bundle."""
    with safe_open(bundle / file, "np") as opened:
        about = opened.metadata()
    tensors = {name: array.copy() for name, array in load_file(bundle / file).items()}
    before = (bundle / file).stat().st_size
    change(tensors)
    save_file(tensors, bundle / file, about)
    assert (bundle / file).stat().st_size == before
    reseal(bundle)


def add_to_weights(amount: float, starting: str = "") -> Callable[[onnx.ModelProto], None]:
    """Adds `amount` to one element of every floating-point weight whose name starts so; NaN makes it NaN."""

    def change(model: onnx.ModelProto) -> None:
        changed = 0
        for tensor in initializers(model.graph):
            if (
                tensor.data_type == onnx.TensorProto.FLOAT
                and len(tensor.dims)
                and tensor.name.startswith(starting)
                and "/one" not in tensor.name  # where a whole graph writes down that a layer ran
                and tensor.name not in ("gate_thresholds", "ran_0")
            ):
                values = onnx.numpy_helper.to_array(tensor).copy()
                values.reshape(-1)[0] += amount
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
                changed += 1
        assert changed

    return change
