"""`external_data_files` against the onnx library, which knows every place a tensor can hide in."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hadskip_export.runtime.onnx_files import external_data_files
from hadskip_export.support.errors import BundleError
from tests.runtime.editing import Refusal, outcome

FLOAT = TensorProto.FLOAT


def tensor(name: str, location: str | None = None) -> TensorProto:
    """A tensor of three floats, inside the model or in the file `location`."""
    made = numpy_helper.from_array(np.arange(3, dtype=np.float32), name)
    if location is not None:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("offset", "0"), ("location", location), ("length", "12")):
            made.external_data.add(key=key, value=value)
    return made


def sparse(name: str, values: str | None, indices: str | None) -> onnx.SparseTensorProto:
    made = onnx.SparseTensorProto(dims=[9])
    made.values.CopyFrom(tensor(name, values))
    made.indices.CopyFrom(tensor(f"{name}_indices", indices))
    return made


def graph(name: str, nodes=(), initializers=()) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", FLOAT, [3])
    return helper.make_graph(list(nodes), name, [], [output], initializer=list(initializers))


def constant(output: str, location: str | None = None) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=tensor("", location))


def if_node(then_branch: onnx.GraphProto, else_branch: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["condition"], ["y"], then_branch=then_branch, else_branch=else_branch)


def in_initializers() -> onnx.ModelProto:
    return helper.make_model(graph("g", initializers=[tensor("a", "a.bin"), tensor("b"), tensor("c", "../c.bin")]))


def in_node_attributes() -> onnx.ModelProto:
    several = helper.make_node("Custom", [], ["z"], domain="d", tensors=[tensor("p"), tensor("q", "/etc/passwd")])
    return helper.make_model(graph("g", nodes=[constant("y", "constant.bin"), several]))


def in_subgraphs() -> onnx.ModelProto:
    inner = if_node(graph("deep", [constant("y", "deep.bin")]), graph("plain", [constant("y")]))
    outer = if_node(graph("then", [inner]), graph("else", initializers=[tensor("w", "else.bin")]))
    listed = helper.make_node(
        "Custom", [], ["z"], domain="d", graphs=[graph("one"), graph("two", [constant("y", "two.bin")])]
    )
    return helper.make_model(graph("g", [outer, listed]))


def in_functions() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 20)]
    default = helper.make_attribute("default", tensor("d", "default.bin"))
    function = helper.make_function(
        "local", "F", [], ["y"], [constant("y", "function.bin")], opsets, attribute_protos=[default]
    )
    return helper.make_model(graph("g", [helper.make_node("F", [], ["y"], domain="local")]), functions=[function])


def in_sparse_tensors() -> onnx.ModelProto:
    made = graph(
        "g", [helper.make_node("Constant", [], ["y"], sparse_value=sparse("s", None, "attribute_indices.bin"))]
    )
    made.sparse_initializer.append(sparse("t", "values.bin", "indices.bin"))
    listed = made.node.add(op_type="Custom", domain="d", output=["z"]).attribute.add(
        name="list", type=onnx.AttributeProto.SPARSE_TENSORS
    )
    listed.sparse_tensors.append(sparse("u", "listed.bin", None))
    return helper.make_model(made)


def in_training_info() -> onnx.ModelProto:
    made = helper.make_model(graph("g"))
    made.training_info.append(
        helper.make_training_info(
            algorithm=graph("algorithm", [constant("y", "algorithm.bin")]),
            algorithm_bindings=[],
            initialization=graph("start", initializers=[tensor("w", "start.bin")]),
            initialization_bindings=[],
        )
    )
    return made


def nothing_outside() -> onnx.ModelProto:
    return helper.make_model(graph("g", [constant("y"), if_node(graph("a"), graph("b"))], [tensor("external_data")]))


MODELS = [
    in_initializers, in_node_attributes, in_subgraphs, in_functions, in_sparse_tensors, in_training_info,
    nothing_outside,
]  # fmt: skip


def tensors(message) -> Iterator[TensorProto]:
    """Every tensor anywhere inside a protobuf message, by protobuf's own reflection."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if hasattr(value, "__len__") else [value]:
                yield from tensors(part)


