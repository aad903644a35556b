"""Early exits all the way: trained, built by every engine, served, beside PyTorch's answers to one text at a time."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hadskip_export import bench, build, calibrate, inspect, train
from hadskip_export.data.columns import Columns
from hadskip_export.data.examples import read_examples
from hadskip_export.data.problems import MULTI, RANKING, REGRESSION
from hadskip_export.data.runs import read_run
from hadskip_export.modeling.checkpoint import load_student
from hadskip_export.report import text as report
from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.routing.routes import as_route
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.support.errors import BudgetError, BundleError, EngineError
from hadskip_export.trainers.methods import METHODS, create_method
from hadskip_export.trainers.methods.early_exit import EarlyExit
from hadskip_export.trainers.recipe import load_recipe
from hadskip_export.trainers.settings import those_read
from hadskip_export.verification.parity import apart, count_flips
from tests.conftest import needs_bf16, sentences
from tests.exporters.changing import WEIGHTS
from tests.runtime.editing import change_manifest, copy_of, set_value
from tests.test_heads import write_rows
from tests.trainers.runs import QUICKEST, repeat

NAMES = [name for name in METHODS if isinstance(create_method(name, load_recipe(), {}), EarlyExit)]
TEXTS = [text for text, _ in sentences(40, 8)]
# So that exits are not sure of everything.
HARD = ("stage1_lr=1e-3", "stage1_epochs=1", "body_lr=1e-4", "exit_lr=1e-4")


class Made:
    """Runs, of one teacher and a default budget of 2, and bundles of them with ONNX Runtime in fp32, in both cuts that
    there are: each made when it is first asked for."""

    def __init__(self, model_folder: Path, csv_files: tuple[Path, Path], folder: Path):
        self._arguments, self._folder = (model_folder, csv_files), folder

    @functools.cache  # noqa: B019  one object, that lives as long as the module's tests
    def run(self, name: str) -> Path:
        out = self._folder / "runs" / name
        repeat(*self._arguments, out, method=name, budget=2, settings=(*QUICKEST, *HARD), recipe=None)
        return out

    @functools.cache  # noqa: B019
    def bundle(self, name: str) -> Path:
        out = self._folder / "bundles" / name
        assert build(self.run(name), out=out, cut="gates").parity == "passed"
        assert build(out, engine="ort", cut="layers").parity == "passed"
        return out


@pytest.fixture(scope="module")
def made(model_folder: Path, csv_files, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(model_folder, csv_files, tmp_path_factory.mktemp("exits"))


QUICK_ONES = ("berxit", "pabee", "fastbert", "judged")  # a kind of exit each, and a criterion


@pytest.fixture(params=[name if name in QUICK_ONES else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def name(request) -> str:
    return request.param


class Plain:
    """PyTorch's answers to one text, through the student of a run."""

    def __init__(self, run: Path, bundle: Path):
        self.model, _ = load_student(read_run(run).checkpoint().folder)
        self.tokenizer = Predictor.load(bundle, warm_up=False).tokenizer
        self.labels = self.model.classifier.config.labels

    @torch.no_grad()
    def margins(self, text) -> tuple[np.ndarray, list[np.ndarray], list[bool]]:
        """Before each layer but the first, what all exits say, and the layers that gates, if any, let it run."""
        (encoded,) = self.tokenizer.encode([text])
        ids, types = (torch.from_numpy(values)[None].long() for values in (encoded.ids, encoded.type_ids))
        found, runs = self.model.ask(ids, torch.ones_like(ids), types)
        answers = [answer.numpy() for answer in found]
        return CRITERIA[self.model.criterion].margins(answers[:-1], runs.numpy())[0, 1:], answers, runs[0].tolist()

    def __call__(self, text, threshold: float, most: int = 99) -> tuple[str, tuple[int, ...], bool]:
        """Its label, the layers run, and whether a margin was so near the threshold that it may fall on either side."""
        margins, answers, open_gates = self.margins(text)
        route = [1]
        for layer in range(2, len(answers) + 1):
            if len(route) == most or margins[layer - 2] <= threshold:
                break
            if open_gates[layer - 1]:
                route.append(layer)
        label = self.labels[int(answers[route[-1] - 1][0, : len(self.labels)].argmax())]
        return label, tuple(route), bool(np.abs(margins - threshold).min() < 1e-4)


