"""ONNX pieces -> TensorRT engines, by TensorRT or by TensorRT for RTX: one code path, for both have one interface.

Networks are strongly typed, so the precision is in the ONNX file: fp16 is written into it before it is parsed. What a
piece takes and gives stays fp32, and so do normalisation and softmax.
"""

from pathlib import Path
from typing import Any

from hadskip_export.exporters.half import halved
from hadskip_export.runtime.engines.nvidia import why_no_device
from hadskip_export.runtime.engines.tensorrt import LIBRARIES, MOST_ROWS
from hadskip_export.support.errors import EngineError, optional_import

USUAL_LENGTH = 128  # what kernels are chosen for, at batch 1


def build_engine(name: str, precision: str, source: Path, out: Path, max_length: int, reduced: bool) -> None:
    """Builds one piece.

    Args:
        name: `trt` or `trt-rtx`.
        precision: `fp32` or `fp16`.
        max_length: the most tokens of an input.
        reduced: whether this piece is computed below fp32, where the precision is.

    Raises:
        EngineError: a library is not installed, TensorRT has no GPU to build on (TensorRT for RTX needs none), or it
            refuses the piece.
    """
    library = LIBRARIES[name]
    trt: Any = optional_import(library.module, name)
    onnx: Any = optional_import("onnx", name)
    lack = why_no_device() if library.builds_on_device else None
    if lack is not None:
        raise EngineError(f"--engine {name}: builds on the GPU that will run it, and {lack}; build there, or trt-rtx")
    model = halved(source) if precision == "fp16" and reduced else onnx.load(source)
    expected = [one.name for one in model.graph.input], [one.name for one in model.graph.output]
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(model.SerializeToString())
    found = (
        [network.get_input(index).name for index in range(network.num_inputs)],
        [network.get_output(index).name for index in range(network.num_outputs)],
    )
    if not parsed or found != expected:
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        reason = errors[0] if errors else f"finds {found} where there are {expected}"
        raise EngineError(f"{source}: {library.module} cannot parse it ({reason})")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: fp32 would not be fp32
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = list(tensor.shape)[2:]
        usual, largest = [1, min(USUAL_LENGTH, max_length), *rest], [MOST_ROWS, max_length, *rest]
        profile.set_shape(tensor.name, [1, 1, *rest], usual, largest)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{source}: {library.module} cannot build it; its own messages above say why")
    out.write_bytes(memoryview(plan))
