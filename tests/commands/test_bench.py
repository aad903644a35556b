"""`bench` on a tiny bundle: every figure is there, and those that can be checked are right."""

import dataclasses
import html
import json
import re
import shlex
from pathlib import Path

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hadskip_export import bench, build, validate
from hadskip_export.benchmark import systems
from hadskip_export.benchmark.measure import TURNS
from hadskip_export.benchmark.systems import MOST_CALLS, choose_calls
from hadskip_export.cli import main
from hadskip_export.commands.bench import EXAMPLES, Row, faster_cut
from hadskip_export.report.plain import to_json
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import Cut
from hadskip_export.support.errors import BundleError, DataError
from tests.conftest import make_source, sentences, write_csv, write_cut
from tests.runtime.editing import Refusal, add_to_weights, change_manifest, change_piece, copy_of, outcome

ROWS = [(text, "yes" if label == "positive" else "no") for text, label in sentences(12, 51)]
# DESIGN.md: a row of `estimate`, and what `bench` has besides.
FIELDS = [
    "engine", "precision", "cut", "seq", "batch", "routing", "layers", "layers_run", "last_run", "embeddings_ms",
    "layer_ms", "last_layer_ms", "head_ms", "full_p50_ms", "speedup", "speedup_low", "speedup_high", "ideal",
    "efficiency", "metric", "full_metric", "mean_layers", "p50", "p90", "p99",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("labelled") / "data.csv", ROWS)


@pytest.fixture(scope="module")
def result(bundle: Path, data: Path) -> dict:
    """As `--json` writes it."""
    return json.loads(to_json(bench(bundle, data=data, batch=(1, 5), profile=True)))


def test_rows_have_the_fields_of_the_design(result: dict):
    assert set(result) == {"environment", "rows", "peers"} and result["peers"] == []
    assert [row["batch"] for row in result["rows"]] == [1, 5]
    for row in result["rows"]:
        assert set(FIELDS) <= set(row)
        for name in FIELDS:
            assert isinstance(row[name], str if name in ("engine", "precision", "cut", "routing") else int | float)
    for part in ("chip", "cpus", "versions", "load", "load_after"):
        assert part in result["environment"]


def test_samples_are_calls_by_turns_and_the_figures_follow_from_them(result: dict):
    for row, calls in zip(result["rows"], (12, 2), strict=True):
        skip, full = (np.array(row["samples"][system]) for system in ("skip", "full"))
        assert skip.shape == full.shape == (calls, TURNS)
        for name, values, q in (("p50", skip, 50), ("p90", skip, 90), ("p99", skip, 99), ("full_p50_ms", full, 50)):
            assert row[name] == pytest.approx(np.percentile(values, q) * 1000)
        ratio = np.median(full, axis=1).sum() / np.median(skip, axis=1).sum()
        assert row["speedup"] == pytest.approx(ratio)
        assert row["speedup_low"] <= ratio <= row["speedup_high"]
        outside, layer, last = row["embeddings_ms"] + row["head_ms"], row["layer_ms"], row["last_layer_ms"]
        before = row["layers_run"] - row["last_run"]
        ideal = (outside + 3 * layer + last) / (outside + before * layer + row["last_run"] * last)
        assert row["ideal"] == pytest.approx(ideal)
        assert row["efficiency"] == pytest.approx(ratio / ideal)


def test_metric_and_layers_are_the_predictor_s(result: dict, bundle: Path, data: Path):
    expected = validate(bundle, data=data).data
    with Predictor.load(bundle) as predictor:
        predictions = predictor([text for text, _ in ROWS])
        tokens = [len(encoded) for encoded in predictor.tokenizer.encode([text for text, _ in ROWS])]
    layers = np.array([len(prediction.layers) for prediction in predictions])
    for row in result["rows"]:
        assert row["layers"] == 4
        assert (row["data"], row["metric_name"]) == ("data.csv", "accuracy")
        assert row["metric"] == expected.value
        assert row["full_metric"] == expected.full_value
        assert row["mean_layers"] == pytest.approx(layers.mean())
        assert row["histogram"] == pytest.approx([(layers == count).mean() for count in range(5)])
        assert sum(row["histogram"]) == pytest.approx(1)
    timed = np.concatenate(choose_calls(len(ROWS), 1))
    assert result["rows"][0]["layers_run"] == pytest.approx(layers[timed].mean())
    assert result["rows"][0]["seq"] == pytest.approx(np.array(tokens)[timed].mean())


