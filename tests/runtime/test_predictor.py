"""The Predictor against PyTorch, one input at a time."""

import gc
import itertools
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hadskip_export import build
from hadskip_export.exporters.write import Source
from hadskip_export.routing.routes import as_route
from hadskip_export.runtime import Prediction, Predictor, read_bundle
from hadskip_export.runtime.engines import engine_class, ort
from hadskip_export.runtime.engines.base import usable_cpus
from hadskip_export.runtime.policies import GatePolicy
from hadskip_export.runtime.programs.chain import Chain
from hadskip_export.runtime.programs.whole import Whole
from hadskip_export.runtime.tokenization import Text, pad, share_batches
from hadskip_export.support.errors import BudgetError, BundleError, DataError, EngineError, HadskipError
from tests.conftest import STATIC_ROUTE, sentences
from tests.runtime.editing import change_manifest, change_piece, copy_of, reseal
from tests.runtime.oracle import Answer, Oracle
from tests.runtime.pieces import Counting

LONG = " ".join(["a good film with a bad plot"] * 500)
ODD: list[Text] = [
    "", " ", LONG, "🙂 great film 🎬", "naïve café — 漢字 \u200f\u0000\u0301", "[SEP] [CLS] [PAD] [MASK]", "x" * 2000,
    ("a good film", "a bad film"), ("", ""), ("", "good"), (LONG, "good"), ("good", LONG), "GOOD film", "\n\t",
]  # fmt: skip
TEXTS: list[Text] = [text for text, _ in sentences(40, 7)] + ODD + [("the plot", text) for text, _ in sentences(6, 8)]


@pytest.fixture(scope="module")
def oracle(source: Source, model_folder: Path) -> Oracle:
    return Oracle(source, model_folder)


@pytest.fixture(scope="module", params=["bundle", "layers_bundle", "whole_bundle", "openvino_bundle"])
def predictor(request: pytest.FixtureRequest):
    """Every cut; OpenVINO's whole one has a piece for inputs that come alone."""
    path = request.getfixturevalue(request.param)
    with Predictor.load(path, engine="openvino" if request.param == "openvino_bundle" else None) as p:
        yield p


def assert_same(got: list[Prediction], expected: list[Answer]) -> None:
    for prediction, answer in zip(got, expected, strict=True):
        assert (prediction.label, prediction.layers, prediction.truncated) == (
            answer.label,
            answer.layers,
            answer.truncated,
        )
        assert prediction.probabilities == pytest.approx(answer.probabilities, abs=1e-4)


# Answers


@pytest.mark.parametrize("batch_size", [1, 3, 32, 1000])
def test_answers_are_those_of_pytorch_in_the_order_of_the_inputs(predictor: Predictor, oracle: Oracle, batch_size: int):
    expected = [oracle.gates(text) for text in TEXTS]
    assert len({answer.layers for answer in expected}) > 4  # the gates do differ
    assert {answer.label for answer in expected} == set(oracle.labels)
    assert_same(predictor(TEXTS, batch_size=batch_size), expected)


@pytest.mark.parametrize("threshold", [-1e9, -2.0, -0.5, 0.7, 1.5, 1e9])
def test_gate_threshold_moves_the_routes(predictor: Predictor, oracle: Oracle, threshold: float):
    got = predictor(TEXTS, gate_threshold=threshold)
    assert_same(got, [oracle.gates(text, threshold) for text in TEXTS])
    if abs(threshold) == 1e9:
        assert {prediction.layers for prediction in got} == {(1, 2, 3, 4) if threshold < 0 else ()}


@pytest.mark.parametrize("most", [1, 2, 4])
def test_max_layers_caps_the_route(predictor: Predictor, oracle: Oracle, most: int):
    got = predictor(TEXTS, max_layers=most, batch_size=5)
    assert max(len(prediction.layers) for prediction in got) <= most
    assert_same(got, [oracle.gates(text, max_layers=most) for text in TEXTS])


def test_the_full_router_is_the_fine_tuned_model(predictor: Predictor, oracle: Oracle):
    got = predictor(TEXTS, router="full", batch_size=7)
    assert {prediction.layers for prediction in got} == {(1, 2, 3, 4)}
    assert_same(got, [oracle.full(text) for text in TEXTS])
    all_layers = predictor(TEXTS, gate_threshold=-1e9)  # the student's, which has other weights
    assert any(
        abs(a.probabilities["yes"] - b.probabilities["yes"]) > 1e-3 for a, b in zip(got, all_layers, strict=True)
    )


def test_a_single_text_gives_a_single_prediction(predictor: Predictor):
    assert isinstance(predictor("a good film"), Prediction)
    assert isinstance(predictor(("a good film", "a bad film")), Prediction)
    assert predictor("a good film") == predictor(["a good film"])[0]
    assert predictor(("a", "b")) == predictor([("a", "b")])[0] != predictor(["a", "b"])[0]
    assert predictor([]) == []


@pytest.mark.parametrize("text", ODD, ids=lambda text: repr(text)[:20])
def test_odd_texts_alone(predictor: Predictor, oracle: Oracle, text: Text):
    assert_same([predictor(text)], [oracle.gates(text)])


def test_truncated_says_whether_the_end_was_read(predictor: Predictor):
    words = "film " * 30  # with [CLS] and [SEP] the 32 tokens the model takes
    assert predictor([words, words + "film"])[0].truncated is False
    assert predictor([words, words + "film"])[1].truncated is True
    assert predictor(words).probabilities == pytest.approx(predictor(words + "film good").probabilities, abs=1e-6)


def test_probabilities_are_plain_numbers_that_sum_to_one(predictor: Predictor):
    for prediction in predictor(TEXTS):
        assert list(prediction.probabilities) == ["no", "yes"]
        assert all(type(p) is float and 0 <= p <= 1 for p in prediction.probabilities.values())
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.__getitem__)
        assert all(type(layer) is int for layer in prediction.layers)


