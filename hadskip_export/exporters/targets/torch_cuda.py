"""PyTorch on an NVIDIA GPU. It has the layers' code itself and reads nothing but the bundle's fp32 tensors."""

from typing import ClassVar

from hadskip_export.exporters.targets.base import Material
from hadskip_export.exporters.weights import read_about
from hadskip_export.runtime.engines import Cut
from hadskip_export.runtime.engines.torch_cuda.takes import why_not
from hadskip_export.runtime.manifest import WHOLE
from hadskip_export.support.errors import EngineError


class TorchCudaTarget:
    """See `Target`."""

    precisions = ("fp32", "fp16", "bf16")
    cuts: tuple[Cut, ...] = ("whole", "layers", "gates")
    whole_exits: tuple[str, ...] = ()
    refuses: ClassVar = {"exits": "exits", "gated-exits": "exits", "upfront": "gates that read the embeddings"}

    def build(self, material: Material) -> dict[str, str]:
        if lack := why_not(read_about(material.bundle, material.manifest.weights)):
            raise EngineError(f"--engine torch-cuda: has no code for {lack}; the other engines run it")
        whole = [WHOLE] if material.cut == "whole" else []
        return dict.fromkeys([*material.pieces, *whole], material.manifest.weights)


TARGET = TorchCudaTarget()
