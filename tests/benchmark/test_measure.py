"""Figures of a contest are those of what was forced, and faults that somebody plants are found out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from hadskip_export.benchmark import systems as systems_module
from hadskip_export.benchmark.measure import (
    BUSY_SHARE,
    FULL_SETTINGS,
    IDLE_SHARE,
    WIDE_INTERVAL,
    Contest,
    Figures,
    Workload,
    distrust,
)
from hadskip_export.benchmark.statistics import PieceTimes, Ratio, ideal_speedup, speedup
from hadskip_export.benchmark.systems import System, take_turns
from hadskip_export.runtime import read_bundle
from hadskip_export.support.errors import BudgetError
from tests.conftest import sentences
from tests.runtime.editing import change_piece, copy_of

TEXTS = [text for text, _ in sentences(8, 71)]
LENGTHS = np.array([len(text.split()) + 2 for text in TEXTS])
CLEAN = Ratio(2.0, 1.95, 2.05)

share = st.floats(0, IDLE_SHARE)
quiet = st.none() | st.floats(0, BUSY_SHARE)


# What to distrust


@given(st.floats(1.3, 10), st.floats(0, 0.04), share, share, quiet)
def test_clean_figures_are_trusted(value: float, width: float, skip: float, full: float, busy: float | None):
    ratio = Ratio(value, value * (1 - width), value * (1 + width))
    assert distrust(ratio, {"skip": skip, "full": full}, busy) == []


@given(st.floats(BUSY_SHARE, 1, exclude_min=True))
def test_a_busy_machine_is_told(busy: float):
    (warning,) = distrust(CLEAN, {"skip": 0.0, "full": 0.0}, busy)
    assert f"{busy:.0%} of the machine was busy" in warning


@given(st.floats(IDLE_SHARE, 2, exclude_min=True), share, st.sampled_from(["skip", "full"]))
def test_a_system_that_works_while_it_should_wait_is_named(busy: float, quiet: float, name: str):
    other = {"skip": "full", "full": "skip"}[name]
    (warning,) = distrust(CLEAN, {name: busy, other: quiet}, 0.0)
    assert warning.startswith(f"{name} used {busy:.0%} of a core")


@given(st.floats(0.2, 5), st.floats(WIDE_INTERVAL / 2 + 1e-6, 0.9))
def test_a_wide_interval_is_noise_wherever_it_lies(value: float, width: float):
    (warning,) = distrust(Ratio(value, value * (1 - width), value * (1 + width)), {}, None)
    assert "too noisy" in warning


@given(st.floats(0, 0.04), st.floats(0, 0.04))
def test_a_speedup_that_may_be_none_is_no_speedup(below: float, above: float):
    (warning,) = distrust(Ratio(1.0, 1 - below, 1 + above), {}, None)
    assert "no difference" in warning


def test_every_reason_is_given():
    assert len(distrust(Ratio(1.0, 0.5, 1.5), {"skip": 1.0, "full": 1.0}, 1.0)) == 4


# A contest


@pytest.fixture(scope="module")
def routes() -> np.ndarray:
    """Two or three of the four layers."""
    random = np.random.default_rng(1)
    return random.permuted(np.array([[True, True, text % 2 == 0, False] for text in range(len(TEXTS))]), axis=1)


@pytest.fixture(scope="module")
def figures(bundle: Path, routes: np.ndarray) -> Figures:
    before = psutil.Process().children(recursive=True)
    opened = read_bundle(bundle)
    calls = [np.array([0, 2, 4]), np.array([6, 1, 3])]
    options = {"threads": 1}
    with Contest(opened, opened.engine(), TEXTS, options=options, routes=routes, busy=0.9) as contest:
        assert len(psutil.Process().children(recursive=True)) >= len(before) + 3
        assert contest.skip.ask("answers", batch_size=32)["routes"] == routes.tolist()
        for full in contest.full.values():
            assert full.ask("answers", batch_size=32)["routes"] == [[True] * 4] * len(TEXTS)
        found = contest.measure(Workload(calls, LENGTHS, routes, "mixed", "here"), turns=2)
    assert psutil.Process().children(recursive=True) == before
    return found


def test_figures_say_what_was_timed(figures: Figures, routes: np.ndarray):
    timed = [0, 2, 4, 6, 1, 3]
    assert (figures.engine, figures.precision, figures.cut) == ("ort", "fp32", "gates")
    assert (figures.batch, figures.routing, figures.full_engine) == (3, "mixed", "ort-fp32-gates")
    assert figures.layers == 4
    assert figures.layers_run == pytest.approx(routes[timed].sum(axis=1).mean())
    assert figures.last_run == pytest.approx(routes[timed, 3].mean())
    assert figures.seq == pytest.approx(LENGTHS[timed].mean())
    assert figures.full_setting in FULL_SETTINGS
    assert np.array(figures.samples["skip"]).shape == np.array(figures.samples["full"]).shape == (2, 2)


def test_figures_follow_from_samples_and_parts(figures: Figures):
    skip, full = (np.array(figures.samples[name]) for name in ("skip", "full"))
    ratio = speedup(full, skip)
    assert (figures.speedup, figures.speedup_low, figures.speedup_high) == (ratio.value, ratio.low, ratio.high)
    assert figures.p50 == pytest.approx(np.median(skip) * 1e3)
    assert figures.full_p50_ms == pytest.approx(np.median(full) * 1e3)
    parts = figures.embeddings_ms, figures.layer_ms, figures.last_layer_ms, figures.head_ms
    assert min(parts) > 0
    counts = {"layers": 4, "layers_run": figures.layers_run, "last_run": figures.last_run}
    assert figures.ideal == pytest.approx(ideal_speedup(PieceTimes(*parts), **counts))
    assert figures.efficiency == pytest.approx(figures.speedup / figures.ideal)


def test_a_machine_that_was_busy_before_is_among_the_warnings(figures: Figures):
    assert "90% of the machine was busy before this began" in figures.warnings[0]


def test_a_contest_that_cannot_begin_leaves_no_process(bundle: Path):
    opened = read_bundle(bundle)
    before = psutil.Process().children(recursive=True)
    with (
        pytest.raises(BudgetError),
        Contest(opened, opened.engine(), TEXTS, options={"max_layers": 99}),
    ):
        pytest.fail("it must not begin")
    assert psutil.Process().children(recursive=True) == before


# Planted faults


def noisy(seconds: float, seed: int, calls: int = 100, turns: int = 5) -> np.ndarray:
    return seconds * np.random.default_rng(seed).lognormal(0, 0.05, (calls, turns))


EMBEDDINGS, LAYER, LAST, HEAD, LAYERS, RUN, LAST_RUN = 1.0, 2.0, 0.7, 0.5, 12, 6, 0.25


@pytest.mark.parametrize("slow_layers", [1, RUN])
def test_layers_a_fifth_slower_show_in_speedup_and_efficiency(slow_layers: int):
    """Of the layers that run, with noise of 5 %: in every one of twenty measurements each interval leaves out the
    other's speedup, and if all layers are slower the intervals lie apart."""
    sound = EMBEDDINGS + (RUN - LAST_RUN) * LAYER + LAST_RUN * LAST + HEAD
    slow = sound + slow_layers * 0.2 * LAYER
    full_time = EMBEDDINGS + (LAYERS - 1) * LAYER + LAST + HEAD
    pieces = PieceTimes(EMBEDDINGS, LAYER, LAST, HEAD)
    ideal = ideal_speedup(pieces, layers=LAYERS, layers_run=RUN, last_run=LAST_RUN)
    for seed in range(20):
        full = noisy(full_time, 3 * seed)
        as_it_is, planted = speedup(full, noisy(sound, 3 * seed + 1)), speedup(full, noisy(slow, 3 * seed + 2))
        assert as_it_is.value / ideal == pytest.approx(1, abs=0.01)
        assert planted.value / ideal == pytest.approx(sound / slow, abs=0.01)
        assert planted.value < as_it_is.low and planted.high < as_it_is.value
        assert planted.high < as_it_is.low or slow_layers == 1


