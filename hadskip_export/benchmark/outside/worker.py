"""A fine-tuned classifier as another library serves it, in that library's environment, which has neither this package
nor NumPy of its version: run as a file, see `libraries`."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Calls = list[list[int]]  # rows of the texts, by call
WARM_UP = (1, 2, 32)  # texts of a call, for what compiles itself anew when a shape is new


class Served(NamedTuple):
    """
    Args:
        model: (what a tokenizer gives, as PyTorch tensors) -> logits, as nested lists.
        about: what serves it, with its version.
        config: the classifier's, as `transformers` reads it.
    """

    model: Callable[[Any], list[list[float]]]
    about: str
    config: Any


class Worker:
    """Answers requests for one loaded classifier, as `transformers` says it: its tokenizer, its defaults.

    Args:
        folder: the fine-tuned classifier, as `transformers` saves it.
        max_length: tokens of a text that are read.
    """

    def __init__(self, served: Served, folder: str, texts: list[Any], max_length: int):
        self._model, self._max_length = served.model, max_length
        self._tokenizer = _tokenizer(Path(folder))
        self._texts = texts
        longest = max(range(len(texts)), key=lambda row: len(str(texts[row])))
        for size in WARM_UP:
            for rows in ([0] * size, [longest] * size):
                self._logits(rows)

    def _logits(self, rows: list[int]) -> list[list[float]]:
        texts = [self._texts[row] for row in rows]
        pairs = {} if isinstance(texts[0], str) else {"text_pair": [text[1] for text in texts]}
        firsts = [text[0] for text in texts] if pairs else texts
        return self._model(
            self._tokenizer(
                firsts, **pairs, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
            )
        )

    def calls(self, calls: Calls) -> dict[str, Any]:
        """Timed calls, one after the other, as an application makes them: text in, logits out."""
        return {"seconds": [self._call(rows) for rows in calls]}

    def _call(self, rows: list[int]) -> float:
        started = time.perf_counter()
        self._logits(rows)
        return time.perf_counter() - started

    def answers(self, batch_size: int) -> dict[str, Any]:
        """Logits of every text, untimed."""
        rows = list(range(len(self._texts)))
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        return {"logits": [logits for batch in batches for logits in self._logits(batch)]}


def _tokenizer(folder: Path) -> Any:
    """As the folder says; what transformers 5 saves by its new name for a class transformers 4 knows by the old one."""
    import transformers

    settings = folder / "tokenizer_config.json"
    named = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") if settings.is_file() else None
    if named == "TokenizersBackend" and not hasattr(transformers, named):
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def export_o2(folder: str, place: Path) -> None:
    """What optimum optimises at its level O2, in fp32."""
    from optimum.onnxruntime import AutoOptimizationConfig, ORTModelForSequenceClassification, ORTOptimizer

    model = ORTModelForSequenceClassification.from_pretrained(folder, export=True)
    ORTOptimizer.from_pretrained(model).optimize(save_dir=place, optimization_config=AutoOptimizationConfig.O2())


def export_int8(folder: str, place: Path) -> None:
    """int8 weights, and activations quantised as they come; of the plain graph, for those of O2 it cannot read."""
    from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    model = ORTModelForSequenceClassification.from_pretrained(folder, export=True)
    kind = AutoQuantizationConfig.avx512_vnni if _has("avx512_vnni") else AutoQuantizationConfig.avx2
    quantised = kind(is_static=False, per_channel=True)
    ORTQuantizer.from_pretrained(model).quantize(save_dir=place, quantization_config=quantised)


def _has(flag: str) -> bool:
    """Whether the processor can do this, as far as Linux tells."""
    try:
        return flag in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def serve_onnx(place: Path, threads: int) -> Served:
    """ONNX Runtime, as optimum calls it."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSequenceClassification

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    (file,) = place.glob("*.onnx")
    model = ORTModelForSequenceClassification.from_pretrained(place, file_name=file.name, session_options=options)
    about = f"optimum, {'int8' if 'quant' in file.name else 'O2'}, onnxruntime {onnxruntime.__version__}"
    return Served(lambda inputs: model(**inputs).logits.tolist(), about, model.config)


def copy_weights(folder: str, place: Path) -> None:
    """What PyTorch needs of a folder, which has perhaps much more."""
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False).save_pretrained(place)


def serve_compiled(place: Path, threads: int) -> Served:
    """`torch.compile`, for any shape, in fp32."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32).eval()
    compiled = torch.compile(model, dynamic=True)

    def answer(inputs: Any) -> list[list[float]]:
        with torch.inference_mode():
            return compiled(**inputs).logits.tolist()

    return Served(answer, f"torch.compile, torch {torch.__version__}", model.config)


def export_openvino(folder: str, place: Path) -> None:
    from optimum.intel import OVModelForSequenceClassification

    OVModelForSequenceClassification.from_pretrained(folder, export=True, compile=False).save_pretrained(place)


def serve_openvino(place: Path, threads: int) -> Served:
    """OpenVINO, as optimum-intel calls it, in the precision that it chooses for the machine."""
    import openvino
    from optimum.intel import OVModelForSequenceClassification

    config = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
    model = OVModelForSequenceClassification.from_pretrained(place, ov_config=config)
    precision = model.request.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    about = f"optimum-intel, {precision}, openvino {openvino.__version__.partition('-')[0]}"
    return Served(lambda inputs: model(**inputs).logits.tolist(), about, model.config)


# name -> (writes what is deployed, loads it), each in a process of its own.
LIBRARIES = {
    "optimum": (export_o2, serve_onnx),
    "optimum-int8": (export_int8, serve_onnx),
    "torch-compile": (copy_weights, serve_compiled),
    "openvino-full": (export_openvino, serve_openvino),
}


def export(library: str, folder: str, place: str) -> tuple[None, dict[str, Any]]:
    LIBRARIES[library][0](folder, Path(place))
    return None, {}


def load(
    *, library: str, folder: str, place: str, texts: list[Any], max_length: int, threads: int
) -> tuple[Worker, dict[str, Any]]:
    served = LIBRARIES[library][1](Path(place), threads)
    worker = Worker(served, folder, texts, max_length)
    disk = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    labels = [served.config.id2label[index] for index in range(served.config.num_labels)]
    about = {"about": served.about, "disk_mb": disk / 1e6}
    return worker, about | {"labels": labels, "problem_type": served.config.problem_type}


if __name__ == "__main__":
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # which reports home
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # PyPI's fails beside a torch from elsewhere
    from replies import reply_to_requests  # type: ignore[import-not-found]  # beside this file, when it is run

    reply_to_requests({"export": export, "load": load}[sys.argv[1]])