def oracle(model: onnx.ModelProto) -> set[str]:
    return {
        entry.value
        for found in tensors(model)
        if onnx.external_data_helper.uses_external_data(found)
        for entry in found.external_data
        if entry.key == "location"
    }


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_finds_what_onnx_finds(make, tmp_path: Path):
    model = make()
    expected = oracle(model)
    assert bool(expected) == (make is not nothing_outside)
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    assert external_data_files(file) == expected


def test_finds_what_onnx_itself_puts_outside(tmp_path: Path):
    weights = numpy_helper.from_array(np.zeros(5000, np.float32), "w")
    model = helper.make_model(graph("g", [constant("y")], [weights]))
    onnx.save(model, tmp_path / "one.onnx", save_as_external_data=True, location="all.bin")
    assert external_data_files(tmp_path / "one.onnx") == {"all.bin"}


def test_a_real_piece_refers_to_nothing(bundle: Path):
    assert [external_data_files(piece) for piece in (bundle / "pieces").iterdir()] == [set()] * 12


def test_the_last_of_two_values_counts_as_in_protobuf(tmp_path: Path):
    """A location is found even if the entry's fields come twice or in the other order; protobuf takes the last."""
    file = tmp_path / "model.onnx"
    model = helper.make_model(graph("g", initializers=[tensor("w", "AAAAAAAA")]))
    entry = b"\x0a\x08location\x12\x08AAAAAAAA"
    twice = b"\x12\x02xx\x12\x04BBBB\x0a\x08location"
    assert len(entry) == len(twice)
    content = model.SerializeToString()
    assert content.count(entry) == 1
    file.write_bytes(content.replace(entry, twice))
    assert external_data_files(file) == oracle(onnx.load(file, load_external_data=False)) == {"BBBB"}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(make=st.sampled_from(MODELS), data=st.data())
def test_a_truncated_file_is_read_as_protobuf_would_or_refused(make, data, tmp_path: Path):
    content = make().SerializeToString()
    part = content[: data.draw(st.integers(0, len(content) - 1))]
    file = tmp_path / "model.onnx"
    file.write_bytes(part)
    found = outcome(external_data_files, file)
    if isinstance(found, Refusal):
        assert str(file) in found
    else:  # cut between two fields: what is left is a whole message
        assert found == oracle(onnx.ModelProto.FromString(part))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(make=st.sampled_from(MODELS), data=st.data())
def test_an_altered_file_never_hides_a_location_from_us_that_onnx_sees(make, data, tmp_path: Path):
    content = bytearray(make().SerializeToString())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    try:
        theirs = oracle(onnx.ModelProto.FromString(bytes(content)))
    except Exception:  # protobuf cannot read it either
        theirs = set()
    found = outcome(external_data_files, file)
    assert isinstance(found, Refusal) or theirs <= found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_junk_gives_names_or_a_bundle_error(tmp_path: Path, junk: bytes):
    file = tmp_path / "model.onnx"
    file.write_bytes(junk)
    found = outcome(external_data_files, file)
    assert str(file) in found if isinstance(found, Refusal) else all(isinstance(name, str) for name in found)


@pytest.mark.parametrize("content", [b"", b"this is a text, not a model", b"\xff" * 100, b"PK\x03\x04 a zip file"])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path):
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        external_data_files(file)


def nested(depth: int) -> bytes:
    """A constant with a tensor outside the file, below `depth` graphs each inside the other; protobuf wire format."""
    content = graph("innermost", [constant("y", "deep.bin")]).SerializeToString()
    for _ in range(depth):
        for tag in (0x32, 0x2A, 0x0A):  # attribute.g = 6, node.attribute = 5, graph.node = 1
            content = bytes([tag]) + varint(len(content)) + content
    return b"\x3a" + varint(len(content)) + content  # model.graph = 7


def varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def test_deep_nesting_is_followed(tmp_path: Path):
    file = tmp_path / "model.onnx"
    file.write_bytes(nested(20))
    assert external_data_files(file) == oracle(onnx.load(file, load_external_data=False)) == {"deep.bin"}


def test_nesting_without_end_is_refused(tmp_path: Path):
    file = tmp_path / "model.onnx"
    file.write_bytes(nested(5000))
    with pytest.raises(BundleError, match=r"model\.onnx"):
        external_data_files(file)
