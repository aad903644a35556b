"""A page for people: every number of the table is there, nothing is fetched, and a browser has nothing to say of it."""

import json
import re
import shutil
import subprocess
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hadskip_export import inspect
from hadskip_export.benchmark.race import PeerFigures
from hadskip_export.commands.bench import Benchmark, Example, Row
from hadskip_export.commands.compare import Comparison
from hadskip_export.comparison.figures import Result
from hadskip_export.comparison.table import lines
from hadskip_export.data.runs import read_run
from hadskip_export.report.page import write_benchmark, write_comparison, write_run
from hadskip_export.support.errors import BundleError
from tests.comparison.test_table import figures, result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIGHT = "<script>document.title = JSON.stringify([document.documentElement.scrollWidth, innerWidth])</script></body>"


def comparison(timed: bool = True) -> Comparison:
    results: list[Result] = []
    for seed in (0, 1):
        for name, metric, p50 in (("adaptive", 0.85, 2.0), ("pabee", 0.80, 3.0), ("static", 0.82, 2.5)):
            found = [
                figures(budget, metric + budget / 100 + seed / 1000, 0.3 / budget, p50 + budget / 4)
                for budget in (3, 6)
            ]
            results.append(result(name, seed, *found))
        results.append(result("pabee", seed, figures(3, 0.7, 0.4, 3.2), published=True))
    if not timed:
        results = [
            replace(one, figures=tuple(replace(figure, latency=None) for figure in one.figures)) for one in results
        ]
    engine = "ort-fp32" if timed else None
    return Comparison("sst2", "accuracy", 12, engine, "held-out", 0.9, lines(results, [3, 6]), tuple(results))


def benchmark(data: str | None) -> Benchmark:
    """Of two sizes of batch; made-up texts where `data` is None."""
    random = np.random.default_rng(0)
    samples = {name: (random.random((20, 5)) / 100 + 0.002).tolist() for name in ("skip", "full, threads asleep")}
    plain = {field.name: 1.5 for field in fields(Row)} | {
        "engine": "ort", "precision": "fp32", "cut": "whole", "layers": 4, "samples": samples, "hint": None,
        "warnings": ("too noisy",), "data": data, "metric_name": "accuracy", "routing": "data", "p99": 3.0,
        "histogram": (0.0, 0.25, 0.5, 0.25, 0.0), "profile": {"tokeniser": 0.2, "whole": 1.1, "python": 0.001},
        "usage": (1.0, 0.5, 0.5, 0.0), "examples": (Example("an <easy> one", (1,)), Example(("a", "pair"), (1, 2, 3))),
        "full_engine": "ort-fp32-whole", "full_setting": "full, threads asleep", "full_p99_ms": 4.0,
    }  # fmt: skip
    if data is None:
        plain |= {"metric": None, "full_metric": None, "profile": None, "examples": ()}
    about = {"chip": "a chip", "cpus": 2, "versions": {"numpy": "2"}}
    peers = tuple(
        PeerFigures(name, "ort-fp32-whole", metric, p50, p50, p50, 1000.0, 12.5, 90.0)
        for name, metric, p50 in (("hadskip", 0.9, 2.0), ("full BERT", 0.91, 4.0), ("small", 0.8, 1.0))
    )
    return Benchmark(about, (Row(**plain | {"batch": 1}), Row(**plain | {"batch": 8})), peers if data else ())


def written(kind: str, folder: Path, run: Path | None = None) -> Path:
    about = {"chip": "a <chip>", "model": "mine & theirs", "settings": ["a=1", "b=2"]}
    file = folder / "page.html"
    if run is not None:
        write_run(read_run(run).summary, 2, file, about)
    elif kind in ("timed", "untimed"):
        write_comparison(comparison(kind == "timed"), file, about)
    else:
        write_benchmark(benchmark("dev.csv" if kind == "benchmark" else None), "a & b", file, about)
    return file


KINDS = ["timed", "untimed", "benchmark", "made-up", "run"]


@pytest.fixture(params=KINDS)
def page(request, tmp_path) -> Path:
    run = request.getfixturevalue("shared_run") if request.param == "run" else None
    return written(request.param, tmp_path, run)


