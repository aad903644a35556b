"""Exits with gates on the way all the way: built by every engine that can, served, beside PyTorch."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hadskip_export import build, calibrate, inspect
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.write import write_bundle
from hadskip_export.modeling.checkpoint import StudentSettings, load_student, save_student
from hadskip_export.modeling.exits import ExitClassifier
from hadskip_export.report import text
from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.routing.points import Point
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.tokenization import Tokenizer, pad
from hadskip_export.support.errors import BudgetError, BundleError, EngineError, RecipeError
from hadskip_export.trainers.outcomes import find_outcomes
from hadskip_export.verification.golden import check_golden, read_golden
from hadskip_export.verification.parity import apart, count_flips
from hadskip_export.verification.torch_reference import TorchReference
from tests.conftest import make_source, needs_bf16, sentences, write_csv
from tests.exporters.changing import WEIGHTS, reseal
from tests.modeling.random_models import randomise
from tests.runtime.editing import change_manifest, copy_of, set_value
from tests.trainers.datasets import random_dataset

TEXTS = [sentence for sentence, _ in sentences(40, 8)]
THRESHOLD = 0.09  # the entropy of two logits that are 4 apart: half leave at each exit


@torch.no_grad()
def vary(model: ExitClassifier, texts: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Makes each gate let half of the texts through, and each exit as sure of some as it is unsure of others."""
    states = [model.classifier.embeddings(*one) for one in texts]
    for index, layer in enumerate(model.classifier.layers):
        masks = [torch.ones(1, state.shape[1], dtype=torch.int64) for state in states]
        if index:
            gate = model.gates[index]
            torch.nn.init.normal_(gate.logits.weight, std=1.5)
            asked = torch.cat([gate.margin(*one) for one in zip(states, masks, strict=True)])
            gate.logits.bias[0] -= asked.quantile(0.5)  # between two texts
        outputs = [layer(state, torch.zeros(1, 1, 1, state.shape[1]), None)[0] for state in states]
        if index < len(model.exits):
            last = model.exits[index].classifier
            answers = torch.cat([model.exits[index](*one) for one in zip(outputs, masks, strict=True)])
            apart = answers[:, 0] - answers[:, 1]
            last.weight *= 2 / apart.std()
            last.bias.zero_()
            answers = torch.cat([model.exits[index](*one) for one in zip(outputs, masks, strict=True)])
            last.bias[0] = 4 - (answers[:, 0] - answers[:, 1]).mean()  # few labels are near a tie
        runs = [model.runs(index, *one).item() for one in zip(states, masks, strict=True)]
        states = [output if run else state for output, state, run in zip(outputs, states, runs, strict=True)]


