"""Changes to copies of bundles, with the digests made right again where a test wants to get past them; outcomes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import numpy_helper

from hadskip_export.exporters.seal import seal
from hadskip_export.runtime.bundle import DIGEST, MANIFEST, read_bundle
from hadskip_export.runtime.integrity import sha256
from hadskip_export.runtime.manifest import Manifest
from hadskip_export.support.errors import BundleError, HadskipError


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


def rehash(bundle: Path) -> None:
    """Makes sizes and digests of the listed files right, and lists no other."""

    def change(plain: dict[str, Any]) -> None:
        for name, info in plain["files"].items():
            info.update(size=(bundle / name).stat().st_size, sha256=sha256(bundle / name))

    change_manifest(bundle, change)


def piece_file(bundle: Path, piece: str) -> Path:
    """The fp32 graph of a piece."""
    return bundle / "model" / f"{piece}.onnx"


def piece_files(bundle: Path) -> dict[str, Path]:
    """All of them, by piece."""
    plain = json.loads((bundle / MANIFEST).read_bytes())
    return {piece: bundle / file for piece, file in plain["pieces"].items()}


def change_piece(bundle: Path, piece: str, change: Callable[[onnx.ModelProto], Any]) -> None:
    """Rewrites one piece, which holds its tensors from then on, and reseals the bundle."""
    file = piece_file(bundle, piece)
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


def refused(bundle: Path, *names: str) -> str:
    """Checks that reading the bundle is refused in one line that has all of `names`; returns the line."""
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    message = str(caught.value)
    assert "\n" not in message
    for name in (str(bundle), *names):
        assert name in message
    return message


def set_value(*path, value: Any) -> Callable[[Any], None]:
    """A change of plain data: the value at `path`."""

    def change(plain: Any) -> None:
        for key in path[:-1]:
            plain = plain[key]
        plain[path[-1]] = value

    return change