@pytest.mark.parametrize("cut", ["bundle", "layers_bundle"])
def test_a_skipped_layer_is_not_computed(cut: str, request: pytest.FixtureRequest):
    with Predictor.load(request.getfixturevalue(cut)) as predictor:
        counting: dict[str, Counting] = {}
        predictor.gated = predictor.gated.wrapped(lambda name, piece: counting.setdefault(name, Counting(piece)))
        got = predictor(TEXTS, batch_size=8)
    layers = {name: piece for name, piece in counting.items() if name.startswith("layer_")}
    assert list(layers) == ["layer_01", "layer_02", "layer_03", "layer_04"]
    for number, layer in enumerate(layers.values(), start=1):
        assert layer.rows == sum(number in prediction.layers for prediction in got)
    assert 0 < sum(layer.rows for layer in layers.values()) < 4 * len(TEXTS)


def test_where_layers_answer_for_gates_these_are_asked_once_a_call(layers_bundle: Path):
    with Predictor.load(layers_bundle) as predictor:
        gates = Counting(predictor.gated.all_gates)
        predictor.gated = replace(predictor.gated, all_gates=gates)
        for text in TEXTS:
            gates.batches.clear()
            predictor(text)
            assert [rows for rows, _ in gates.batches] == [1]


# What is set when loading


def test_what_a_call_says_goes_before_what_was_loaded(bundle: Path, oracle: Oracle):
    with Predictor.load(bundle, gate_threshold=1e9) as predictor:
        assert predictor("good").layers == ()
        assert predictor("good", gate_threshold=-1e9).layers == (1, 2, 3, 4)
        assert predictor("good", router="full").layers == (1, 2, 3, 4)
        assert predictor("good", gate_threshold=0.0).layers == oracle.gates("good").layers
        assert predictor("good").layers == ()
    with Predictor.load(bundle, gate_threshold=-1e9, max_layers=2) as predictor:
        assert predictor("good").layers == (1, 2)
        assert predictor("good", max_layers=3).layers == (1, 2, 3)
        assert predictor("good").layers == (1, 2)
    with Predictor.load(bundle, router="full") as predictor:
        assert_same(predictor(TEXTS), [oracle.full(text) for text in TEXTS])
        assert_same(predictor(TEXTS, router="gates"), [oracle.gates(text) for text in TEXTS])


def test_the_default_thresholds_are_those_of_the_default_point(bundle: Path, tmp_path: Path, oracle: Oracle):
    copy = copy_of(bundle, tmp_path)
    for thresholds in ([1.5] * 4, [-2.0, 1.0, 0.0, -0.5]):
        change_manifest(copy, lambda plain, at=thresholds: plain["points"][0].update(thresholds=at))
        with Predictor.load(copy) as predictor:
            assert_same(predictor(TEXTS), [oracle.gates(text, thresholds) for text in TEXTS])


# Budgets

POINTS = {1.5: [1.5, 1.0, 0.5, 2.0], 2.0: [0.0] * 4, 3.0: [-1.0, -3.0, -0.5, -1.0]}