def answered_as_plainly(predictor: Predictor, plain: Plain, threshold: float) -> set[int]:
    """Checks the texts' answers, together and alone; returns how many layers they ran."""
    answers = predictor(TEXTS, gate_threshold=threshold)
    for text, got in zip(TEXTS, answers, strict=True):
        label, route, near = plain(text, np.float32(threshold))
        assert near or (got.label, got.layers) == (label, route)
        assert near or predictor(text, gate_threshold=threshold).layers == route
    return {len(got.layers) for got in answers}


@pytest.mark.parametrize("cut", ["gates", "layers"])
def test_it_answers_as_pytorch_does_one_text_at_a_time(made, name, cut):
    plain, layers = Plain(made.run(name), made.bundle(name)), set()
    medians = np.median([plain.margins(text)[0] for text in TEXTS], axis=0)
    with Predictor.load(made.bundle(name), cut=cut) as predictor:
        for threshold in (*(medians + 1e-3), *(point.thresholds[0] for point in predictor.bundle.manifest.points)):
            layers |= answered_as_plainly(predictor, plain, threshold)
        capped = predictor(TEXTS, gate_threshold=-1.0, max_layers=2)
        assert [(answer.label, answer.layers) for answer in capped] == [plain(text, -1.0, 2)[:2] for text in TEXTS]
    assert name == "smartbert" or (len(layers) > 1 and (name == "fastbert" or layers == {1, 2, 3}))


def test_the_figures_of_a_run_are_those_of_its_bundle(made, csv_files, name):
    summary = read_run(made.run(name)).summary
    assert [row["budget"] for row in summary["budgets"]] == [3, 2, 1]
    with Predictor.load(made.bundle(name)) as predictor:
        points = {point.budget: point for point in predictor.bundle.manifest.points}
        for row in summary["budgets"]:
            if row["budget"] in points:
                assert points[row["budget"]].mean_layers == row["mean_layers"]
                assert set(points[row["budget"]].thresholds) == {row["threshold"]}
    (row,) = bench(made.bundle(name), data=csv_files[1], batch=[4], cut="gates").rows
    asked = next(row for row in summary["budgets"] if row["budget"] == 2)
    assert (row.mean_layers, row.metric) == pytest.approx((asked["mean_layers"], asked["metric"]))


ENGINES = [
    ("ort", "int8"),
    ("openvino", "fp32"),
    pytest.param("openvino", "bf16", marks=needs_bf16),
    ("openvino", "int8"),
]


