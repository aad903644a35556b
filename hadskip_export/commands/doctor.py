"""`doctor`: what this machine can run, what it lacks, and which engine is the fastest on it."""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from hadskip_export.benchmark.systems import System
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.targets import target_of
from hadskip_export.runtime.engines import ENGINES, PRECISIONS, engine_class
from hadskip_export.support.environment import environment
from hadskip_export.support.errors import EngineError, HadskipError
from hadskip_export.support.files import caches, replaced, scratch
from hadskip_export.support.progress import say, track
from hadskip_export.verification.parity import LABEL_DISAGREEMENT

if TYPE_CHECKING:  # its module brings torch, which a machine that serves has not
    from hadskip_export.modeling.encoder import EncoderConfig

# What makes a difference here -> the flags of the system's CPU description that tell of it.
FEATURES = {
    "AVX2": {"avx2"},
    "AVX512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni", "asimddp"},
    "BF16": {"avx512_bf16", "bf16"},
    "AMX": {"amx_tile"},
}
CPUINFO = Path("/proc/cpuinfo")
TOKENS, ROUNDS = 128, 15
WORTH_WHILE = 1.1  # times faster than the precision before


@dataclass(frozen=True)
class Diagnosis:
    """What this machine can run.

    Args:
        features: by name; None where the system does not tell.
        engines: by name, None if it can run, else the one thing it lacks.
        training: the same for training and export.
        tokens: of the input that layers were measured on.
        layer_ms: of a BERT-base layer, by `engine-precision`; None if it could not be measured.
        recommendation: what to build, in words.
    """

    environment: dict[str, Any]
    features: dict[str, bool] | None
    engines: dict[str, str | None]
    training: str | None
    tokens: int
    layer_ms: dict[str, float] | None
    recommendation: str

    @property
    def healthy(self) -> bool:
        return any(lack is None for lack in self.engines.values())


def doctor(*, fresh: bool = False) -> Diagnosis:
    """Looks at this machine.

    Args:
        fresh: measure again, even if the same chip was measured with the same versions before.
    """
    about, engines, training = environment(), engines_here(), _lack_of_training()
    layer_ms = None
    if training is None and any(lack is None for lack in engines.values()):
        layer_ms = _measured(about, [name for name, lack in engines.items() if lack is None], fresh)
    return Diagnosis(
        environment=about,
        features=features(),
        engines=engines,
        training=training,
        tokens=TOKENS,
        layer_ms=layer_ms,
        recommendation=_recommendation(engines, training, layer_ms),
    )


def features() -> dict[str, bool] | None:
    """What of `FEATURES` this chip has; None where the system does not tell."""
    if not CPUINFO.is_file():
        return None
    for line in CPUINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
            return {feature: bool(wanted & flags) for feature, wanted in FEATURES.items()}
    return None


def engines_here() -> dict[str, str | None]:
    """By name None if it can run, else the one thing it lacks."""
    return {name: _lack_of(name) for name in ENGINES}


def _lack_of(engine: str) -> str | None:
    try:
        engine_class(engine).versions()
        return engine_class(engine).why_not_here()
    except EngineError as error:
        return str(error)


def _lack_of_training() -> str | None:
    for module in ("torch", "transformers", "onnx", "onnxscript"):
        if importlib.util.find_spec(module) is None:
            return f'needs {module}; pip install "hadskip-export[train]"'
    return None


def _recommendation(engines: dict[str, str | None], training: str | None, layer_ms: dict[str, float] | None) -> str:
    ready = [name for name, lack in engines.items() if lack is None]
    if not ready:
        return 'pip install "hadskip-export[ort]"; no engine can run here'
    if layer_ms is None:
        return f"--engine {ready[0]} --precision fp32 (nothing was measured: that {training})"
    by_precision = [[name for name in layer_ms if name.endswith(f"-{precision}")] for precision in PRECISIONS]
    fastest = [min(names, key=lambda name: layer_ms[name]) for names in by_precision if names]
    if not by_precision[0]:
        return "nothing: no engine could be measured in fp32 here"
    chosen = plain = fastest[0]
    for name in fastest[1:]:
        if layer_ms[chosen] / layer_ms[name] > WORTH_WHILE:
            chosen = name
    engine, _, precision = chosen.rpartition("-")
    text = f"--engine {engine} --precision {precision}"
    if chosen != plain:
        gain = layer_ms[plain] / layer_ms[chosen]
        text += f", {gain:.1f} times as fast as {plain}{_what_build_checks(precision, plain)}"
    return text