@pytest.fixture(scope="module", params=["bundle", "layers_bundle", "whole_bundle"])
def several_points(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with three operating points; the default one is in the middle."""
    copy = copy_of(request.getfixturevalue(request.param), tmp_path_factory.mktemp("points"))

    def change(plain: dict) -> None:
        point = plain["points"][0]
        plain["points"] = [point | {"budget": at, "thresholds": to, "mean_layers": at} for at, to in POINTS.items()]

    change_manifest(copy, change)
    return copy


def between(budget: float) -> list[float]:
    """Each gate's threshold on the straight line between its neighbours."""
    return [float(np.interp(budget, list(POINTS), gate)) for gate in zip(*POINTS.values(), strict=True)]


@pytest.mark.parametrize("budget", [1.5, 1.75, 2.0, 2.25, 2.9, 3.0, 0.375, 0.5, 0.6, 0.75])
def test_a_budget_sets_the_thresholds_of_its_point_or_between_those_of_its_neighbours(
    several_points: Path, oracle: Oracle, budget: float
):
    thresholds = between(budget if budget >= 1 else 4 * budget)  # below 1 a share of the four layers
    expected = [oracle.gates(text, thresholds) for text in TEXTS]
    with Predictor.load(several_points) as by_call, Predictor.load(several_points, budget=budget) as by_load:
        assert_same(by_call(TEXTS, budget=budget), expected)
        assert_same(by_load(TEXTS, batch_size=5), expected)
        assert_same(by_call(TEXTS), [oracle.gates(text) for text in TEXTS])  # at the default point, as before


def test_points_differ_or_the_tests_of_budgets_would_say_nothing(oracle: Oracle):
    routes = {
        budget: tuple(oracle.gates(text, between(budget)).layers for text in TEXTS) for budget in (1.5, 1.75, 2, 2.5, 3)
    }
    assert len(set(routes.values())) == len(routes)
    means = [np.mean([len(layers) for layers in route]) for route in routes.values()]
    assert means == sorted(means)


def test_a_budget_of_a_call_goes_before_what_was_loaded_and_a_threshold_before_a_budget(
    several_points: Path, oracle: Oracle
):
    def at(thresholds: float | list[float], most: int | None = None) -> list[Answer]:
        return [oracle.gates(text, thresholds, most) for text in TEXTS]

    with Predictor.load(several_points, budget=3) as predictor:
        assert_same(predictor(TEXTS, budget=1.5), at(POINTS[1.5]))
        assert_same(predictor(TEXTS, gate_threshold=0.7), at(0.7))
        assert_same(predictor(TEXTS, budget=1.5, max_layers=1), at(POINTS[1.5], 1))
        assert_same(predictor(TEXTS), at(POINTS[3.0]))
    with Predictor.load(several_points, gate_threshold=0.7, max_layers=2) as predictor:
        assert_same(predictor(TEXTS, budget=3), at(POINTS[3.0], 2))
        assert_same(predictor(TEXTS), at(0.7, 2))


@pytest.mark.parametrize("budget", [1.0, 1.4999, 3.0001, 4.0, 0.25, 0.9])
def test_a_budget_beyond_the_points_is_refused_with_the_command_that_adds_it(several_points: Path, budget: float):
    layers = budget if budget >= 1 else 4 * budget
    with Predictor.load(several_points) as predictor:
        for ask in (
            lambda: predictor("good", budget=budget),
            lambda: predictor(["good"] * 3, budget=budget),
            lambda: Predictor.load(several_points, budget=budget),
        ):
            with pytest.raises(BudgetError) as error:
                ask()
            message = one_line(error)
            assert f"budget {layers:g}: the bundle has operating points for 1.5, 2, 3;" in message
            assert "hadskip-export calibrate" in message and f"--budget {layers:g} --write" in message
        assert predictor("good").label


@pytest.mark.parametrize("budget", [0, -1, 4.5, 100, float("nan"), float("inf"), 0.0])
def test_what_is_no_budget_of_the_model_is_refused(several_points: Path, budget: float):
    with Predictor.load(several_points) as predictor:
        for ask in (lambda: predictor("good", budget=budget), lambda: Predictor.load(several_points, budget=budget)):
            with pytest.raises(BudgetError, match=r"budget.*the model has 4 layers") as error:
                ask()
            one_line(error)


def test_a_budget_and_a_threshold_together_are_refused(several_points: Path):
    """Each sets the thresholds; not even where they agree."""
    with Predictor.load(several_points) as predictor:
        for ask in (
            lambda: predictor("good", budget=2, gate_threshold=0.0),
            lambda: predictor("good", budget=2, gate_threshold=0.0, router="full"),
            lambda: Predictor.load(several_points, budget=2, gate_threshold=0.0),
        ):
            with pytest.raises(BudgetError, match=r"budget=2, gate_threshold=0\.0: .*leave one out") as error:
                ask()
            one_line(error)


def test_a_single_point_has_one_budget(bundle: Path, oracle: Oracle):
    with Predictor.load(bundle, budget=2) as predictor:
        assert_same(predictor(TEXTS), [oracle.gates(text) for text in TEXTS])
        with pytest.raises(BudgetError, match="operating points for 2;"):
            predictor("good", budget=2.5)


# Which engine


@pytest.fixture(scope="module")
def several_engines(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = copy_of(bundle, tmp_path_factory.mktemp("engines"))
    for engine, precision, cut in [("ort", "fp32", "whole"), ("ort", "int8", "layers"), ("openvino", "fp32", "gates")]:
        assert build(copy, engine=engine, precision=precision, cut=cut).parity == "passed"
    return copy


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "ort-fp32-gates"),
        ({"cut": "whole"}, "ort-fp32-whole"),
        ({"engine": "ort", "precision": "int8"}, "ort-int8-layers"),
        ({"precision": "int8", "cut": "layers"}, "ort-int8-layers"),
        ({"engine": "openvino"}, "openvino-fp32-gates"),
        ({"engine": "ort-fp32-whole"}, "ort-fp32-whole"),
    ],
    ids=str,
)
def test_the_engine_asked_for_is_the_one_that_runs(several_engines: Path, asked: dict, name: str, oracle: Oracle):
    with Predictor.load(several_engines, **asked) as predictor:
        assert predictor.engine_info.name == name
        kind, cut = name.split("-")[0], predictor.engine_info.cut
        assert type(predictor.engine) is engine_class(kind)
        assert isinstance(predictor.gated, Whole if cut == "whole" else Chain)
        assert cut == "whole" or bool(predictor.gated.gates) == (cut == "gates")
        if predictor.engine_info.precision == "fp32":
            assert_same(predictor(TEXTS), [oracle.gates(text) for text in TEXTS])


@pytest.mark.parametrize(
    "asked",
    [{"cut": "layers", "precision": "fp32"}, {"engine": "openvino", "cut": "whole"}, {"precision": "bf16"}],
    ids=str,
)
def test_an_engine_that_nobody_built_is_refused_with_those_there_are(several_engines: Path, asked: dict):
    with pytest.raises(BundleError, match=r"no engine .*ort-fp32-gates, ort-fp32-whole, ort-int8-layers") as error:
        Predictor.load(several_engines, **asked)
    one_line(error)


# What is set when loading, too


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_spinning_change_no_answer(bundle: Path, oracle: Oracle, threads: int):
    with Predictor.load(bundle, threads=threads, spinning=threads == 2) as predictor:
        assert_same(predictor(TEXTS), [oracle.gates(text) for text in TEXTS])


# Many threads at once


def test_many_threads_get_the_answers_of_one(predictor: Predictor):
    parts = [TEXTS[start::8] for start in range(8)]
    expected = [predictor(part, batch_size=4) for part in parts]
    start = threading.Barrier(8)

    def work(part: int) -> list[list[Prediction]]:
        start.wait()
        return [predictor(parts[part], batch_size=4) for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        for answers, reference in zip(pool.map(work, range(8)), expected, strict=True):
            for answer in answers:
                for got, wanted in zip(answer, reference, strict=True):
                    assert (got.label, got.layers, got.truncated) == (wanted.label, wanted.layers, wanted.truncated)
                    assert got.probabilities == pytest.approx(wanted.probabilities, abs=1e-6)


def test_threads_with_options_of_their_own_do_not_disturb_each_other(bundle: Path, oracle: Oracle):
    """Also loads the full model and the chain on the first calls, all at once."""
    options = [{}, {"router": "full"}, {"gate_threshold": 1e9}, {"gate_threshold": -1e9}, {"max_layers": 1}] * 2
    with Predictor.load(bundle, router="full") as predictor:
        start = threading.Barrier(len(options))

        def work(option: dict) -> list[Prediction]:
            start.wait()
            return predictor(TEXTS, **({"router": "gates"} | option))

        with ThreadPoolExecutor(len(options)) as pool:
            answers = list(pool.map(work, options))
    for option, answer in zip(options, answers, strict=True):
        if option.get("router") == "full":
            assert_same(answer, [oracle.full(text) for text in TEXTS])
        else:
            expected = [oracle.gates(t, option.get("gate_threshold", 0.0), option.get("max_layers")) for t in TEXTS]
            assert_same(answer, expected)


def test_closing_while_others_call_gives_answers_or_engine_errors(bundle: Path):
    for _ in range(5):
        predictor = Predictor.load(bundle, threads=1)
        in_the_middle = threading.Barrier(5)

        def work(predictor=predictor, in_the_middle=in_the_middle) -> BaseException | None:
            predictor(TEXTS[:6])
            in_the_middle.wait()
            try:
                while True:
                    predictor(TEXTS[:20], batch_size=1)
            except BaseException as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(work) for _ in range(4)]
            in_the_middle.wait()
            time.sleep(0.01)
            predictor.close()
            assert [type(worker.result()) for worker in workers] == [EngineError] * 4


