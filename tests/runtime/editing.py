"""Changes to copies of bundles, with the digests made right again where a test wants to get past them; outcomes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
from onnx import numpy_helper

from hadskip_export.runtime.bundle import DIGEST, MANIFEST, Manifest, seal
from hadskip_export.support.errors import HadskipError


def outcome(action: Callable[..., Any], *arguments: Any) -> Any:
    """What `action` returns, or the message of the `HadskipError` it raises, which must be one line, as a `Refusal`."""
    try:
        return action(*arguments)
    except HadskipError as error:
        message = str(error)
    assert "\n" not in message
    return Refusal(message)


class Refusal(str):
    """The message of an error."""


def copy_of(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "copy"))


def write_manifest(bundle: Path, content: bytes) -> None:
    """Writes manifest.json with a digest that fits."""
    (bundle / MANIFEST).write_bytes(content)
    (bundle / DIGEST).write_text(hashlib.sha256(content).hexdigest() + "\n")


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edits the manifest as plain data."""
    plain = json.loads((bundle / MANIFEST).read_bytes())
    change(plain)
    write_manifest(bundle, json.dumps(plain).encode())


def reseal(bundle: Path) -> None:
    """Lists the files of the bundle as they are now."""
    seal(bundle, msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest))


def change_piece(bundle: Path, piece: str, change: Callable[[onnx.ModelProto], Any]) -> None:
    """Rewrites one piece and reseals the bundle."""
    file = bundle / "pieces" / f"{piece}.onnx"
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    reseal(bundle)


def add_to_weights(amount: float) -> Callable[[onnx.ModelProto], None]:
    """Adds `amount` to one element of every floating-point weight of a piece (NaN makes that element NaN)."""

    def change(model: onnx.ModelProto) -> None:
        changed = 0
        for initializer in model.graph.initializer:
            if initializer.data_type == onnx.TensorProto.FLOAT and len(initializer.dims):
                values = numpy_helper.to_array(initializer).copy()
                values.reshape(-1)[0] += amount
                initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
                changed += 1
        assert changed

    return change
