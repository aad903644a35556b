"""What `inspect` finds, and what it says about a bundle's router and operating points."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from hadskip_export import calibrate, inspect
from hadskip_export.cli import main
from hadskip_export.report import text
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.support.errors import BudgetError, BundleError, DataError
from tests.conftest import sentences, write_csv


def lines_of(bundle: Path, beginning: str) -> list[str]:
    return [line for line in text.inspection(inspect(bundle)) if line.startswith(beginning)]


def test_of_a_static_router_it_says_the_route(bundle: Path, static_bundle: Path):
    assert lines_of(static_bundle, "router:") == ["router: static, layers 1 3"]
    assert lines_of(bundle, "router:") == ["router: gates"]


def test_operating_points_are_told_with_what_they_were_met_on(bundle: Path, tmp_path: Path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    data = write_csv(tmp_path / "texts.csv", [(words, "yes") for words, _ in sentences(20, 3)])
    row = calibrate(copy, data, [3], write=True).rows[1]
    default, added = lines_of(copy, "  2 of 4")[0], lines_of(copy, "  3 of 4")[0]
    assert default == "  2 of 4 layers, the default: 2.00 on evaluation"
    met = f"{row.routes.mean_layers:.2f} on 20 texts of texts.csv, accuracy {row.metric:.4f}, full BERT's "
    assert added.startswith(f"  3 of 4 layers: {met}")
    route, share = row.routes.commonest[0]
    after = text.inspection(inspect(copy))
    assert after[after.index(added) + 1].split() == f"{share:.1%} {', '.join(map(str, route)) or 'none'}".split()


def test_manifest_and_engine_line_tell_the_same(static_bundle: Path):
    found = inspect(static_bundle)
    assert found.content == read_bundle(static_bundle).manifest
    assert any(line.startswith("engine ort-fp32-gates: parity passed") for line in text.inspection(found))


def test_of_a_run_it_is_the_summary_and_pictures_where_they_are_asked_for(run_folder: Path, tmp_path: Path):
    found = inspect(run_folder)
    assert (found.content, found.plots) == (json.loads((run_folder / "summary.json").read_text()), ())
    drawn = inspect(run_folder, plots=tmp_path)
    assert set(drawn.plots) == set(tmp_path.iterdir())
    assert text.inspection(drawn) == [*text.inspection(found), *(f"written: {file}" for file in drawn.plots)]


# Drift


@pytest.fixture(scope="module")
def with_point(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says what texts ran at 2.5 layers."""
    folder = tmp_path_factory.mktemp("drift")
    copy = shutil.copytree(bundle, folder / "copy")
    texts = [(words,) for words, _ in sentences(300, 3)]
    calibrate(copy, write_csv(folder / "texts.csv", texts, ("text",)), [2.5], write=True)
    return copy


def answers(bundle: Path, words: list[str], file: Path) -> Path:
    """As `predict` writes them, by its command."""
    texts = write_csv(file.with_suffix(".texts.csv"), [(text,) for text in words], ("text",))
    options = ["--input", str(texts), "--output", str(file), "--budget", "2.5"]
    assert CliRunner().invoke(main, ["predict", str(bundle), *options]).exit_code == 0
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_answers_of_texts_like_those_of_then_have_not_drifted_and_others_have(
    suffix: str, with_point: Path, tmp_path: Path
):
    alike = answers(with_point, [words for words, _ in sentences(400, 9)], tmp_path / f"alike{suffix}")
    found = inspect(with_point, drift=alike, budget=2.5)
    assert found.drift.inputs == 400 and not found.drift.is_much
    with Predictor.load(with_point, budget=2.5) as predictor:
        layers = [len(one.layers) for one in predictor([words for words, _ in sentences(400, 9)])]
    assert found.drift.seen == {number: layers.count(number) / 400 for number in set(layers)}
    assert "within what is usual" in text.inspection(found)[-1]
    same = answers(with_point, ["wonderful"] * 400, tmp_path / f"same{suffix}")
    done = CliRunner().invoke(
        main, ["inspect", str(with_point), "--drift", str(same), "--budget", "2.5", "--json", "-"]
    )
    assert done.exit_code == 1 and json.loads(done.stdout)["index"] > 0.25


def test_what_says_nothing_of_drift_is_refused(bundle: Path, run_folder: Path, with_point: Path, tmp_path: Path):
    few = answers(with_point, ["wonderful"] * 50, tmp_path / "few.jsonl")
    other = write_csv(tmp_path / "other.csv", [("a", "b")] * 300, ("text", "layers"))
    for path, error, reason, options in [
        (with_point, DataError, "50 answers say nothing; give at least 200", {"drift": few, "budget": 2.5}),
        (with_point, DataError, "line 2: no list of layers in 'layers'", {"drift": other, "budget": 2.5}),
        (
            with_point,
            BudgetError,
            "--budget 3: the bundle has operating points for 2, 2.5",
            {"drift": few, "budget": 3},
        ),
        (with_point, BudgetError, "--budget 2: nothing to compare with", {"drift": few}),
        (with_point, DataError, "--budget 2: goes with --drift", {"budget": 2}),
        (run_folder, BundleError, "a run has not answered anything", {"drift": few}),
    ]:
        with pytest.raises(error, match=reason):
            inspect(path, **options)