# Errors, each one line


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        5,
        1.5,
        b"bytes",
        ["a", None],
        ["a", b"b"],
        [5],
        ("a", "b", "c"),
        [("a", "b", "c")],
        [("a", 5)],
        ("a", None),
        [[]],
        [["a"]],
        ("a",),
        (),
        [("a",)],
        {"a"},
        frozenset("a"),
        bytearray(b"bytes"),
        np.array("a"),
        np.array([["a", "b"]]),
        np.array([1.0]),
        pd.DataFrame({"text": ["a"], "pair": ["b"]}),
        pd.Series(["a", None]),
        pd.Series([1, 2]),
        range(3),
    ],
    ids=repr,
)
def test_what_is_no_text_is_a_data_error(predictor: Predictor, inputs):
    with pytest.raises(DataError) as error:
        predictor(inputs)
    assert "text" in one_line(error)


SEVERAL = {
    "list": list,
    "Series": pd.Series,
    "Series of strings": lambda texts: pd.Series(texts, dtype="string"),
    "Series with an index": lambda texts: pd.Series(texts, index=range(len(texts), 0, -1)),
    "Series of categories": lambda texts: pd.Series(texts, dtype="category"),
    "array": np.array,
    "array of objects": lambda texts: np.array(texts, object),
    "generator": iter,
    "deque": deque,
    "keys": lambda texts: dict.fromkeys(texts).keys(),
    "map": lambda texts: map(str, texts),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_texts_come_in_whatever_gives_them_in_order(predictor: Predictor, kind: str):
    texts = list(dict.fromkeys(text for text in TEXTS if isinstance(text, str) and "\0" not in text))
    got = predictor(SEVERAL[kind](texts), batch_size=5)
    assert type(got) is list and got == predictor(texts, batch_size=5)
    assert predictor(SEVERAL[kind]([])) == []


def test_pairs_come_in_whatever_gives_them_in_order(predictor: Predictor):
    pairs = [("the plot", "good"), ("good", "the plot"), ("a film", "")]
    expected = predictor(pairs)
    for several in (iter(pairs), pd.Series(pairs), zip(*zip(*pairs, strict=True), strict=True), map(list, pairs)):
        assert predictor(several) == expected


def test_a_text_of_numpy_is_a_text(predictor: Predictor):
    assert predictor(np.array(["a good film"])[0]) == predictor("a good film")
    assert predictor((np.str_("a"), "b")) == predictor(("a", "b"))


def test_a_tuple_is_told_to_be_a_pair(predictor: Predictor):
    with pytest.raises(DataError, match=r"got \(str, str, str\); give several texts as a list"):
        predictor(("a", "b", "c"))
    with pytest.raises(DataError, match=r"input 2: .*got \(str, int\)"):
        predictor([("a", "b"), ("a", 5)])


@pytest.mark.parametrize("inputs", ["\ud800", ["good", "bad \udfff"], ("good", "\ud83d")], ids=ascii)
def test_a_lone_surrogate_is_a_data_error(predictor: Predictor, inputs):
    with pytest.raises(DataError) as error:
        predictor(inputs)
    assert f"input {2 if isinstance(inputs, list) else 1}" in one_line(error)


def test_a_bad_input_is_named_by_its_place(predictor: Predictor):
    with pytest.raises(DataError, match="input 3"):
        predictor(["a", "b", 7, "c"])


WRONG = {
    "batch_size": (BudgetError, [0, -1, "8", 2.5, 2.0, True, None, float("nan"), [1]]),
    "max_layers": (BudgetError, [0, -1, 5, "2", 2.5, 2.0, True, float("nan"), [1]]),
    "budget": (BudgetError, ["x", "2", True, [2], 2j, float("nan")]),
    "gate_threshold": (BudgetError, ["a", "0.5", False, [0.5], 1j, float("nan"), 10**400]),
    "router": (BudgetError, ["dice", "", "GATES", 5, True, ["gates"]]),
    "threads": (EngineError, [0, -1, "2", 2.0, 1.5, True, [1]]),
    "spinning": (EngineError, ["no", 1, None]),
    "warm_up": (EngineError, ["no", 0, None]),
    "allow_failed": (EngineError, ["no", 0, None]),
    "engine": (BundleError, ["tpu", "", 5, ["ort"]]),
    "precision": (BundleError, ["fp8", "", 5]),
    "cut": (BundleError, ["halves", "", 5]),
}
OF_A_CALL = {"batch_size", "max_layers", "budget", "gate_threshold", "router"}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, (_, values) in WRONG.items() for value in values], ids=repr
)
def test_a_value_that_an_option_does_not_take_is_an_error_of_its_kind(
    bundle: Path, predictor: Predictor, option: str, value
):
    """See the table in docs/reliability.md."""
    asks = [lambda: Predictor.load(bundle, **{option: value})] if option != "batch_size" else []
    asks += [lambda: predictor("good", **{option: value})] if option in OF_A_CALL else []
    for ask in asks:
        with pytest.raises(HadskipError) as error:
            ask()
        assert type(error.value) is WRONG[option][0]
        assert option in one_line(error)


def test_numbers_of_numpy_are_numbers(bundle: Path, predictor: Predictor):
    expected = predictor("good", batch_size=3, max_layers=2, gate_threshold=0.5)
    options = {"batch_size": np.int16(3), "max_layers": np.uint8(2), "gate_threshold": np.float32(0.5)}
    assert predictor("good", **options) == expected
    assert predictor("good", budget=np.float64(2), max_layers=np.int64(4)) == predictor("good", budget=2)
    with Predictor.load(bundle, threads=np.int64(1), warm_up=np.True_) as other:
        assert other.labels == predictor.labels