@pytest.fixture(scope="module")
def source(model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Of random weights, whose gates and exits differ from input to input."""
    found = make_source(model_folder, tmp_path_factory.mktemp("source"))
    model = ExitClassifier(found.model.classifier, "attention", "entropy", gate_width=8, jumps=True).eval()
    randomise(model.exits, 3, std=0.2)
    encoded = Tokenizer(found.tokenizer, found.max_length).encode(TEXTS)
    vary(model, [tuple(torch.from_numpy(part)[None].long() for part in (one.ids, one.type_ids)) for one in encoded])
    point = Point(2.0, (THRESHOLD,) * len(model.gates), "evaluation", 2.0)
    return replace(found, model=model.eval(), points=(point,))


@pytest.fixture(scope="module")
def bundle(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gated") / "bundle"
    report = write_bundle(source, out, EnginePlan.of(cut="gates", router=source.router))
    assert report is not None and report.parity == "passed"
    pieces = {piece.piece for piece in report.pieces}
    assert {"gate_02", "gate_04", "exit_01", "exit_03"} <= pieces and "gate_01" not in pieces
    for engine, cut in (("ort", "layers"), ("openvino", "layers"), ("openvino", "gates")):
        assert build(out, engine=engine, cut=cut).parity == "passed"
    return out


@torch.no_grad()
def plainly(model: ExitClassifier, predictor: Predictor, given: str, threshold: float):
    """The logits and the route of one text, and whether a decision was near a tie."""
    (encoded,) = predictor.tokenizer.encode([given])
    ids, types = (torch.from_numpy(values)[None].long() for values in (encoded.ids, encoded.type_ids))
    mask, body, bias = torch.ones_like(ids), model.classifier, torch.zeros(1, 1, 1, ids.shape[1])
    hidden, answer, route, near = body.embeddings(ids, types), None, [], False
    for number, layer in enumerate(body.layers, 1):
        if number > 1:
            (doubt,) = CRITERIA["entropy"].look(answer, np.zeros((1, 0)))[0]
            gate = model.gates[number - 1].margin(hidden, mask).item()
            near |= min(abs(doubt - threshold), abs(gate)) < 1e-4
            if doubt <= threshold:
                break
            if gate <= 0:
                continue
        hidden = layer(hidden, bias, None)[0]
        leave = body.head if number == len(body.layers) else model.exits[number - 1]
        answer = leave(hidden, mask).numpy()
        route.append(number)
    return answer[0], tuple(route), near


@pytest.mark.parametrize("engine", ["ort-fp32-gates", "ort-fp32-layers", "openvino-fp32-gates", "openvino-fp32-layers"])
def test_it_answers_as_a_plain_loop_does(source, bundle, engine):
    routes = set()
    with Predictor.load(bundle, engine=engine) as predictor:
        for batch_size in (1, 7):
            answers = predictor(TEXTS, batch_size=batch_size)
            encoded = predictor.tokenizer.encode(TEXTS)
            logits, _ = predictor.run(encoded, batch_size)
            for row, given in enumerate(TEXTS):
                expected, route, near = plainly(source.model, predictor, given, np.float32(THRESHOLD))
                assert near or answers[row].layers == route
                assert near or np.abs(logits[row] - expected).max() < 1e-3
                routes.add(route)
    jumped = [route for route in routes if route != tuple(range(1, len(route) + 1))]
    assert len(routes) > 3 and jumped and {route[-1] for route in routes} >= {1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "precision"), [("ort", "int8"), pytest.param("openvino", "bf16", marks=needs_bf16)])
@pytest.mark.parametrize("cut", ["gates", "layers"])
def test_lower_precision_passes_its_check(bundle, engine, precision, cut, tmp_path):
    mine = copy_of(bundle, tmp_path)
    report = build(mine, engine=engine, precision=precision, cut=cut)
    assert report.parity == "passed", report


def test_routes_from_outside_are_run_whatever_gates_say(source, bundle):
    routes = np.array([[True, False, False, True], [True, False, True, False], [True, True, True, True]])
    with Predictor.load(bundle) as predictor:
        encoded = predictor.tokenizer.encode(TEXTS[:3])
        logits, ran = predictor.run(encoded, routes=routes)
        assert (ran == routes).all()
        for row, one in enumerate(encoded):
            ids, types = (torch.from_numpy(values)[None].long() for values in (one.ids, one.type_ids))
            state = source.model.classifier.embeddings(ids, types)
            for index in np.flatnonzero(routes[row]):
                state = source.model.classifier.layers[index](state, torch.zeros(1, 1, 1, ids.shape[1]), None)[0]
            route = tuple((np.flatnonzero(routes[row]) + 1).tolist())
            expected = source.model.answer(route, state, torch.ones_like(ids)).detach().numpy()
            assert np.abs(logits[row] - expected).max() < 1e-3
        with pytest.raises(BudgetError, match="every input runs the first layer"):
            predictor.run(encoded, routes=~routes)


def changed(bundle: Path, folder: Path, change: Callable[[np.ndarray], np.ndarray], *names: str) -> Path:
    """A copy of a bundle with other tensors."""
    mine = copy_of(bundle, folder)
    stored = load_file(mine / WEIGHTS)
    with safe_open(mine / WEIGHTS, "numpy") as file:
        about = file.metadata()
    save_file(stored | {name: change(stored[name]) for name in names}, mine / WEIGHTS, about)
    reseal(mine)
    return mine


def with_gate_turned(bundle: Path, folder: Path) -> Path:
    return changed(bundle, folder, np.negative, "gates.2.weight", "gates.2.bias")


def test_the_check_of_a_build_sees_a_gate_that_decides_otherwise(source, bundle, tmp_path):
    """And so does that of the golden inputs, on the machine that serves."""
    with Predictor.load(bundle) as predictor:
        assert check_golden(predictor, read_golden(predictor.bundle)).passed
    with Predictor.load(with_gate_turned(bundle, tmp_path), engine="ort-fp32-gates", warm_up=False) as predictor:
        found = check_golden(predictor, read_golden(predictor.bundle))
    assert found.flips > 0 and not found.passed


def test_an_engine_with_code_of_its_own_says_that_it_has_none_for_this(source, bundle, tmp_path):
    with pytest.raises(EngineError, match="--engine torch-cuda: has no code for exits"):
        build(bundle, engine="torch-cuda")
    with pytest.raises(EngineError, match="--cut whole: not of a model with such exits"):
        build(bundle, engine="openvino", cut="whole")


def test_the_checkpoint_remembers(source, tmp_path):
    save_student(source.model, StudentSettings(8, THRESHOLD, 2.0), tmp_path / "student")
    model, _ = load_student(tmp_path / "student")
    assert model.gates and all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in source.model.state_dict().items()
    )


def test_a_bundle_says_what_it_has(bundle):
    assert "router: gated exits, by entropy" in "\n".join(text.inspection(inspect(bundle)))


def test_a_bundle_meets_other_budgets_on_other_texts(bundle, tmp_path):
    found = calibrate(bundle, write_csv(tmp_path / "texts.csv", [(one,) for one in TEXTS], ("text",)), [1.5])
    with Predictor.load(bundle) as predictor:
        layers = [len(answer.layers) for answer in predictor(TEXTS, gate_threshold=found.chosen.threshold)]
    assert abs(np.mean(layers) - 1.5) < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("router", "kind", value="exits-of-tomorrow"), "the router 'exits-of-tomorrow' is not known"),
        (lambda plain: plain["pieces"].pop("gate_03"), "the ONNX pieces lack gate_03"),
        (lambda plain: plain["engines"][0]["files"].pop("gate_02"), "has no gate_02"),
        (set_value("engines", 0, "cut", value="whole"), "which are run layer by layer"),
        (set_value("points", 0, "thresholds", 2, value=0.3), "exits with several thresholds, not one"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle, tmp_path, change, message):
    mine = copy_of(bundle, tmp_path)
    change_manifest(mine, change)
    with pytest.raises(BundleError, match=message):
        read_bundle(mine)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, THRESHOLD])
def test_wherever_the_threshold_is_a_gate_that_decides_otherwise_is_no_near_tie(source, bundle, tmp_path, threshold):
    """At the largest budgets no exit lets anybody go, and the threshold is below all margins."""
    manifest, model = read_bundle(bundle).manifest, source.model
    thresholds, reference = np.full(4, threshold, np.float32), TorchReference(model, None)
    with Predictor.load(bundle) as predictor:
        encoded = predictor.tokenizer.encode(TEXTS)
        _, expected = predictor.run(encoded, gate_threshold=threshold)
    with Predictor.load(with_gate_turned(bundle, tmp_path), warm_up=False) as predictor:
        _, got = predictor.run(encoded, gate_threshold=threshold)
    traces = [reference.trace(pad([one]), thresholds) for one in encoded]
    routes, margins = (np.stack([getattr(trace, name) for trace in traces]) for name in ("route", "margins"))
    far, near = apart(manifest, margins, thresholds), np.full(4, 1e-3)
    assert count_flips(far, routes, expected, near) == 0 and (routes == expected).all(axis=1).mean() > 0.9
    different = (routes != got).any(axis=1)
    assert different.sum() > 5 and count_flips(far, routes, got, near) == different.sum()


def test_no_threshold_opens_a_gate(source, bundle, tmp_path):
    """Neither that of a budget beyond what the gates leave nor one that somebody asks for."""
    texts = write_csv(tmp_path / "texts.csv", [(one,) for one in TEXTS], ("text",))
    with Predictor.load(bundle) as predictor:
        most = predictor(TEXTS, gate_threshold=-1.0)
        found = calibrate(bundle, texts, [4]).chosen
        for threshold in (found.threshold, -1e30):
            assert [one.layers for one in predictor(TEXTS, gate_threshold=threshold)] == [one.layers for one in most]
    mean = np.mean([len(one.layers) for one in most])
    assert found.routes.mean_layers == mean < 3.5 and not found.keeps_budget


def test_gates_that_are_no_numbers_are_said_to_be(source, bundle, tmp_path):
    mine = changed(bundle, tmp_path, lambda bias: np.full_like(bias, np.nan), "gates.1.bias")
    with pytest.raises(EngineError, match="no numbers"):
        calibrate(mine, write_csv(tmp_path / "texts.csv", [(one,) for one in TEXTS], ("text",)), [2])
    model = copy.deepcopy(source.model)
    torch.nn.init.constant_(model.gates[1].logits.bias, float("nan"))
    with pytest.raises(RecipeError, match="no numbers; lower gate_lr"):
        find_outcomes(model, random_dataset(5))


def test_where_all_gates_are_shut_every_budget_is_one_layer(source, tmp_path):
    model = copy.deepcopy(source.model)
    for gate in model.gates[1:]:
        torch.nn.init.constant_(gate.logits.weight, 0)
        gate.logits.bias.data = torch.tensor([-1.0, 1.0])
    write_bundle(replace(source, model=model), tmp_path / "shut", EnginePlan.of(cut="gates", router=source.router))
    found = calibrate(
        tmp_path / "shut", write_csv(tmp_path / "t.csv", [(one,) for one in TEXTS], ("text",)), [3]
    ).chosen
    assert found.routes.mean_layers == 1 and not found.keeps_budget
