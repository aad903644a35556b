"""What `inspect` finds, and what it says about a bundle's router and operating points."""

import json
import shutil
from pathlib import Path

from hadskip_export import calibrate, inspect
from hadskip_export.report import text
from hadskip_export.runtime import read_bundle
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