def test_a_profile_adds_up_to_calls_and_names_every_part(result: dict):
    for row in result["rows"]:
        assert list(row["profile"]) == [
            "tokeniser", "embeddings", *(f"layer_0{number}" for number in range(1, 5)), "gates", "head", "python",
        ]  # fmt: skip
        assert min(row["profile"].values()) >= 0
        assert 0.2 * row["p50"] < sum(row["profile"].values()) < 20 * row["p50"]


def command_of(page: Path) -> tuple[str, list[str]]:
    """The command that a page says it was made with: its name, and all behind it."""
    found = re.search(r"<dt>command</dt><dd>(.*?)</dd>", page.read_text(encoding="utf-8"))
    _, name, *words = shlex.split(html.unescape(found.group(1)))
    return name, words


def test_a_page_says_the_command_that_makes_it_again(bundle: Path, data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(systems, "MOST_CALLS", 2)
    page = tmp_path / "it's a page.html"
    words = [str(bundle), "--data", str(data), "--batch", "2", "--batch", "3", "--max-layers", "2", "--profile"]
    words += ["--text-column", "text", "--report", str(page)]
    assert CliRunner().invoke(main, ["bench", *words], catch_exceptions=False).exit_code == 0
    name, again = command_of(page)
    one, other = (main.commands["bench"].make_context("bench", list(given)).params for given in (words, again))
    assert name == "bench" and one == other


def test_easy_and_hard_texts_are_shown_with_their_layers(result: dict, bundle: Path, data: Path):
    with Predictor.load(bundle) as predictor:
        layers = {
            text: prediction.layers for (text, _), prediction in zip(ROWS, predictor([t for t, _ in ROWS]), strict=True)
        }
    counts = sorted(map(len, layers.values()))
    for row in result["rows"]:
        assert {one["text"]: tuple(one["route"]) for one in row["examples"]}.items() <= layers.items()
        shown = [len(one["route"]) for one in row["examples"]]
        assert shown == counts[:EXAMPLES] + counts[-EXAMPLES:]
        assert sum(row["usage"]) == pytest.approx(row["mean_layers"])


def test_max_layers_caps_the_layers_that_are_timed(bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(systems, "MOST_CALLS", 2)
    (row,) = bench(bundle, data=data, max_layers=1).rows
    assert row.mean_layers <= 1
    assert row.profile is None


def test_a_static_route_is_timed_and_profiled_on_its_layers(
    static_bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(systems, "MOST_CALLS", 2)
    (row,) = bench(static_bundle, data=data, batch=(3,), profile=True).rows
    assert row.mean_layers == row.layers_run == 2
    assert row.histogram == (0, 0, 1, 0, 0)
    assert list(row.profile) == ["tokeniser", "embeddings", "layer_01", "layer_03", "head", "python"]
    assert min(row.profile.values()) > 0
    expected = validate(static_bundle, data=data).data
    assert (row.metric, row.full_metric) == (expected.value, expected.full_value)
    (capped,) = bench(static_bundle, data=data, batch=(3,), max_layers=1).rows
    assert capped.mean_layers == 1


def test_of_a_route_of_one_layer_nobody_knows_what_the_others_cost(model_folder: Path, tmp_path: Path, monkeypatch):
    """It is the last one, which computes less than they do, so there is no ideal."""
    monkeypatch.setattr(systems, "MOST_CALLS", 2)
    write_cut(make_source(model_folder, tmp_path, layers=2, fixed_route=(2,)), tmp_path, "gates")
    (row,) = bench(tmp_path / "bundle", batch=(3,)).rows
    assert (row.layers_run, row.last_run) == (1, 1)
    assert (row.layer_ms, row.ideal, row.efficiency) == (None, None, None)
    assert row.last_layer_ms > 0


def test_a_static_route_that_gives_wrong_answers_is_not_timed(static_bundle: Path, tmp_path: Path):
    copy = copy_of(static_bundle, tmp_path)
    change_piece(copy, "layer_03", add_to_weights(0.5))
    with pytest.raises(BundleError, match="does not give its golden answers"):
        bench(copy)


def test_an_engine_that_gives_wrong_answers_is_not_timed(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    change_piece(copy, "layer_02", add_to_weights(0.5))
    with pytest.raises(BundleError, match=r"does not give its golden answers .* hadskip-export validate"):
        bench(copy)


def test_an_engine_that_was_never_checked_is_not_timed(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    change_manifest(copy, lambda plain: plain["engines"][0].update(parity="unverified"))
    with pytest.raises(BundleError, match="ort-fp32-gates was never checked; run hadskip-export validate"):
        bench(copy)


def test_where_the_calls_cost_much_the_command_of_the_fastest_cut_is_told(
    bundle: Path, layers_bundle: Path, whole_bundle: Path, static_bundle: Path
):
    def hint(path: Path, efficiency: float | None = 0.7) -> str | None:
        opened = read_bundle(path)
        return faster_cut(opened, opened.engine(), efficiency)

    for path in (bundle, layers_bundle, static_bundle):
        assert hint(path) == f"hadskip-export build {path} --engine ort --precision fp32 --cut whole"
    assert [hint(bundle, 0.95), hint(bundle, None), hint(whole_bundle)] == [None] * 3


def test_the_command_that_is_told_is_one_that_works(bundle: Path, tmp_path: Path):
    opened = read_bundle(copy_of(bundle, tmp_path))
    command = faster_cut(opened, opened.engine(), 0.5)
    assert command is not None
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    built = read_bundle(opened.path).engine(cut="whole")
    assert faster_cut(opened, built, 0.5) is None


@pytest.mark.parametrize("cut", ["layers", "whole"])
def test_the_engine_that_is_timed_is_the_one_asked_for(
    cut: Cut, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(systems, "MOST_CALLS", 2)
    copy = copy_of(bundle, tmp_path)
    assert build(copy, engine="ort", cut=cut).parity == "passed"
    (row,) = bench(copy, batch=(2,), cut=cut, profile=True).rows
    assert (row.engine, row.precision, row.cut, row.full_engine) == ("ort", "fp32", cut, f"ort-fp32-{cut}")
    assert ("whole" in row.profile) == (cut == "whole")
    assert row.ideal is not None and row.layer_ms > 0  # of the pieces one by one, whatever the cut
    assert bench(copy, batch=(2,)).rows[0].cut == "gates"


def test_golden_texts_are_timed_where_no_data_is_given(layers_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(systems, "MOST_CALLS", 3)
    before = psutil.Process().children()
    (row,) = bench(layers_bundle, batch=(4,)).rows
    assert (row.data, row.metric, row.full_metric) == (None, None, None)
    assert np.array(row.samples["skip"]).shape == (3, TURNS)
    assert psutil.Process().children() == before


def test_the_batch_of_a_row_is_the_batch_that_was_timed(bundle: Path, data: Path):
    """There are only twelve texts: either that is said, or a batch of a hundred is refused."""
    found = outcome(lambda: bench(bundle, data=data, batch=(100,)))
    assert "--batch" in found if isinstance(found, Refusal) else found.rows[0].batch == len(ROWS)


@given(st.integers(1, 500), st.integers(1, 64), st.integers(0, 5))
def test_calls_are_full_batches_of_different_texts(texts: int, batch: int, seed: int):
    batch = min(batch, texts)  # more is refused before
    calls = choose_calls(texts, batch, seed)
    assert 1 <= len(calls) <= MOST_CALLS
    assert {len(call) for call in calls} == {min(batch, texts)}
    rows = np.concatenate(calls).tolist()
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(texts))
    assert len(calls) == min(MOST_CALLS, max(1, texts // batch))
    assert [call.tolist() for call in calls] == [call.tolist() for call in choose_calls(texts, batch, seed)]


def test_what_it_cannot_compare_with_is_refused(bundle: Path, tmp_path: Path):
    with pytest.raises(DataError, match="--batch"):
        bench(bundle, batch=(1, 0))
    copy = copy_of(bundle, tmp_path)
    change_manifest(copy, lambda plain: plain["engines"][0]["files"].pop("full"))
    with pytest.raises(BundleError, match="no-full"):
        bench(copy)


def test_data_it_cannot_use_is_refused(bundle: Path, tmp_path: Path):
    with pytest.raises(DataError, match="'maybe' is not known"):
        bench(bundle, data=write_csv(tmp_path / "data.csv", [("good", "maybe")]))
    with pytest.raises(DataError, match="no rows"):
        bench(bundle, data=write_csv(tmp_path / "empty.csv", []))
    with pytest.raises(BundleError, match="no engine with engine='trt'"):
        bench(bundle, engine="trt")


def test_a_row_is_what_json_holds(result: dict):
    assert {field.name for field in dataclasses.fields(Row)} == set(result["rows"][0])
