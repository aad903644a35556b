"""What an ONNX file says of itself, held against the onnx library, which knows every place a tensor can hide in."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hadskip_export.runtime.graphs import WALK, read_graph
from hadskip_export.support.errors import BundleError
from tests.runtime.editing import Refusal, outcome, piece_files
from tests.runtime.wire import Writer, oracle, varint

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


def locations_in(file: Path) -> frozenset[str]:
    return read_graph(file).locations


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_finds_what_onnx_finds(make, tmp_path: Path):
    model = make()
    expected = oracle(model)
    assert bool(expected) == (make is not nothing_outside)
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    assert read_graph(file).locations == expected


def test_finds_what_onnx_itself_puts_outside(tmp_path: Path):
    weights = numpy_helper.from_array(np.zeros(5000, np.float32), "w")
    model = helper.make_model(graph("g", [constant("y")], [weights]))
    onnx.save(model, tmp_path / "one.onnx", save_as_external_data=True, location="all.bin")
    assert read_graph(tmp_path / "one.onnx").locations == {"all.bin"}


def test_real_graphs_refer_to_the_file_of_weights_alone(whole_bundle: Path):
    graphs = [*piece_files(whole_bundle).values(), whole_bundle / "model" / "model.onnx"]
    assert [read_graph(graph).locations for graph in graphs] == [{"weights/fp32.safetensors"}] * 13


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
    assert read_graph(file).locations == oracle(onnx.load(file, load_external_data=False)) == {"BBBB"}


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(make=st.sampled_from(MODELS), data=st.data())
def test_a_truncated_file_is_read_as_protobuf_would_or_refused(make, data, tmp_path: Path):
    content = make().SerializeToString()
    part = content[: data.draw(st.integers(0, len(content) - 1))]
    file = tmp_path / "model.onnx"
    file.write_bytes(part)
    found = outcome(locations_in, file)
    if isinstance(found, Refusal):
        assert str(file) in found
    else:  # cut between two fields: what is left is a whole message
        assert found == oracle(onnx.ModelProto.FromString(part))


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    found = outcome(locations_in, file)
    assert isinstance(found, Refusal) or theirs <= found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_junk_gives_names_or_a_bundle_error(tmp_path: Path, junk: bytes):
    file = tmp_path / "model.onnx"
    file.write_bytes(junk)
    found = outcome(locations_in, file)
    assert str(file) in found if isinstance(found, Refusal) else all(isinstance(name, str) for name in found)


@pytest.mark.parametrize("content", [b"", b"this is a text, not a model", b"\xff" * 100, b"PK\x03\x04 a zip file"])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path):
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        read_graph(file)


def nested(depth: int) -> bytes:
    """A constant with a tensor outside the file, below `depth` graphs each inside the other; protobuf wire format."""
    content = graph("innermost", [constant("y", "deep.bin")]).SerializeToString()
    for _ in range(depth):
        for tag in (0x32, 0x2A, 0x0A):  # attribute.g = 6, node.attribute = 5, graph.node = 1
            content = bytes([tag]) + varint(len(content)) + content
    return b"\x3a" + varint(len(content)) + content  # model.graph = 7


def test_deep_nesting_is_followed(tmp_path: Path):
    file = tmp_path / "model.onnx"
    file.write_bytes(nested(20))
    assert read_graph(file).locations == oracle(onnx.load(file, load_external_data=False)) == {"deep.bin"}


def test_nesting_without_end_is_refused(tmp_path: Path):
    file = tmp_path / "model.onnx"
    file.write_bytes(nested(5000))
    with pytest.raises(BundleError, match=r"model\.onnx"):
        read_graph(file)


def test_a_graph_of_more_fields_than_it_may_have_is_refused(tmp_path: Path):
    file = tmp_path / "model.onnx"
    file.write_bytes(in_subgraphs().SerializeToString())
    fields = read_graph(file).fields
    assert read_graph(file, fields) == read_graph(file)
    with pytest.raises(BundleError, match=f"more than {fields - 1:,} fields"):
        read_graph(file, fields - 1)


def test_inputs_and_the_axes_of_outputs_are_those_that_the_graph_says(tmp_path: Path):
    made = graph("g", [constant("y")])
    made.input.extend(helper.make_tensor_value_info(name, FLOAT, ["batch", 3]) for name in ("b", "a"))
    made.output.append(helper.make_tensor_value_info("z", FLOAT, [None, 2, "length"]))
    made.output.append(helper.make_tensor_value_info("scalar", FLOAT, []))
    file = tmp_path / "model.onnx"
    file.write_bytes(helper.make_model(made).SerializeToString())
    found = read_graph(file)
    assert (found.inputs, found.output_axes) == (("b", "a"), (1, 3, 0))


# Ways to write the same message


def reaches_a_tensor(message, seen: tuple[str, ...] = ()) -> bool:
    """By the library's own description of a message."""
    parts = [field.message_type for field in message.fields if field.message_type is not None]
    return message.name == "TensorProto" or any(
        reaches_a_tensor(part, (*seen, message.name)) for part in parts if part.name not in seen
    )