class Reader(HTMLParser):
    """Tags that are open, rows of tables, and addresses of anything that would be fetched."""

    VOID = ("meta", "link", "img", "br", "path", "use")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.fetched: list[str] = []
        self.pictures: list[str | None] = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("script", "link", "img", "iframe") or "url(http" in str(given.get("style")):
            self.fetched.append(tag)
        if tag == "svg":
            self.pictures.append(given.get("aria-label"))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += " ".join(text.split())


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    assert not reader.open
    return reader


@pytest.mark.parametrize("timed", [True, False])
def test_every_line_of_a_comparison_is_there(timed, tmp_path):
    found = comparison(timed)
    reader = read(written("timed" if timed else "untimed", tmp_path))
    rows = [row for row in reader.rows if row[0] != "system"]
    assert [row[0] for row in rows] == [line.system for line in found.lines]
    for row, line in zip(rows, found.lines, strict=True):
        assert row[1:3] == [f"{line.mean_layers:.2f}", f"{line.metric:.4f}"] and row[5] == f"{line.divergence:.3f}"
        assert row[3] == ("" if line.exact is None else f"{line.exact:.4f}")
        if found.engine is not None:
            assert row[6:8] == [f"{line.p50_ms:.2f}", f"{line.speedup:.2f}"]
        assert bool(row[-1]) == (line.above is not None)
    assert len(rows[0]) == (9 if found.engine else 7)


@pytest.mark.parametrize("data", ["dev.csv", None])
def test_every_row_of_a_benchmark_is_there(data, tmp_path):
    found = benchmark(data)
    reader = read(written("benchmark" if data else "made-up", tmp_path))
    names = ["hadskip", "full BERT"] * 2 + [peer.name for peer in found.peers]
    texts = [row for row in reader.rows if row[0] in ("an <easy> one", "a / pair")]
    assert texts == ([["an <easy> one", "1", "1"], ["a / pair", "3", "1 2 3"]] * 2 if data else [])
    assert [row[0] for row in reader.rows if row[0] not in ("system", "text") and row not in texts] == names
    ours = next(row for row in reader.rows if row[0] == "hadskip")
    assert ours == (
        ["hadskip", "1.50", "1.50", "1.50", "3.00", "1.5000"] if data else ["hadskip", "1.50", "1.50", "3.00"]
    )
    assert len(reader.pictures) == (8 if data else 2)  # of each row: calls and, of real texts, layers twice and parts
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Do not trust this: too noisy" in content and "a &amp; b" in content
    assert ("full BERT is the fastest of those" in content) == ("made up" not in content) == bool(data)


def test_every_budget_of_a_run_is_there(shared_run, tmp_path):
    found = inspect(shared_run, report=tmp_path / "run.html")
    assert found.plots == (tmp_path / "run.html",)
    reader, summary = read(tmp_path / "run.html"), read_run(shared_run).summary
    _, *rows = reader.rows
    for row, budget in zip(rows, summary["budgets"], strict=True):
        assert row[:3] == [f"{budget['budget']:g}", f"{budget['mean_layers']:.2f}", f"{budget['metric']:.4f}"]
        assert row[5] == str(budget["routes"]) and bool(row[-1]) == (budget["skill"] is not None)
    assert len(reader.pictures) == 3


def test_a_bundle_has_no_figures_of_training(bundle, tmp_path):
    with pytest.raises(BundleError, match="no figures of training"):
        inspect(bundle, report=tmp_path / "run.html")


def test_it_needs_nothing_else_and_its_pictures_have_words(page):
    reader, content = read(page), page.read_text(encoding="utf-8")
    assert reader.fetched == [] and reader.pictures and all(reader.pictures)
    named = {"http://www.w3.org/", "http://creativecommons.org", "http://purl.org"}  # namespaces, which nobody fetches
    assert all(any(url.startswith(one) for one in named) for url in re.findall(r"https?://[^\s\"'<)]+", content))
    assert "a &lt;chip&gt;" in content and "mine &amp; theirs" in content and "a=1, b=2" in content


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_a_complaint_and_no_wider_than_the_screen(page, width, tmp_path):
    seen = tmp_path / "seen.html"
    seen.write_text(page.read_text(encoding="utf-8").replace("</body>", SIGHT), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += ["--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*command, seen.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    shown, screen = json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1))
    assert shown <= screen and "<svg" in done.stdout