def work_that_changes_nothing(model: onnx.ModelProto) -> None:
    """Adds to a layer's output a product of 32 x 60000 x 32 that is zero, which no optimiser knows."""
    graph = model.graph
    (output,) = graph.output
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == output.name:
                node.output[place] = "as_it_was"
    random = np.random.default_rng(0)
    wide = numpy_helper.from_array(random.normal(size=(32, 60000)).astype(np.float32), "wide")
    graph.initializer.extend([wide, numpy_helper.from_array(np.zeros((60000, 32), np.float32), "zero")])
    graph.node.extend(
        [
            helper.make_node("MatMul", ["as_it_was", "wide"], ["widened"]),
            helper.make_node("MatMul", ["widened", "zero"], ["nothing"]),
            helper.make_node("Add", ["as_it_was", "nothing"], [output.name]),
        ]
    )


def test_a_layer_that_is_really_slower_shows(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    change_piece(copy, "layer_02", work_that_changes_nothing)
    routes = np.tile([True, True, False, False], (len(TEXTS), 1))
    calls = [np.array([row]) for row in range(len(TEXTS))]
    options = {"threads": 1}
    with (
        System(str(bundle), options, TEXTS, routes) as sound,
        System(str(copy), options, TEXTS, routes) as slow,
        System(str(bundle), options | {"router": "full"}, TEXTS) as full,
    ):
        assert sound.ask("answers", batch_size=32) == slow.ask("answers", batch_size=32)
        seconds = take_turns({"sound": sound, "slow": slow, "full": full}, calls, 5, "turns").seconds
        parts = [
            system.ask("pieces", calls=[call.tolist() for call in calls], repeats=3)["layer"]
            for system in (sound, slow)
        ]
    assert speedup(seconds["full"], seconds["slow"]).value < 0.8 * speedup(seconds["full"], seconds["sound"]).value
    assert parts[1] > 1.25 * parts[0]


class Spinning(System):
    """A system with a thread that never rests."""

    def __enter__(self) -> "Spinning":
        code = """
import threading
from hadskip_export.benchmark.worker import main
def spin():
    while True:
        pass
threading.Thread(target=spin, daemon=True).start()
main()
"""
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask("load", **self._load)
        return self


def test_a_pool_that_goes_on_spinning_is_warned_of(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(systems_module, "MOST_PAUSES", 3)
    options = {"threads": 1}
    with System(str(bundle), options, TEXTS) as skip, Spinning(str(bundle), options, TEXTS) as full:
        found = take_turns({"skip": skip, "full": full}, [np.array([row]) for row in range(8)], 3, "turns")
    assert found.idle_share["full"] > 4 * found.idle_share["skip"]
    warnings = distrust(CLEAN, found.idle_share, None)
    assert any(warning.startswith("full used ") for warning in warnings)