def test_more_threads_than_processors_are_not_made(bundle: Path):
    """A pool of that many would take minutes, or all memory."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITH_MANY_THREADS, str(bundle)], timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= usable_cpus()


LOAD_WITH_MANY_THREADS = """
import sys
from hadskip_export.runtime import Predictor
with Predictor.load(sys.argv[1], threads=10**9) as predictor:
    predictor("good")
    print(repr(predictor).partition("threads=")[2].split()[0])
"""


def test_it_says_what_it_is(bundle: Path):
    with Predictor.load(bundle, threads=1) as predictor:
        told = f"<Predictor {str(bundle)!r} engine=ort-fp32-gates threads=1 router=gates"
        assert repr(predictor) == f"{told} budget=2.0 open>"
    assert repr(predictor) == f"{told} budget=2.0 closed>"
    with Predictor.load(bundle, threads=1, budget=0.5, max_layers=3) as predictor:
        assert repr(predictor) == f"{told} max_layers=3 budget=0.5 open>"
    with Predictor.load(bundle, threads=1, gate_threshold=0.5, router="full") as predictor:
        assert repr(predictor).endswith("router=full gate_threshold=0.5 open>")


@pytest.mark.parametrize("most", [0, -1, 5])
def test_a_cap_the_model_cannot_have_is_refused(bundle: Path, predictor: Predictor, most: int):
    with pytest.raises(BudgetError, match=r"max_layers=.* 1 to 4"):
        predictor("good", max_layers=most)
    with pytest.raises(BudgetError, match=r"max_layers=.* 1 to 4"):
        Predictor.load(bundle, max_layers=most)


def test_an_unknown_router_or_engine_is_refused(bundle: Path, predictor: Predictor):
    with pytest.raises(HadskipError, match="router='dice'"):
        predictor("good", router="dice")
    with pytest.raises(HadskipError, match="router='dice'"):
        Predictor.load(bundle, router="dice")
    with pytest.raises(BundleError, match="no engine with engine='tpu', only "):
        Predictor.load(bundle, engine="tpu")


def test_an_engine_this_version_does_not_know_is_refused(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    change_manifest(copy, lambda plain: plain["engines"][0].update(engine="abacus"))
    with pytest.raises(EngineError, match="abacus"):
        Predictor.load(copy)


def test_full_bert_runs_every_layer_whatever_else_is_asked_for(bundle: Path):
    """The kill switch of a service must work with the options that it has."""
    for options in ({"max_layers": 2}, {"gate_threshold": 1e9}, {"max_layers": 1, "budget": 2}):
        with Predictor.load(bundle, router="full", **options) as full, Predictor.load(bundle, **options) as gates:
            expected = full("good")
            assert expected.layers == (1, 2, 3, 4) and full("good", **options) == expected
            assert gates("good", router="full", **options) == expected
            assert full("good", router="gates") == gates("good") != expected


@pytest.mark.parametrize("first", ["gates", "full"])
def test_what_is_loaded_later_is_of_the_same_bundle_or_refused(first: str, bundle: Path, tmp_path: Path):
    """A new folder takes the place of one that is loaded, and the kill switch would answer with another model."""
    copy, later = copy_of(bundle, tmp_path), "full" if first == "gates" else "gates"
    with Predictor.load(copy, router=first) as predictor, Predictor.load(bundle) as other:
        weights = copy / "model" / "weights" / "fp32.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        with pytest.raises(BundleError, match="changed since it was loaded"):
            predictor("good", router=later)
        assert predictor("good", router=first) == other("good", router=first)
        content[-1] ^= 1
        weights.write_bytes(content)
        (copy / "engines" / next((copy / "engines").iterdir()).name / "report.json").write_text("{}")  # checked anew
        assert predictor("good", router=later) == other("good", router=later)


def test_another_working_folder_changes_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = copy_of(bundle, tmp_path)
    monkeypatch.chdir(tmp_path)
    with Predictor.load(copy.name) as predictor, Predictor.load(bundle) as other:
        monkeypatch.chdir("/")
        assert predictor("good", router="full") == other("good", router="full")


def test_what_was_built_is_run_whatever_was_asked_for_at_load(bundle: Path, predictor: Predictor, oracle: Oracle):
    encoded = predictor.tokenizer.encode(TEXTS)
    with Predictor.load(bundle, max_layers=1, gate_threshold=0.7) as capped:
        logits, routes = capped.run_as_built(encoded)
    expected, expected_routes = predictor.run(encoded)
    assert (routes == expected_routes).all() and routes.sum(axis=1).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    _, at = predictor.run_as_built(encoded, thresholds=[-2.0, 1.0, 0.0, -0.5])
    assert [as_route(row) for row in at.tolist()] == [oracle.gates(t, [-2.0, 1.0, 0.0, -0.5]).layers for t in TEXTS]


def test_a_bundle_without_the_full_model_has_no_kill_switch(bundle: Path, tmp_path: Path, oracle: Oracle):
    copy = copy_of(bundle, tmp_path)
    (copy / "model" / "full.onnx").unlink()
    change_manifest(copy, lambda plain: (plain["engines"][0]["files"].pop("full"), plain["pieces"].pop("full")))
    reseal(copy)
    with Predictor.load(copy) as predictor:
        assert_same(predictor(TEXTS), [oracle.gates(text) for text in TEXTS])
        with pytest.raises(BundleError, match="full") as error:
            predictor("good", router="full")
        assert str(copy) in one_line(error)
    with pytest.raises(BundleError, match="full"):
        Predictor.load(copy, router="full")


def test_an_engine_that_failed_parity_is_refused_unless_asked_for(bundle: Path, tmp_path: Path, oracle: Oracle):
    copy = copy_of(bundle, tmp_path)
    change_manifest(copy, lambda plain: plain["engines"][0].update(parity="failed", first_bad_piece="layer_03"))
    with pytest.raises(BundleError, match=r"parity.*layer_03") as error:
        Predictor.load(copy)
    assert str(copy) in one_line(error)
    with Predictor.load(copy, allow_failed=True) as predictor:
        assert_same(predictor(TEXTS), [oracle.gates(text) for text in TEXTS])


@pytest.mark.parametrize("cut", ["bundle", "layers_bundle", "whole_bundle"])
@pytest.mark.parametrize("router", ["gates", "full"])
def test_a_closed_predictor_says_so(cut: str, router, request: pytest.FixtureRequest):
    with Predictor.load(request.getfixturevalue(cut), router=router) as predictor:
        predictor("good")
    encoded = predictor.tokenizer.encode(["good"])
    for ask in (
        lambda: predictor("good"),
        lambda: predictor(["good", "bad"], batch_size=1),
        lambda: predictor("good", router="gates"),
        lambda: predictor("good", router="full"),
        lambda: predictor("good", budget=2),
        lambda: predictor.run(encoded),
        lambda: predictor.run_as_built(encoded),
        lambda: predictor.load_chain(),
        lambda: predictor.engine,
    ):
        with pytest.raises(EngineError, match="this predictor is closed; load the bundle again") as error:
            ask()
        one_line(error)
    predictor.close()  # a second time is no harm


@pytest.mark.parametrize("cut", ["bundle", "whole_bundle"])
def test_a_closed_predictor_holds_on_to_none_of_its_engines(cut: str, request: pytest.FixtureRequest):
    with Predictor.load(request.getfixturevalue(cut)) as predictor:
        predictor("good", router="full")
        chain = predictor.load_chain()
        held = [weakref.ref(one) for one in (predictor.engine, predictor.gated, predictor._full, chain)]
        del chain
    gc.collect()
    assert [one() for one in held] == [None] * 4


def test_a_whole_model_can_be_had_piece_by_piece_and_loads_pieces_for_nobody_else(
    whole_bundle: Path, loaded: dict[str, Counting], oracle: Oracle
):
    with Predictor.load(whole_bundle) as predictor:
        predictor(TEXTS)
        assert list(loaded) == ["whole"]
        chain = predictor.load_chain()
        assert {"embeddings", "layer_01", "gate_04", "head"} < set(loaded) and predictor.load_chain() is chain
        encoded = predictor.tokenizer.encode(TEXTS)
        _, routes = chain.run(pad(encoded), GatePolicy([0.5] * 4))
        assert [as_route(row) for row in routes.tolist()] == [oracle.gates(text, 0.5).layers for text in TEXTS]


def test_who_needs_nothing_loaded_does_not_wait_for_who_does(bundle: Path):
    """The kill switch is loaded when it is first asked for; meanwhile the others are answered."""
    with ThreadPoolExecutor(1) as other, Predictor.load(bundle) as predictor, predictor._lock:
        assert other.submit(predictor, "good").result(timeout=30)


def test_nan_as_threshold_is_refused(predictor: Predictor):
    """Every comparison with NaN is false: it would skip every layer without a word."""
    with pytest.raises(HadskipError, match="gate_threshold"):
        predictor("good", gate_threshold=float("nan"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("engine", "cut"), [("ort", "gates"), ("ort", "whole"), ("openvino", "whole")])
def test_logits_that_are_no_numbers_are_no_answer(bundle: Path, tmp_path: Path, engine: str, cut, value: float):
    """At warm-up and at every call; who looks into what is wrong gets them."""
    copy = copy_of(bundle, tmp_path)
    build(copy, engine=engine, cut=cut)
    weights = copy / read_bundle(copy).manifest.weights
    with safe_open(weights, "np") as file:
        about = file.metadata()
    tensors = load_file(weights)
    tensors["head.classifier.bias"][0] = value
    save_file(tensors, weights, about)
    reseal(copy)
    with pytest.raises(EngineError, match=f"{engine}-fp32-{cut} gives logits that are no finite numbers") as error:
        Predictor.load(copy, engine=engine, cut=cut)
    one_line(error)
    with Predictor.load(copy, engine=engine, cut=cut, warm_up=False) as predictor:
        for inputs in (TEXTS[0], TEXTS):
            with pytest.raises(EngineError, match="no finite numbers"):
                predictor(inputs)
        assert predictor(TEXTS[0], router="full").label  # its own weights are sound
    with Predictor.load(copy, engine=engine, cut=cut, allow_failed=True) as predictor:
        assert not np.isfinite(predictor.run(predictor.tokenizer.encode(["good"]))[0]).all()


def test_run_gives_logits_and_routes(predictor: Predictor, oracle: Oracle):
    logits, routes = predictor.run(predictor.tokenizer.encode(TEXTS), batch_size=3)
    assert logits.dtype == np.float32
    assert routes.dtype == bool
    assert logits.shape == (len(TEXTS), 2)
    assert routes.shape == (len(TEXTS), 4)
    assert [tuple(np.flatnonzero(row) + 1) for row in routes] == [oracle.gates(text).layers for text in TEXTS]


# Forced routes


def drawn_routes(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((len(TEXTS), 4)) < random.random((len(TEXTS), 1))


@pytest.mark.parametrize(("batch_size", "seed"), [(1, 0), (3, 1), (1000, 2)])
def test_forced_routes_give_the_answers_of_pytorch_on_those_routes(
    predictor: Predictor, oracle: Oracle, batch_size: int, seed: int
):
    routes = drawn_routes(seed)
    expected = [oracle.forced(text, route.tolist()) for text, route in zip(TEXTS, routes, strict=True)]
    assert_same(predictor(TEXTS, routes=routes, batch_size=batch_size), expected)


def test_a_single_text_has_a_single_route(predictor: Predictor, oracle: Oracle):
    for number in range(16):
        route = [bool(number >> layer & 1) for layer in range(4)]
        got = predictor("a good film", routes=np.array([route]), gate_threshold=1e9)
        assert_same([got], [oracle.forced("a good film", route)])


@pytest.mark.parametrize(
    "routes",
    [np.ones((1, 4), bool), np.ones((2, 3), bool), np.ones((2, 4)), np.ones((2, 4), np.int64), [[True] * 4] * 2],
    ids=["one row", "three layers", "float", "int", "list"],
)
def test_routes_of_another_shape_or_kind_are_refused(predictor: Predictor, routes):
    with pytest.raises(HadskipError, match=r"^routes: expected a bool array \(2, 4\)") as error:
        predictor(["good", "bad"], routes=routes)
    one_line(error)


# Tokenised before


def test_texts_and_tokenised_inputs_mix(predictor: Predictor, oracle: Oracle):
    tokenised = [
        {name: rows[0].numpy() for name, rows in oracle.ids(text)[0].items()} if place % 2 else text
        for place, text in enumerate(TEXTS)
    ]
    expected = [oracle.gates(text) for text in TEXTS]  # who gives ids has cut them
    expected = [replace(a, truncated=a.truncated and not place % 2) for place, a in enumerate(expected)]
    assert_same(predictor(tokenised, batch_size=5), expected)
    assert isinstance(predictor(tokenised[1]), Prediction)
    assert_same([predictor(tokenised[1])], [expected[1]])


# Batches


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 128), max_size=60), st.integers(1, 40), st.integers(0, 600))
def test_inputs_of_similar_length_share_a_batch(lengths: list[int], most: int, most_padding: int):
    batches = share_batches(lengths, most, most_padding)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    sizes = [[lengths[position] for position in batch] for batch in batches]
    assert [length for batch in sizes for length in batch] == sorted(lengths)
    assert all(len(batch) <= most and len(batch) * batch[-1] - sum(batch) <= most_padding for batch in sizes)
    for batch, after in itertools.pairwise(sizes):  # the first one is full
        longer = [*batch, after[0]]
        assert len(longer) > most or len(longer) * longer[-1] - sum(longer) > most_padding


def test_short_inputs_do_not_pay_for_a_long_one(bundle: Path, loaded: dict[str, Counting]):
    texts = ["good film"] * 20 + ["good film " * 12]
    with Predictor.load(bundle, warm_up=False, gate_threshold=-1e9) as predictor:
        answers = predictor(texts)
        assert [rows for rows, _ in loaded["layer_01"].batches] == [20, 1]
        assert [one.label for one in answers] == [predictor(text).label for text in texts]


@pytest.mark.parametrize("most", [np.int32(2), np.uint8(2), np.int64(2)])
def test_a_number_of_layers_may_be_numpys(whole_bundle: Path, bundle: Path, most: np.integer):
    with Predictor.load(whole_bundle) as ours, Predictor.load(bundle) as theirs:
        for one, other in zip(ours(TEXTS, max_layers=most), theirs(TEXTS, max_layers=2), strict=True):
            assert one.layers == other.layers


# Warming up


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counting]:
    """The pieces that are loaded, by name, with the batches they were given."""
    pieces: dict[str, Counting] = {}
    load = ort.OrtEngine.load
    monkeypatch.setattr(
        ort.OrtEngine, "load", lambda engine, name: pieces.setdefault(name, Counting(load(engine, name)))
    )
    return pieces


CALLED = {
    "bundle": ["gate_01", "gate_02", "gate_03", "gate_04"],
    "layers_bundle": ["gates"],
}


@pytest.mark.parametrize("cut", CALLED)
def test_loading_runs_every_piece(cut: str, loaded: dict[str, Counting], request: pytest.FixtureRequest):
    bundle = request.getfixturevalue(cut)
    layers = ["layer_01", "layer_02", "layer_03", "layer_04"]
    with Predictor.load(bundle, gate_threshold=1e9, max_layers=1):
        assert set(loaded) == {"embeddings", *layers, *CALLED[cut], "head"}
        assert all(piece.rows for piece in loaded.values())


@pytest.mark.parametrize("cut", ["bundle", "layers_bundle", "whole_bundle"])
def test_loading_for_the_full_model_runs_that_alone(
    cut: str, loaded: dict[str, Counting], request: pytest.FixtureRequest
):
    with Predictor.load(request.getfixturevalue(cut), router="full"):
        assert list(loaded) == ["full"]
        assert loaded["full"].rows == 1


def test_no_piece_runs_where_no_warming_up_is_wanted(bundle: Path, loaded: dict[str, Counting]):
    with Predictor.load(bundle, warm_up=False) as predictor:
        assert {"embeddings", "layer_01", "gate_04", "head"} < set(loaded)
        assert not any(piece.rows for piece in loaded.values())
        assert isinstance(predictor("good"), Prediction)


def test_warming_up_keeps_to_the_length_the_model_takes(bundle: Path, tmp_path: Path, loaded: dict[str, Counting]):
    copy = copy_of(bundle, tmp_path)
    change_manifest(copy, lambda plain: plain["model"].update(max_length=5))
    with Predictor.load(copy):
        assert max(length for piece in loaded.values() for _, length in piece.batches) <= 5


# A static route


@pytest.fixture(scope="module")
def static(static_bundle: Path):
    with Predictor.load(static_bundle) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def static_oracle(static_source: Source, model_folder: Path) -> Oracle:
    return Oracle(static_source, model_folder)


def layers_of(route: tuple[int, ...]) -> list[bool]:
    return [layer in route for layer in range(1, 5)]


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_a_static_route_gives_the_answers_of_pytorch_on_it(static: Predictor, static_oracle: Oracle, batch_size: int):
    got = static(TEXTS, batch_size=batch_size)
    assert {prediction.layers for prediction in got} == {STATIC_ROUTE}
    assert_same(got, [static_oracle.forced(text, layers_of(STATIC_ROUTE)) for text in TEXTS])
    for other in [(1, 2), (2, 4), (1, 4), (3,), (1, 2, 3)]:  # they would have shown
        wrong = [static_oracle.forced(text, layers_of(other)) for text in TEXTS]
        assert max(abs(a.probabilities["yes"] - b.probabilities["yes"]) for a, b in zip(got, wrong, strict=True)) > 1e-3


def test_a_single_text_and_a_batch_agree_on_a_static_route(static: Predictor):
    for text, among_others in zip(TEXTS, static(TEXTS), strict=True):
        one = static(text)
        assert (one.label, one.layers, one.truncated) == (among_others.label, STATIC_ROUTE, among_others.truncated)
        assert one.probabilities == pytest.approx(among_others.probabilities, abs=1e-6)


def test_of_a_static_route_only_its_layers_are_loaded_and_warmed_up(
    static_bundle: Path, loaded: dict[str, Counting], static_oracle: Oracle
):
    with Predictor.load(static_bundle, max_layers=1) as predictor:
        assert set(loaded) == {"embeddings", "layer_01", "layer_03", "head"}
        assert all(piece.rows == 1 for piece in loaded.values())
        assert predictor("good", max_layers=4).layers == STATIC_ROUTE
        assert [piece.rows for piece in loaded.values()] == [2] * 4


@pytest.mark.parametrize("most", [1, 2, 4])
def test_max_layers_caps_a_static_route(static: Predictor, static_bundle: Path, static_oracle: Oracle, most: int):
    expected = [static_oracle.forced(text, layers_of(STATIC_ROUTE[:most])) for text in TEXTS]
    assert_same(static(TEXTS, max_layers=most), expected)
    with Predictor.load(static_bundle, max_layers=most) as capped:
        assert_same(capped(TEXTS), expected)
    assert static("good").layers == STATIC_ROUTE


@pytest.mark.parametrize("cut", ["layers", "whole"])
def test_a_static_route_is_the_same_in_every_cut(
    static: Predictor, static_bundle: Path, static_oracle: Oracle, tmp_path: Path, cut
):
    copy = copy_of(static_bundle, tmp_path)
    build(copy, engine="ort", cut=cut)
    with Predictor.load(copy, cut=cut) as other:
        assert_same(other(TEXTS, batch_size=5), [static_oracle.forced(t, layers_of(STATIC_ROUTE)) for t in TEXTS])
        assert_same(other(TEXTS, max_layers=1), [static_oracle.forced(t, layers_of(STATIC_ROUTE[:1])) for t in TEXTS])


def test_a_static_bundle_has_the_full_model_too(static: Predictor, static_bundle: Path, static_oracle: Oracle):
    expected = [static_oracle.full(text) for text in TEXTS]
    assert_same(static(TEXTS, router="full"), expected)
    with Predictor.load(static_bundle, router="full") as full:
        assert_same(full(TEXTS), expected)
        assert full("good", router="gates").layers == STATIC_ROUTE


@pytest.mark.parametrize("router", ["gates", "full"])
@pytest.mark.parametrize("threshold", [0.0, -1e9, float("inf")])
def test_a_static_route_has_no_threshold_to_move(static: Predictor, static_bundle: Path, threshold: float, router):
    for ask in (
        lambda: static("good", gate_threshold=threshold, router=router),
        lambda: Predictor.load(static_bundle, gate_threshold=threshold, router=router),
    ):
        with pytest.raises(BudgetError, match=r"^gate_threshold: .* static route") as error:
            ask()
        assert str(static_bundle) in one_line(error)


@pytest.mark.parametrize("budget", [2, 1, 0.5])
def test_a_static_route_has_no_budget_to_choose(static: Predictor, static_bundle: Path, budget: float):
    """Not even its own."""
    for ask in (lambda: static("good", budget=budget), lambda: Predictor.load(static_bundle, budget=budget)):
        with pytest.raises(BudgetError, match=r"^budget: .* static route and no gates") as error:
            ask()
        assert str(static_bundle) in one_line(error)


def test_a_static_route_is_not_overruled(static: Predictor):
    with pytest.raises(BudgetError, match=r"^routes: .* static route") as error:
        static(["good", "bad"], routes=np.ones((2, 4), bool))
    one_line(error)


# What it says


def test_nothing_is_said_unless_somebody_listens(bundle: Path):
    code = """
