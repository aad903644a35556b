"""The tensors of a bundle, each once: safetensors files, and graphs that point into them.

Readers of ONNX refuse external data outside the folder of a graph. So the graphs of a bundle lie side by side in
`model/`, and the files of tensors in `model/weights/`. `fp32.safetensors` has the model's parameters by their names,
full BERT's under `full.`; a precision that has tensors of its own, such as int8, has a file of its own for these alone.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.runtime.manifest import ABOUT, MODEL, WEIGHTS
from hadskip_export.support.errors import EngineError, optional_import

SMALL = 1024  # bytes; a tensor below that which is no parameter stays inside its graph
DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8, "I64": np.int64}
_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True)
class Place:
    """Bytes of a file of tensors. `location`: the file, as graphs in `model/` name it."""

    location: str
    offset: int
    length: int

    def part(self, start: int, length: int) -> "Place":
        """So many bytes of it, from `start` on."""
        return Place(self.location, self.offset + start, length)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    place: Place
    dtype: np.dtype
    shape: tuple[int, ...]


def write_tensors(bundle: Path, name: str, tensors: Mapping[str, np.ndarray], about: dict[str, str]) -> str:
    """Writes `model/weights/<name>.safetensors` and returns its path in the bundle, which no other file has: a number
    is added to the name where there is one. `about` becomes its metadata, as JSON under one name: the library writes
    several in any order, and equal bundles are to have equal bytes."""
    safetensors: Any = optional_import("safetensors.numpy", "build")
    folder = bundle / WEIGHTS
    folder.mkdir(parents=True, exist_ok=True)
    file = free_name(folder, name, ".safetensors")
    metadata = {ABOUT: json.dumps(about, sort_keys=True)} if about else None
    file.touch()
    mode = file.stat().st_mode
    safetensors.save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, file, metadata)
    file.chmod(mode)  # the library writes for its owner alone, and another user may be the one who serves
    return file.relative_to(bundle).as_posix()


def read_places(bundle: Path, file: str) -> dict[str, Stored]:
    """Where the tensors of a file in the bundle lie, by name (https://github.com/huggingface/safetensors, Format)."""
    size, header = _header(bundle / file)
    header.pop("__metadata__", None)
    location, found = Path(file).relative_to(MODEL).as_posix(), {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        place = Place(location, 8 + size + start, end - start)
        found[name] = Stored(place, np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]))
    return found


def read_about(bundle: Path, file: str) -> dict[str, str]:
    """What `write_tensors` was told about them."""
    return json.loads(_header(bundle / file)[1]["__metadata__"][ABOUT])


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Its length in bytes, and what it says."""
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        return size, json.loads(handle.read(size))


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """`stem` and suffix, or with a number: what somebody serves is never written over."""
    number, file = 1, folder / f"{stem}{suffix}"
    while file.exists():
        number += 1
        file = folder / f"{stem}-{number}{suffix}"
    return file


# Tensors of graphs


def tensors_of(graph: Any) -> Iterator[Any]:
    """The initializers of a graph and of its branches."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from tensors_of(attribute.g)


def point(tensor: Any, place: Place) -> None:
    """Makes a tensor of a graph one that lies in a file."""
    onnx: Any = optional_import("onnx", "build")
    for name in _DATA_FIELDS:
        tensor.ClearField(name)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(getattr(place, key))


def place_of(tensor: Any) -> Place | None:
    """Where a tensor lies; None where its graph has it."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Place(entries["location"], int(entries["offset"]), int(entries["length"])) if entries else None


def content_of(tensor: Any, bundle: Path) -> np.ndarray:
    """A tensor's values, wherever they lie."""
    onnx: Any = optional_import("onnx", "build")
    return onnx.numpy_helper.to_array(tensor, base_dir=str(bundle / MODEL))


def rows_of(tensor: Any, rows: slice, name: str, bundle: Path) -> Any:
    """The rows of a tensor along its first axis as a tensor of its own, which points to where they lie already."""
    onnx: Any = optional_import("onnx", "build")
    start, stop, _ = rows.indices(tensor.dims[0])
    place = place_of(tensor)
    if place is None:
        return onnx.numpy_helper.from_array(np.ascontiguousarray(content_of(tensor, bundle)[rows]), name)
    part = onnx.TensorProto(name=name, data_type=tensor.data_type, dims=[stop - start, *tensor.dims[1:]])
    row = place.length // tensor.dims[0]
    point(part, place.part(start * row, (stop - start) * row))
    return part


@dataclass
class OwnTensors:
    """What graphs of an engine hold that no file of the bundle has yet, to be written as one more file.

    Args:
        bundle: its folder.
        name: of the file, without suffix.
    """

    bundle: Path
    name: str
    _known: dict[bytes, Place] = field(default_factory=dict)  # content -> where it lies
    _new: dict[str, np.ndarray] = field(default_factory=dict)
    _names: dict[bytes, str] = field(default_factory=dict)  # content -> its name among the new ones
    _waiting: list[tuple[Any, str]] = field(default_factory=list)  # tensors of graphs, and what they will point to

    def __post_init__(self) -> None:
        for file in sorted((self.bundle / WEIGHTS).glob("*.safetensors")):
            content = np.memmap(file, np.uint8, "r")
            for stored in read_places(self.bundle, file.relative_to(self.bundle).as_posix()).values():
                place = stored.place
                array = content[place.offset : place.offset + place.length].view(stored.dtype).reshape(stored.shape)
                self._known.setdefault(_digest(array), place)

    def take(self, model: Any, piece: str) -> None:
        """Takes the larger tensors out of a graph: it will point to where they lie, once `write` is done.

        Raises:
            EngineError: a tensor of a type that the files do not have.
        """
        onnx: Any = optional_import("onnx", "build")
        for tensor in tensors_of(model.graph):
            if tensor.external_data:
                continue
            array = onnx.numpy_helper.to_array(tensor)
            if array.nbytes < SMALL:
                continue
            digest = _digest(array)
            if digest in self._known:
                point(tensor, self._known[digest])
                continue
            if array.dtype not in map(np.dtype, DTYPES.values()):
                raise EngineError(f"{piece}: {tensor.name} is {array.dtype}, which a bundle's weights have no room for")
            name = self._names.setdefault(digest, f"{piece}.{tensor.name}")
            self._new[name] = array
            self._waiting.append((tensor, name))
            for data in _DATA_FIELDS:
                tensor.ClearField(data)

    def write(self) -> None:
        """Writes the file, if there is anything to write, and points the graphs to it."""
        if not self._new:
            return
        places = read_places(self.bundle, write_tensors(self.bundle, self.name, self._new, {}))
        for tensor, name in self._waiting:
            point(tensor, places[name].place)
        self._known |= {digest: places[name].place for digest, name in self._names.items()}
        self._new, self._names, self._waiting = {}, {}, []


def _digest(array: np.ndarray) -> bytes:
    about = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=20, key=about[:64]).digest()


def place_graph(bundle: Path, model: Any, stem: str) -> str:
    """Writes a graph into `model/` and returns its path in the bundle. A file of the same content is taken as it is,
    and one of another content is not written over."""
    folder, content = bundle / MODEL, model.SerializeToString(deterministic=True)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}.onnx"
    if not file.is_file() or file.read_bytes() != content:
        file = free_name(folder, stem, ".onnx")
        file.write_bytes(content)
    return file.relative_to(bundle).as_posix()
