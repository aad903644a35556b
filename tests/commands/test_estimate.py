"""`estimate` on a tiny model: what it forces is what it was asked to, and nonsense is refused before work begins."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
)

from hadskip_export import estimate
from hadskip_export.benchmark.measure import Figures
from hadskip_export.benchmark.statistics import PieceTimes, ideal_speedup
from hadskip_export.cli import main
from hadskip_export.commands import estimate as estimating
from hadskip_export.commands.estimate import (
    LABELS,
    SIZES,
    TURNS,
    Estimate,
    draw_prefixes,
    draw_routes,
    find_config,
    resolve_layers_run,
)
from hadskip_export.modeling.families import FAMILIES
from hadskip_export.report import text
from hadskip_export.support.errors import BudgetError, BundleError, DataError, EngineError, HadskipError, RecipeError
from tests.runtime.editing import outcome

FEWEST, CALLS = 3, 8
# DESIGN.md: a row of `estimate`.
FIELDS = [
    "engine", "precision", "seq", "batch", "routing", "layers", "layers_run", "last_run", "embeddings_ms", "layer_ms",
    "last_layer_ms", "head_ms", "full_p50_ms", "p50", "speedup", "speedup_low", "speedup_high", "ideal",
    "efficiency",
]  # fmt: skip


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 32, sixteen tokens."""
    file = tmp_path_factory.mktemp("model") / "config.json"
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    file.write_text(config.to_json_string())
    return file


@pytest.fixture(scope="module")
def done(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, dict[str, Any]]:
    """What the command printed and wrote."""
    folder, temporary = tmp_path_factory.mktemp("estimate"), tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimating, "CALLS", CALLS)
        patch.setattr(estimating, "FEWEST_CALLS", FEWEST)
        patch.setattr(tempfile, "tempdir", str(temporary))
        arguments = ["--model", config_file, "--layers-run", 0.5, "--seq", 5, "--batch", 1, "--batch", 4]
        result = CliRunner().invoke(
            main, ["estimate", *map(str, arguments), "--cut", "layers", "--json", str(folder / "rows.json")]
        )
    assert result.exit_code == 0, result.output
    assert list(temporary.glob("tmp*")) == []  # torch leaves a folder of its own
    return result, json.loads((folder / "rows.json").read_text())


@pytest.fixture(scope="module")
def rows(done: tuple[Result, dict[str, Any]]) -> list[dict[str, Any]]:
    return done[1]["rows"]


# The whole of it


def test_rows_have_the_fields_of_the_design(done: tuple[Result, dict[str, Any]], rows: list[dict[str, Any]]):
    assert set(done[1]) == {"environment", "rows"}
    assert {"chip", "cpus", "versions", "load", "load_after"} <= set(done[1]["environment"])
    for row in rows:
        assert row["cut"] == "layers"
        for name in FIELDS:
            assert isinstance(row[name], str if name in ("engine", "precision", "routing") else int | float)


def test_every_workload_has_a_row_and_routes_differ_only_within_batches(rows: list[dict[str, Any]]):
    assert [(row["seq"], row["batch"], row["routing"]) for row in rows] == [
        (5, 1, "same"), (5, 4, "same"), (5, 4, "mixed"),
    ]  # fmt: skip
    for row in rows:
        assert (row["engine"], row["precision"], row["layers"], row["layers_run"]) == ("ort", "fp32", 2, 1)
        calls = max(FEWEST, CALLS // row["batch"])
        for system in ("skip", "full"):
            assert np.array(row["samples"][system]).shape == (calls, TURNS)


def test_figures_follow_from_the_parts(rows: list[dict[str, Any]]):
    for row in rows:
        parts = PieceTimes(*(row[f"{part}_ms"] for part in ("embeddings", "layer", "last_layer", "head")))
        counts = {name: row[name] for name in ("layers", "layers_run", "last_run")}
        assert row["ideal"] == pytest.approx(ideal_speedup(parts, **counts))
        assert row["efficiency"] == pytest.approx(row["speedup"] / row["ideal"])
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]


def test_full_bert_may_be_in_another_engine_and_then_there_is_no_efficiency(config_file: Path, monkeypatch):
    monkeypatch.setattr(estimating, "CALLS", CALLS)
    monkeypatch.setattr(estimating, "FEWEST_CALLS", FEWEST)
    found = estimate(config_file, layers_run=1, seq=(5,), engine="openvino", against="ort-fp32")
    (row,) = found.rows
    assert (row.engine, row.cut, row.ideal, row.efficiency) == ("openvino", "whole", None, None)
    assert row.full_engine.startswith("ort-fp32")
    assert row.full_p50_ms > 0 and row.speedup_low <= row.speedup <= row.speedup_high
    head, _, line = text.estimate(Estimate({}, (replace(row, warnings=()),)))
    assert head.startswith("openvino-fp32-whole, ") and f"full BERT in {row.full_engine}" in head
    assert "%" not in line


