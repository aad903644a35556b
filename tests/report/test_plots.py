"""What the pictures show is what the summary says; the files are real; what cannot be drawn is refused in one line."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from hadskip_export.cli import main
from hadskip_export.commands.inspect import inspect
from hadskip_export.report.plots import PLOTS, frontier, histogram, usage, write_plots
from hadskip_export.routing.routes import statistics
from hadskip_export.support.errors import BundleError, EngineError

FILES = {f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png")}

RECIPE = {"threshold_on": "evaluation"}


def a_summary(
    layers: int, budgets: list[float], metric: str = "accuracy", teacher: float = 0.8, one_route: bool = False
) -> dict:
    """As `train` writes it, with random routes, or one route for every input as a rival has it."""
    random = np.random.default_rng(layers)
    rows = []
    for budget in budgets:
        routes = random.random((200, layers)) < budget / layers
        if one_route:
            routes[:] = np.arange(layers) < budget
        seen = statistics(routes)
        values = (teacher - random.random(3) / 5).tolist()
        rows.append({
            "budget": budget, "threshold": 0.0, "mean_layers": seen.mean_layers, "metric": values[0],
            "retained": values[0] / teacher if teacher > 0 else None,
            "routes": seen.distinct, "route_entropy_bits": seen.entropy_bits,
            "commonest_routes": seen.commonest,
            "top_route": seen.commonest[0][0], "top_route_share": seen.commonest[0][1], "top_route_metric": values[1],
            "static_route": list(range(1, max(1, round(budget)) + 1)), "static_metric": values[2],
            "usage": seen.usage, "histogram": seen.histogram,
        })  # fmt: skip
    return {
        "task": "sst2", "metric": metric, "layers": layers, "max_length": 64, "teacher": {"metric": teacher},
        "budgets": rows,
    }  # fmt: skip


SUMMARIES = {
    "a run": a_summary(6, [6, 5, 4, 3]),
    "one budget, a fraction": a_summary(3, [1.5], "f1"),
    "a teacher below chance": a_summary(12, [12, 11.0, 10.25], "matthews", -0.1),
    "the largest": a_summary(24, [float(budget) for budget in range(24, 0, -1)]),
    "a rival of one route": a_summary(12, [6], one_route=True),
}
every_summary = pytest.mark.parametrize("summary", SUMMARIES.values(), ids=SUMMARIES)


def make_run(folder: Path, summary: dict) -> Path:
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps({"budget": summary["budgets"][-1]["budget"], "recipe": RECIPE}))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@every_summary
@pytest.mark.parametrize(("draw", "key", "first"), [(usage, "usage", 1), (histogram, "histogram", 0)])
def test_a_map_shows_the_shares_of_the_summary(summary: dict, draw, key: str, first: int):
    axes = draw(summary).axes[0]
    shares = np.array([row[key] for row in summary["budgets"]])
    np.testing.assert_array_equal(axes.collections[0].get_array(), shares)
    cells = {text.get_position(): text.get_text() for text in axes.texts if text.get_text().isdigit()}
    assert cells == {(x + first, y): f"{100 * shares[y, x]:.0f}" for y, x in np.argwhere(shares).tolist()}
    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert columns == [str(column) for column in range(first, summary["layers"] + 1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{row['budget']:g}" for row in summary["budgets"]
    ]
    top, bottom = axes.transData.transform([(first, 0), (first, 1)])[:, 1]
    assert top > bottom  # the first budget of the summary, all layers, is the top row
    means = axes.child_axes[0].get_yticklabels()
    assert [label.get_text() for label in means] == [f"{row['mean_layers']:.2f}" for row in summary["budgets"]]


@every_summary
def test_the_histogram_underlines_the_budget(summary: dict):
    lines = histogram(summary).axes[0].lines
    assert [np.mean(line.get_xdata()) for line in lines] == pytest.approx([row["budget"] for row in summary["budgets"]])
    assert [np.round(line.get_ydata()).tolist() for line in lines] == [[y, y] for y in range(len(lines))]


@every_summary
def test_the_frontier_shows_the_metrics_of_the_summary(summary: dict):
    axes, rows = frontier(summary).axes[0], summary["budgets"]
    teacher, *series = axes.lines
    assert set(teacher.get_ydata()) == {summary["teacher"]["metric"]}
    assert f"teacher\n{summary['teacher']['metric']:.3f}" in [text.get_text() for text in axes.texts]
    drawn = {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in series}
    assert drawn == {
        "each input its own route": [(row["mean_layers"], row["metric"]) for row in rows],
        "best fixed set of layers": [(len(row["static_route"]), row["static_metric"]) for row in rows],
        "commonest route for every input": [(len(row["top_route"]), row["top_route_metric"]) for row in rows],
    }
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert low < summary["teacher"]["metric"] < high and right >= summary["layers"]
    assert all(left <= x <= right and low < y < high for points in drawn.values() for x, y in points)


@pytest.mark.parametrize(
    ("metric", "name"), [("accuracy", "accuracy"), ("f1", "F1"), ("matthews", "Matthews correlation")]
)
def test_axes_and_titles_have_names(metric: str, name: str):
    summary = a_summary(3, [3, 2], metric)
    labels = {draw: (axes.get_xlabel(), axes.get_ylabel()) for draw, axes in first_axes(summary).items()}
    assert labels == {
        "usage": ("layer", "budget"),
        "histogram": ("layers run", "budget"),
        "frontier": ("layers run on average", name),
    }
    assert all(axes.get_title(loc="left").startswith("sst2: ") for axes in first_axes(summary).values())


def first_axes(summary: dict) -> dict:
    figures: dict[str, Figure] = {name: draw(summary) for name, draw in PLOTS.items()}
    return {name: figure.axes[0] for name, figure in figures.items()}


@every_summary
@pytest.mark.filterwarnings("error")
def test_the_files_are_whole_and_say_what_they_show(summary: dict, tmp_path: Path):
    written = write_plots(summary, tmp_path / "new" / "folder")
    assert {file.name for file in written} == FILES == {file.name for file in (tmp_path / "new" / "folder").iterdir()}
    for name in PLOTS:
        folder = written[0].parent
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert (folder / f"{name}.png").read_bytes().endswith(b"IEND\xaeB`\x82")
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        words = " ".join("".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text"))
        axis = {"usage": "layer", "histogram": "layers run", "frontier": "best fixed set of layers"}[name]
        assert "sst2: " in words and axis in words


def test_the_same_summary_gives_the_same_files_whatever_the_users_style(tmp_path: Path):
    summary = SUMMARIES["a run"]
    first = write_plots(summary, tmp_path / "first")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": None}):
        second = write_plots(summary, tmp_path / "second")
        assert matplotlib.rcParams["font.size"] == 30  # and the user gets it back
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert b"<dc:date>" not in first[0].read_bytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rest", ["long " * 48, 240 * "w"])
def test_a_task_may_have_any_name(tmp_path: Path, rest: str):
    write_plots({**SUMMARIES["one budget, a fraction"], "task": "a$b_{c$ <&> " + rest}, tmp_path)
    assert f"a$b_{{c$ &lt;&amp;&gt; {rest[:4]}" in (tmp_path / "usage.svg").read_text()


def test_a_failure_leaves_the_old_picture_and_nothing_half_written(tmp_path: Path, monkeypatch):
    def fail(figure: Figure, file: Path, **options) -> None:
        file.write_text("half of it")
        raise OSError("disk full")

    (tmp_path / "usage.svg").write_text("old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        write_plots(SUMMARIES["a run"], tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("usage.svg", "old")]


# The command


def test_inspect_draws_a_run(run_folder: Path, tmp_path: Path):
    done = CliRunner().invoke(main, ["inspect", str(run_folder), "--plots", str(tmp_path / "plots")])
    assert done.exit_code == 0, done.output
    assert "teacher" in done.stdout
    said = [line for line in done.stdout.splitlines() if line.startswith("written: ")]
    assert {*said} == {f"written: {tmp_path / 'plots' / name}" for name in FILES}
    assert {file.name for file in (tmp_path / "plots").iterdir()} == FILES


def test_with_json_only_json_is_printed(tmp_path: Path):
    run = make_run(tmp_path / "run", SUMMARIES["a run"])
    done = CliRunner().invoke(main, ["inspect", str(run), "--json", "-", "--plots", str(tmp_path / "plots")])
    assert json.loads(done.stdout) == json.loads((run / "summary.json").read_text())
    assert {file.name for file in (tmp_path / "plots").iterdir()} == FILES


def test_what_cannot_be_drawn_is_refused(bundle: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", SUMMARIES["a run"])
    (tmp_path / "file").write_text("mine")
    for path, plots, message in (
        (bundle, tmp_path / "plots", f"{bundle}: a bundle has nothing to plot"),
        (run, tmp_path / "file", f"{tmp_path / 'file'}: is a file"),
        (tmp_path, tmp_path / "plots", "not a bundle"),
        (run, tmp_path / "file" / "plots", "Not a directory"),
    ):
        done = CliRunner().invoke(main, ["inspect", str(path), "--plots", str(plots)])
        assert done.exit_code == 2 and not done.stdout
        assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not (tmp_path / "plots").exists() and (tmp_path / "file").read_text() == "mine"
    with pytest.raises(BundleError, match="--plots"):
        inspect(bundle, plots=tmp_path / "plots")


def test_without_matplotlib_the_message_names_the_extra(tmp_path: Path, monkeypatch):
    run = make_run(tmp_path / "run", SUMMARIES["a run"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert inspect(run).content
    with pytest.raises(EngineError, match=r"hadskip-export\[plots\]"):
        inspect(run, plots=tmp_path / "plots")
    assert not (tmp_path / "plots").exists()
