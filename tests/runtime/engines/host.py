"""The engine for ONNX Runtime on a GPU, whose device is the host: the same bindings and uploads, which run anywhere."""

from hadskip_export.runtime.engines.ort_cuda import OrtCudaEngine

HOST = f"{__name__}:OrtHostEngine"


class OrtHostEngine(OrtCudaEngine):
    provider, device, settings = "CPUExecutionProvider", "cpu", {}

    @staticmethod
    def chip() -> str:
        return "host"

    @classmethod
    def why_not_here(cls) -> str | None:
        return None