def test_a_person_reads_the_same_figures(done: tuple[Result, dict[str, Any]], rows: list[dict[str, Any]]):
    lines = done[0].stdout.splitlines()
    assert lines[:-1] == text.estimate(Estimate({}, tuple(Figures(**row) for row in rows)))
    assert lines[-1].startswith("written: ")
    assert lines[0].startswith("ort-fp32-layers, random weights, 1 of 2 layers run")
    for row, line in zip(rows, lines[2:], strict=False):
        assert f"{row['speedup']:.2f} ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})" in line
    warnings = [warning for row in rows for warning in row["warnings"]]
    assert sum(line.startswith("do not trust 5 x ") for line in lines) == len(warnings)


# Routes


@given(st.integers(1, 24), st.integers(1, 8), st.sampled_from(["same", "mixed"]), st.integers(0, 1000), st.data())
def test_every_row_runs_as_many_layers_as_asked(layers: int, rows: int, routing, seed: int, data):
    run = data.draw(st.integers(1, layers))
    routes = draw_routes(rows, layers, run, routing, np.random.default_rng(seed))
    assert routes.shape == (rows, layers)
    assert routes.dtype == bool
    assert (routes.sum(axis=1) == run).all()
    np.testing.assert_array_equal(routes, draw_routes(rows, layers, run, routing, np.random.default_rng(seed)))


@given(st.integers(1, 24), st.data())
def test_the_same_layers_are_evenly_spread(layers: int, data):
    run = data.draw(st.integers(1, layers))
    routes = draw_routes(5, layers, run, "same", np.random.default_rng(0))
    assert (routes == routes[0]).all()
    positions = np.flatnonzero(routes[0])
    assert positions[-1] == layers - 1
    assert set(np.diff([-1, *positions])) <= {layers // run, -(-layers // run)}


def test_mixed_routes_use_all_layers_alike():
    routes = draw_routes(4000, 6, 2, "mixed", np.random.default_rng(0))
    assert routes.mean(axis=0) == pytest.approx([1 / 3] * 6, abs=0.04)
    assert len({tuple(row) for row in routes.tolist()}) == 15


# Layers run


@given(st.integers(1, 48), st.data())
def test_whole_numbers_and_shares_of_layers_are_taken(layers: int, data):
    run = data.draw(st.integers(1, layers))
    assert resolve_layers_run(run, layers) == run
    if run < layers:
        assert resolve_layers_run(run / layers, layers) == run


def test_a_third_needs_only_so_many_digits():
    assert resolve_layers_run(0.3333333, 12) == 4
    assert resolve_layers_run(0.6666667, 24) == 16


@pytest.mark.parametrize("run", [0, -1, 4, 1.5, 0.5, 1e-9, float("nan"), float("inf")])
def test_layers_that_the_model_cannot_run_are_refused(run: float):
    with pytest.raises(BudgetError, match=r"^--layers-run .*: expected a whole number of the model's 3 layers"):
        resolve_layers_run(run, 3)


# Models


def test_names_are_the_sizes_that_were_published():
    published = {
        "bert-base": BertConfig(),
        "bert-large": BertConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
        ),
        "minilm": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
        "roberta-base": RobertaConfig(type_vocab_size=1, max_position_embeddings=514, layer_norm_eps=1e-5),
        "distilbert": DistilBertConfig(),
        "modernbert-base": ModernBertConfig(classifier_pooling="mean"),
        "deberta-v3-base": DebertaV2Config(
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type="p2c|c2p",
            position_biased_input=False,
        ),
    }
    assert set(published) == set(SIZES)
    for name, theirs in published.items():
        assert find_config(name) == FAMILIES[theirs.model_type].read(theirs, LABELS)