@pytest.mark.parametrize("cut", ["gates", "layers"])
@pytest.mark.parametrize(("engine", "precision"), ENGINES)
@pytest.mark.parametrize(
    "name",
    ["berxit", "judged", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pabee", "fastbert", "smartbert"))],
)
def test_every_engine_of_a_cpu_runs_exits(made, tmp_path, name, engine, precision, cut):
    mine = copy_of(made.bundle(name), tmp_path)
    found = build(mine, engine=engine, precision=precision, cut=cut)
    assert found.parity == "passed" and {"exit_01", "exit_02"} <= {piece.piece for piece in found.pieces}
    fused = "exit in layer_01" in {piece.piece for piece in found.pieces}
    assert fused == (cut == "layers" and precision != "bf16")
    with Predictor.load(mine, engine=engine, precision=precision, cut=cut) as predictor:
        assert [one.label for one in predictor(TEXTS)] == [one.label for one in map(predictor, TEXTS)]


@pytest.mark.parametrize(
    "kind", [REGRESSION, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (MULTI, RANKING))]
)
def test_gates_let_go_where_there_are_no_classes(kind, model_folder, tmp_path):
    """A score or several labels, which no other criterion is made for."""
    files = [write_rows(kind, tmp_path, name, count, seed) for name, count, seed in (("train", 300, 0), ("dev", 60, 1))]
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    train(
        model=str(model_folder), budget=2, out=run, train=str(files[0]), eval=str(files[1]), method="judged",
        settings=those_read((*QUICKEST, *HARD), "judged", None, fine_tuned=False), max_length=32,
        **({} if kind == MULTI else {"problem_type": kind}),
    )  # fmt: skip
    assert build(run, out=bundle, cut="gates").parity == "passed"
    for engine, cut in (("openvino", "layers"), ("ort", "whole"), ("openvino", "whole")):
        assert build(bundle, engine=engine, cut=cut).parity == "passed"
    plain, given = Plain(run, bundle), [("a film", text) for text in TEXTS] if kind == RANKING else TEXTS
    threshold = float(np.median([plain.margins(text)[0] for text in given])) + 1e-3
    for cut in ("gates", "whole"):
        with Predictor.load(bundle, engine="ort", cut=cut) as predictor:
            logits, routes = predictor.run(predictor.tokenizer.encode(given), gate_threshold=threshold)
        for row, text in enumerate(given):
            _, route, near = plain(text, np.float32(threshold))
            answer = plain.margins(text)[1][route[-1] - 1][0, : len(plain.labels)]
            assert near or as_route(routes[row]) == route
            assert near or np.abs(logits[row] - answer).max() < 1e-3
        assert len(np.unique(routes, axis=0)) > 1


def test_a_tensor_that_exits_share_is_there_once(made):
    stored = load_file(made.bundle("pabee") / WEIGHTS)
    assert not [name for name in stored if name.startswith("exits.") and "pooler" in name]
    assert {name for name in stored if name.startswith("exits.1.")} == {
        "exits.1.classifier.weight", "exits.1.classifier.bias",
    }  # fmt: skip
    certain = load_file(made.bundle("berxit") / WEIGHTS)
    assert len([name for name in certain if "certainty.weight" in name]) == 1


def test_texts_of_ones_own_move_its_operating_points(made, csv_files, tmp_path, name):
    mine = copy_of(made.bundle(name), tmp_path)
    texts = read_examples(csv_files[1], Columns()).texts
    found = calibrate(mine, csv_files[1], [2]).chosen
    with Predictor.load(mine) as predictor:
        ran = [len(one.layers) for one in predictor(texts, gate_threshold=found.threshold)]
        fewest = [len(one.layers) for one in predictor(texts, gate_threshold=99)]
    assert np.mean(ran) == found.routes.mean_layers and set(fewest) == {1}
    if found.keeps_budget:
        calibrate(mine, csv_files[1], [2], write=True)
        with Predictor.load(mine) as predictor:
            assert [len(one.layers) for one in predictor(texts, budget=2)] == ran


@pytest.mark.parametrize("name", ["pabee", "berxit"])
def test_what_comes_in_steps_has_nothing_between_two_budgets(made, name):
    with Predictor.load(made.bundle(name)) as predictor:
        low, high = (point.budget for point in predictor.bundle.manifest.points[-2:])
        between = (low + high) / 2
        if name == "berxit":
            assert len(predictor(TEXTS, budget=between)) == len(TEXTS)
        else:
            with pytest.raises(BudgetError, match=f"budget {between:g}: the bundle has operating points for"):
                predictor(TEXTS, budget=between)


def test_however_sure_the_exits_are_a_wrong_decision_is_no_near_tie(made):
    """The margins of all texts may lie near 0, where in the tolerance of logits any two are the same."""
    manifest = read_bundle(made.bundle("berxit")).manifest
    margins, threshold = np.array([[np.inf, 1e-5, 4e-6], [np.inf, 3e-6, 2e-6]], np.float32), np.float32(3.5e-6)
    routes = np.array([[True, True, True], [True, False, False]])
    wrong, near = np.array([[True, True, False], [True, True, True]]), np.full(3, 1e-3)
    assert count_flips(apart(manifest, margins, threshold), routes, wrong, near) == 2
    assert count_flips(margins - threshold, routes, wrong, near) == 0  # what logits' tolerance would say
    decided = margins[:, 1:]
    close = apart(manifest, decided * np.float32(1.0005), decided)
    assert np.abs(close).max() < 1e-3


