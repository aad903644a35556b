"""The engines for a GPU, whose device is the host: the same bindings, buffers, uploads and programs, which run
anywhere. What only a GPU has, CUDA graphs, is a plain loop here."""

from collections.abc import Callable, Sequence

from hadskip_export.runtime.engines.ort_cuda import OrtCudaEngine
from hadskip_export.runtime.engines.torch_cuda import TorchCudaEngine

HOST = f"{__name__}:OrtHostEngine"
TORCH_HOST = f"{__name__}:TorchHostEngine"
ON_HOST = {"ort-host": HOST, "torch-host": TORCH_HOST}


class OrtHostEngine(OrtCudaEngine):
    provider, device, settings = "CPUExecutionProvider", "cpu", {}

    @staticmethod
    def chip() -> str:
        return "host"

    @classmethod
    def why_not_here(cls) -> str | None:
        return None


class TorchHostEngine(TorchCudaEngine):
    device = "cpu"

    def _recorder(self):
        return PlainLoop()

    @staticmethod
    def chip() -> str:
        return "host"

    @classmethod
    def why_not_here(cls) -> str | None:
        return None


class PlainLoop:
    """A `Recorder` that keeps steps as they are."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        step()  # as a recorder does, before a call's inputs are there
        return step

    def conditional(self, start, layers: Sequence[Callable[[], None]], finish, on) -> Callable[[], None]:
        def run() -> None:
            start()
            done = 0
            for index, layer in enumerate(layers):
                runs = bool(on.margins[0, index] > on.terms[index]) and done < on.terms[len(layers)]
                on.ran[0, index] = runs
                done += runs
                if runs:
                    layer()
            finish()

        return run

    def wait(self) -> None: ...