import sys
from hadskip_export.runtime import Predictor
with Predictor.load(sys.argv[1]) as predictor:
    predictor(["good", "bad"])
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("verbose", [True, False])
def test_the_command_line_says_what_was_loaded_if_asked(bundle: Path, verbose: bool):
    code = "from hadskip_export.cli import main; main()"
    arguments = [*(["-v"] if verbose else []), "predict", str(bundle), "good"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    lines = [line for line in done.stderr.splitlines() if f"{bundle}: ort-fp32-gates loaded in" in line]
    assert len(lines) == verbose


def test_an_engine_that_was_never_checked_is_warned_of(bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def warnings(path: Path) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "hadskip_export"), Predictor.load(path):
            return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    assert warnings(bundle) == []
    copy = copy_of(bundle, tmp_path)
    change_manifest(copy, lambda plain: plain["engines"][0].update(parity="unverified"))
    (warning,) = warnings(copy)
    assert "ort-fp32-gates was never checked; run hadskip-export validate" in warning


@pytest.mark.parametrize("piece", ["embeddings", "gate_01", "layer_01", "layer_04", "head"])
def test_a_graph_that_gives_other_than_it_says_is_told_in_a_line(bundle: Path, tmp_path: Path, piece: str):
    """ONNX Runtime only warns of it."""

    def turn(model: onnx.ModelProto) -> None:
        (output,) = model.graph.output
        rank = len(output.type.tensor_type.shape.dim)
        for node in model.graph.node:
            node.output[:] = [f"{name}_before" if name == output.name else name for name in node.output]
        axes = onnx.helper.make_node("Unsqueeze", [f"{output.name}_before", "no_axis"], [output.name])
        if rank > 1:
            axes = onnx.helper.make_node("Transpose", [f"{output.name}_before"], [output.name], perm=range(rank)[::-1])
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "no_axis"))
        model.graph.node.append(axes)

    copy = copy_of(bundle, tmp_path)
    change_piece(copy, piece, turn)
    with pytest.raises(HadskipError) as error:
        Predictor.load(copy, engine="ort-fp32-gates")(["good", "the film is not very good"])
    assert "\n" not in str(error.value)