def test_gates_of_exits_are_compared_as_gates_are_below_zero_too(made):
    manifest = read_bundle(made.bundle("judged")).manifest
    margins, thresholds = np.array([[np.inf, -3.0, -2.0]], np.float32), np.full(3, -2.5, np.float32)
    right, wrong = np.array([[True, False, False]]), np.array([[True, True, True]])
    assert count_flips(apart(manifest, margins, thresholds), right, wrong, np.full(3, 1e-3)) == 1
    assert count_flips(apart(manifest, margins, thresholds), right, wrong, np.full(3, 0.6)) == 0


# What is not to be had


def test_a_cut_or_an_engine_that_exits_have_not_is_refused_by_name(made, tmp_path):
    with pytest.raises(EngineError, match="--cut whole: not of a model with such exits, which has layers, gates"):
        build(made.run("berxit"), out=tmp_path / "bundle", cut="whole")
    with pytest.raises(EngineError, match="--cut whole"):
        build(made.bundle("berxit"), engine="openvino", cut="whole")
    with pytest.raises(EngineError, match="--engine torch-cuda: has no code for exits"):
        build(made.bundle("berxit"), engine="torch-cuda")
    assert not (tmp_path / "bundle").exists()
    assert build(made.run("berxit"), out=tmp_path / "bundle").cut == "layers"  # the fastest that there is


def test_routes_that_no_exit_leads_to_are_refused(made):
    with Predictor.load(made.bundle("berxit")) as predictor:
        encoded = predictor.tokenizer.encode(TEXTS[:2])
        logits, ran = predictor.run(encoded, routes=np.array([[True, False, False], [True, True, True]]))
        assert ran.tolist() == [[True, False, False], [True, True, True]] and np.isfinite(logits).all()
        for bad in ([[False, False, False]] * 2, [[True, False, True]] * 2, [[False, True, True]] * 2):
            with pytest.raises(BudgetError, match="the first layer"):
                predictor.run(encoded, routes=np.array(bad))


def test_a_bundle_says_what_lets_its_inputs_go(made):
    assert "router: exits, by uncertainty" in report.inspection(inspect(made.bundle("berxit")))
    assert (read_bundle(made.bundle("fastbert")).manifest.router.exit_inputs) == ("hidden_states", "attention_mask")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("router", "criterion", value="mood"), "'mood'; there are entropy"),
        (set_value("router", "criterion", value=None), "None; there are entropy"),
        (set_value("router", "exit_inputs", value=["input_ids"]), "exits that take input_ids"),
        (set_value("router", "exit_inputs", value=["hidden_states", "attention_mask"]), "is not what exit_01 does"),
        (set_value("router", "kind", value="gates"), "a criterion for exits that the router 'gates' has not"),
        (set_value("router", "route", value=[1]), "a static router has a route, and no other has one"),
        (set_value("engines", 0, "cut", value="whole"), "which are run layer by layer"),
        (lambda plain: plain["pieces"].pop("exit_02"), "the ONNX pieces lack exit_02"),
        (lambda plain: plain["engines"][0]["files"].pop("exit_01"), "has no exit_01"),
        (set_value("points", 0, "thresholds", value=[]), "a threshold for each of 3 layers"),
    ],
)
def test_a_manifest_that_does_not_fit_its_exits_is_refused(made, tmp_path, change, message):
    mine = copy_of(made.bundle("berxit"), tmp_path)
    change_manifest(mine, change)
    with pytest.raises(BundleError, match=message):
        read_bundle(mine)
    with pytest.raises(BundleError, match=message):
        build(mine, engine="openvino")
