"""ONNX Runtime on the CPU. Runs ONNX files as they are.

Two traps, both measured (notebook/): every session has a thread pool that spins long after a call, and a
memory arena that stays at its peak. So a pool spins just long enough to bridge the gap between two operators,
small pieces get no pool, and all sessions share one arena.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hadskip_export.runtime.engines.base import EngineOptions, OnThisProcessor, Piece
from hadskip_export.support.errors import EngineError, first_line, optional_import

PROVIDER = "CPUExecutionProvider"
SPIN_MICROSECONDS = 40  # asleep between operators costs a wake-up each; awake after the call slows the next piece
_SMALL = ("gate", "exit", "head")  # pieces too small to share between threads
_arena_lock = threading.Lock()
_arena_registered = False


class OnnxRuntime:
    """What is the same wherever it computes."""

    reads = "onnx"

    @staticmethod
    def versions() -> dict[str, str]:
        return {"onnxruntime": import_onnxruntime().__version__}


class OrtEngine(OnnxRuntime, OnThisProcessor):
    """See `Engine`. The precision is in the files."""

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions):
        self._ort = import_onnxruntime()
        self._files = files
        self._options = options
        _share_arena(self._ort)

    def load(self, piece: str) -> Piece:
        file = self._files[piece]
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = 1 if piece.startswith(_SMALL) else self._options.thread_count
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not self._options.spinning:
            options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
            options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.use_env_allocators", "1")
        return OrtPiece(open_session(self._ort, file, options, PROVIDER), file)


class OrtPiece:
    """One session; `run` of ONNX Runtime is thread-safe. It takes every input, those that have a default in the file
    after the others."""

    def __init__(self, session, file: Path):
        self._session = session
        self._file = file
        self._names = [argument.name for argument in (*session.get_inputs(), *session.get_overridable_initializers())]
        self._outputs = [argument.name for argument in session.get_outputs()]

    def __call__(self, *inputs: np.ndarray) -> Any:
        try:
            outputs = self._session.run(self._outputs, dict(zip(self._names, inputs, strict=True)))
        except Exception as error:
            raise EngineError(f"{self._file}: {first_line(error)}") from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def open_session(
    ort: ModuleType, file: Path, options: Any, provider: str, settings: Mapping[str, str] | None = None
) -> Any:
    """
    Raises:
        EngineError: onnxruntime refuses the file, or its session has not got `provider` first.
    """
    try:
        session = ort.InferenceSession(str(file), options, providers=[(provider, dict(settings or {}))])
    except Exception as error:  # its exceptions have no common base but Exception
        raise EngineError(f"{file}: onnxruntime {ort.__version__} refuses it ({first_line(error)})") from error
    if session.get_providers()[0] != provider:
        raise EngineError(f"{file}: onnxruntime fell back to {session.get_providers()}; expected {provider}")
    return session


def import_onnxruntime() -> ModuleType:
    ort = optional_import("onnxruntime", "ort or ort-gpu")
    if not hasattr(ort, "InferenceSession"):
        raise EngineError(
            "onnxruntime is broken: onnxruntime and onnxruntime-gpu overwrite each other; uninstall both, then install "
            "one of hadskip-export[ort] and hadskip-export[ort-gpu]"
        )
    return ort


def _share_arena(ort: ModuleType) -> None:
    """Registers one CPU arena for the process; sessions that do not ask for it, such as the host's, are untouched."""
    global _arena_registered
    with _arena_lock:
        if not _arena_registered:
            memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            try:
                ort.create_and_register_allocator(memory, None)
            except Exception as error:
                if "already" not in str(error):  # the host registered one: share that
                    raise EngineError(f"onnxruntime: no shared memory arena ({first_line(error)})") from error
            _arena_registered = True