def test_a_config_file_and_its_folder_are_the_same_model(config_file: Path, model_folder: Path):
    assert find_config(config_file) == find_config(str(config_file)) == find_config(config_file.parent)
    assert find_config(config_file).num_layers == 2
    assert find_config(model_folder).hidden_size == 32  # one with weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            AlbertConfig().to_json_string(),
            "the architecture 'albert' (all its layers are one, run again and again) is not supported",
        ),
        ("{", "cannot be read"),
        (None, "no config.json there"),
    ],
    ids=["another architecture", "damaged", "missing"],
)
def test_a_model_that_is_none_is_refused(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    found = outcome(find_config, tmp_path)
    assert message in found
    assert str(tmp_path) in found


def test_a_name_that_no_model_can_have_is_refused():
    with pytest.raises(BundleError, match="bert base: no such folder"):
        find_config("bert base")


# Refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers_run": 3}, BudgetError, "--layers-run 3"),
        ({"seq": (5, 2)}, DataError, "--seq 2: the model takes 3 to 16 tokens"),
        ({"seq": (17,)}, DataError, "--seq 17"),
        ({"batch": (1, 0)}, DataError, "--batch"),
        ({"engine": "abacus"}, EngineError, "--engine abacus: not known"),
        ({"precision": "fp64"}, EngineError, "--precision fp64"),
        ({"cut": "halves"}, EngineError, "--cut halves: not to be had with ort; there are gates, layers, whole"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_nonsense_is_refused_in_one_line_and_leaves_nothing(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, error: type[HadskipError], message: str
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(error) as refused:
        estimate(config_file, **({"layers_run": 1, "seq": (5,)} | options))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.glob("tmp*")) == []


def test_an_engine_that_gives_wrong_answers_is_not_timed(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    report = SimpleNamespace(parity="failed", first_bad_piece="layer_01")
    monkeypatch.setattr(estimating, "write_random_bundle", lambda *_, **__: report)
    with pytest.raises(EngineError, match="ort-fp32 gives wrong answers on this machine, first at layer_01"):
        estimate(config_file, layers_run=1, seq=(5,))


@pytest.mark.parametrize(
    ("against", "message"),
    [("ort", "--against ort: expected an engine and its precision"), ("ort-fp16", "--precision fp16: not to be had"),
     ("abacus-fp32", "--engine abacus: not known")],
)  # fmt: skip
def test_what_full_bert_cannot_be_in_is_refused_before_the_work(config_file: Path, monkeypatch, against, message):
    monkeypatch.setattr(estimating, "write_random_bundle", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(EngineError, match=message):
        estimate(config_file, layers_run=1, seq=(5,), against=against)


def test_the_command_refuses_with_exit_code_2_and_one_line(config_file: Path, tmp_path: Path):
    for arguments, part in (
        (["--layers-run", "9"], "--layers-run 9"),
        (["--layers-run", "1", "--seq", "99"], "--seq 99"),
        (["--layers-run", "1", "--json", str(tmp_path / "missing" / "rows.json")], "--json"),
    ):
        result = CliRunner().invoke(main, ["estimate", "--model", str(config_file), *arguments])
        assert result.exit_code == 2
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert part in line


# Rivals


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 100), st.sampled_from(["same", "mixed"]))
def test_with_exits_inputs_run_their_first_layers_so_many_on_average(rows, num_layers, seed, kind):
    random = np.random.default_rng(seed)
    count = int(random.integers(1, num_layers + 1))
    routes = draw_prefixes(rows, num_layers, count, kind, random)
    assert routes.shape == (rows, num_layers) and routes[:, 0].all() and (routes[:, :-1] >= routes[:, 1:]).all()
    assert routes.sum() == rows * count
    if kind == "same":
        assert (routes.sum(axis=1) == count).all()


def test_mixed_exits_differ():
    routes = draw_prefixes(40, 12, 6, "mixed", np.random.default_rng(0))
    assert len(np.unique(routes.sum(axis=1))) > 4


BOTH = ["same", "mixed"]


@pytest.mark.parametrize(
    ("method", "routings"),
    [
        ("pabee", BOTH),
        ("upfront", BOTH),
        ("budgeted", ["same"]),
        *(pytest.param(name, BOTH, marks=pytest.mark.slow) for name in ("berxit", "fastbert")),
    ],
)
def test_a_rival_is_timed_with_what_stands_beside_its_layers(config_file, monkeypatch, method, routings):
    monkeypatch.setattr(estimating, "CALLS", CALLS)
    monkeypatch.setattr(estimating, "FEWEST_CALLS", FEWEST)
    found = estimate(config_file, layers_run=1, method=method, seq=[5], batch=[4])
    assert [row.routing for row in found.rows] == routings
    assert {row.layers_run for row in found.rows} == {1} and all(row.speedup > 0 for row in found.rows)
    assert {row.cut for row in found.rows} == {"whole" if method in ("budgeted", "upfront") else "layers"}


def test_a_cut_that_exits_have_not_is_refused_before_anything_is_built(config_file):
    with pytest.raises(EngineError, match="--cut whole: not of a model with such exits"):
        estimate(config_file, layers_run=1, method="pabee", cut="whole", seq=[5])
    with pytest.raises(RecipeError, match="--method magic"):
        estimate(config_file, layers_run=1, method="magic", seq=[5])
    with pytest.raises(DataError, match="--routing mixed: with --method budgeted"):
        estimate(config_file, layers_run=1, method="budgeted", seq=[5], batch=[4], routing=["mixed"])