def test_every_field_of_onnx_on_the_way_to_a_tensor_is_walked():
    messages = {
        "model": onnx.ModelProto, "main graph": onnx.GraphProto, "graph": onnx.GraphProto,
        "training": onnx.TrainingInfoProto, "function": onnx.FunctionProto, "node": onnx.NodeProto,
        "attribute": onnx.AttributeProto, "sparse": onnx.SparseTensorProto,
    }  # fmt: skip
    assert {*messages, "tensor"} == set(WALK)
    for name, message in messages.items():
        fields = [field for field in message.DESCRIPTOR.fields if field.message_type is not None]
        leading = {field.number for field in fields if reaches_a_tensor(field.message_type)}
        assert {number for number, inner in WALK[name].items() if inner not in ("input", "output")} == leading
    assert WALK["tensor"] == {onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"].number: "external data"}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(make=st.sampled_from(MODELS), random=st.randoms(use_true_random=False))
def test_whatever_way_a_writer_chooses_we_find_what_onnx_finds(make, random, tmp_path: Path):
    content = Writer(random, odd=False).message(make())
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    assert oracle(onnx.load_model_from_string(content)) <= read_graph(file).locations


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(make=st.sampled_from(MODELS), random=st.randoms(use_true_random=False))
def test_what_no_writer_chooses_is_refused_or_we_find_what_onnx_finds(make, random, tmp_path: Path):
    content = Writer(random, odd=True).message(make())
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    try:
        theirs = oracle(onnx.load_model_from_string(content))
    except Exception:  # protobuf refuses it, too
        theirs = set()
    found = outcome(locations_in, file)
    assert isinstance(found, Refusal) or theirs <= found


FIELD_13 = 13 << 3 | 2


@pytest.mark.parametrize(
    "tag",
    [
        varint(FIELD_13 | 1 << 32), varint(FIELD_13 | 1 << 34), varint(FIELD_13 | 1 << 63),
        bytes([FIELD_13 | 0x80, 0]), bytes([FIELD_13 | 0x80, *[0x80] * 3, 0]),
        bytes([FIELD_13 | 0x80, *[0x80] * 8, 0]),
        b"\x02", varint(13 << 3 | 3), varint(13 << 3 | 4), varint(13 << 3 | 6), varint(13 << 3 | 7),
    ],
)  # fmt: skip
def test_a_tag_that_another_reader_may_take_for_external_data_is_refused(tag: bytes, tmp_path: Path):
    """C++ cuts a tag off at 32 bits: the first three are external data to it, under a number that is none."""
    made = tensor("w", "hidden.bin").SerializeToString()
    entry = b"\x0a\x08location\x12\x0ahidden.bin"
    assert made.count(bytes([FIELD_13, len(entry)]) + entry) == 1
    made = made.replace(bytes([FIELD_13, len(entry)]) + entry, tag + bytes([len(entry)]) + entry)
    for number in (5, 7):  # graph.initializer, model.graph
        made = bytes([number << 3 | 2]) + varint(len(made)) + made
    file = tmp_path / "model.onnx"
    file.write_bytes(made)
    with pytest.raises(BundleError, match="not a readable ONNX file"):
        read_graph(file)


def test_a_location_given_twice_is_found_both_times(tmp_path: Path):
    """The last one counts where one does; whoever takes the first finds it listed, too."""
    made = tensor("w", "one.bin")
    made.external_data.add(key="location", value="two.bin")
    file = tmp_path / "model.onnx"
    file.write_bytes(helper.make_model(graph("g", initializers=[made])).SerializeToString())
    assert read_graph(file).locations == {"one.bin", "two.bin"}


@pytest.mark.parametrize("entry", [b"\x0a\x08location\x12\x03a\xffb", b"\x0a\x04\xff\xfe\xfd\xfc\x12\x01a"])
def test_what_is_not_unicode_in_external_data_is_refused(entry: bytes, tmp_path: Path):
    made = entry
    for number in (13, 5, 7):
        made = bytes([number << 3 | 2]) + varint(len(made)) + made
    file = tmp_path / "model.onnx"
    file.write_bytes(made)
    with pytest.raises(BundleError, match="not a readable ONNX file"):
        read_graph(file)
