"""TensorRT and TensorRT for RTX: a plan for each piece, built by one code path, for both have one interface.

Networks are strongly typed, so the precision is in the graph: fp16 is written into it before it is parsed. What a piece
takes and gives stays fp32, and so do normalisation and softmax.

Only TensorRT for RTX has built plans so far, without a GPU; TensorRT itself needs NVIDIA's library and a GPU, and no
plan of either has ever run.
"""

from dataclasses import dataclass, field
from typing import Any

from hadskip_export.exporters.assemble import Pieces
from hadskip_export.exporters.half import halved
from hadskip_export.exporters.targets.base import Material
from hadskip_export.runtime.engines import Cut, is_reduced
from hadskip_export.runtime.engines.nvidia import why_no_device
from hadskip_export.runtime.engines.tensorrt import LIBRARIES, MOST_ROWS
from hadskip_export.support.errors import EngineError, optional_import
from hadskip_export.support.progress import say, track

UNTRIED = "plans were built here only by TensorRT for RTX, and none has ever run; validate it where it will serve"
USUAL_LENGTH = 128  # what kernels are chosen for, at batch 1


def build_plan(name: str, model: Any, max_length: int) -> bytes:
    """Builds one piece.

    Args:
        name: `trt` or `trt-rtx`.
        model: its graph, its tensors in it.
        max_length: the most tokens of an input.

    Raises:
        EngineError: a library is not installed, TensorRT has no GPU to build on (TensorRT for RTX needs none), or it
            refuses the piece.
    """
    library = LIBRARIES[name]
    trt: Any = optional_import(library.module, name)
    lack = why_no_device() if library.builds_on_device else None
    if lack is not None:
        raise EngineError(f"--engine {name}: builds on the GPU that will run it, and {lack}; build there, or trt-rtx")
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
        raise EngineError(f"{library.module} cannot parse {model.graph.name} ({reason})")
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
        raise EngineError(f"{library.module} cannot build {model.graph.name}; its own messages above say why")
    return bytes(memoryview(plan))


@dataclass(frozen=True)
class TensorRtTarget:
    """See `Target`. `library`: `trt` or `trt-rtx`."""

    library: str
    precisions: tuple[str, ...] = ("fp32", "fp16")
    cuts: tuple[Cut, ...] = ("layers", "gates")
    refuses: dict[str, str] = field(default_factory=dict)
    whole_exits: tuple[str, ...] = ()

    def build(self, material: Material) -> dict[str, str]:
        say(f"{material.tag}: {UNTRIED}")
        pieces, made = Pieces(material.bundle, material.manifest.pieces), {}
        for piece in track(material.pieces, len(material.pieces), material.tag):
            model = pieces.read_with_tensors(piece)
            if material.precision == "fp16" and is_reduced(piece):
                model = halved(model)
            made[piece] = f"{material.folder}/{piece}.engine"
            plan = build_plan(self.library, model, material.manifest.model.max_length)
            (material.bundle / made[piece]).write_bytes(plan)
        return made


TENSORRT, TENSORRT_RTX = TensorRtTarget("trt"), TensorRtTarget("trt-rtx")