def _what_build_checks(precision: str, plain: str) -> str:
    """For who would build for the speed alone."""
    share, besides = 1 - LABEL_DISAGREEMENT[precision], ""
    if precision == "int8":
        besides = ", besides what int8 changes of full BERT's,"
    return (
        f"; build checks that {share:.1%} of your labels stay the same{besides} and else marks the engine as failed:"
        f" build {plain} then"
    )


def _measured(about: dict[str, Any], engines: list[str], fresh: bool) -> dict[str, float]:
    """Milliseconds of a layer by `engine-precision`, from the cache if the machine that `about` describes is in it."""
    key = json.dumps([about["chip"], about["cpus"], about["system"], about["versions"], engines], sort_keys=True)
    cache = caches() / "hadskip-export" / "doctor.json"
    try:
        known = msgspec.json.decode(cache.read_bytes(), type=dict[str, dict[str, float]])
    except (OSError, msgspec.MsgspecError):
        known = {}
    if fresh or key not in known:
        say("measuring a layer on each engine, once; half a minute")
        from hadskip_export.commands.estimate import SIZES

        known[key], complete = layer_times(engines, SIZES["bert-base"], TOKENS)
        if not complete:  # what failed may not fail the next time
            return known[key]
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with replaced(cache) as part:
                part.write_text(json.dumps(known))
        except OSError as error:  # a home that cannot be written to: measured again the next time
            say(f"{cache}: not kept ({error.strerror})")
    return known[key]


def layer_times(engines: Sequence[str], config: "EncoderConfig", tokens: int) -> tuple[dict[str, float], bool]:
    """Milliseconds of a layer of a model like `config` on one input of so many tokens, by `engine-precision`, measured
    in turns; and whether nothing is missing but what this machine or this version will never have."""
    failures: dict[str, HadskipError] = {}
    by_layer = {name: values[:2] for name in ("windows", "rotary_bases") if (values := getattr(config, name))}
    small = replace(config, num_layers=2, vocab_size=64, **by_layer)  # two, for the last one is no whole layer
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        systems: dict[str, System] = {}
        for engine, precision in ((name, kind) for name in engines for kind in target_of(name).precisions):
            name = f"{engine}-{precision}"
            with _left_out(name, failures):
                systems[name] = stack.enter_context(
                    _one_layer(folder / name / "bundle", small, engine, precision, tokens)
                )
        samples: dict[str, list[float]] = {name: [] for name in systems}
        for _ in track(range(ROUNDS), ROUNDS, "measure"):
            for name in [name for name in systems if name not in failures]:
                with _left_out(name, failures):
                    samples[name].append(systems[name].ask("pieces", calls=[[0]], repeats=10)["layer"])
    figures = {name: median(seconds) * 1e3 for name, seconds in samples.items() if name not in failures}
    return figures, all(isinstance(error, EngineError) for error in failures.values())


@contextmanager
def _left_out(name: str, failures: dict[str, HadskipError]) -> Iterator[None]:
    """Whatever an engine fails at is noted and said, and the others go on."""
    try:
        yield
    except HadskipError as error:  # this chip has no bf16, for instance
        failures[name] = error
        say(f"{name}: {error}; left out")


def _one_layer(bundle: Path, config: "EncoderConfig", engine: str, precision: str, tokens: int) -> System:
    """A model to be started, of which one layer is to be timed.

    Raises:
        HadskipError: it cannot be built, or its answers are wrong.
    """
    from hadskip_export.benchmark.random_bundle import text_of, write_random_bundle

    report = write_random_bundle(bundle, config, EnginePlan.of(engine, precision, "gates"))
    if report.parity != "passed":
        raise EngineError(f"gives wrong answers on this machine, first at {report.first_bad_piece}")
    return System(str(bundle), {}, [text_of(tokens)])
