"""A page for people: every number of the table is there, nothing is fetched, and a browser has nothing to say of it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hadskip_export.commands.compare import Comparison
from hadskip_export.comparison.figures import Result
from hadskip_export.comparison.table import lines
from hadskip_export.report.page import write_comparison
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
    return Comparison("sst2", "accuracy", 12, engine, 0.9, lines(results, [3, 6]), tuple(results))


@pytest.fixture(params=[True, False], ids=["timed", "untimed"])
def page(request, tmp_path) -> tuple[Comparison, Path]:
    found = comparison(request.param)
    write_comparison(found, tmp_path / "page.html", {"chip": "a <chip>", "model": "mine & theirs"})
    return found, tmp_path / "page.html"


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


def test_every_line_of_the_table_is_there(page):
    found, file = page
    reader = read(file)
    rows = [row for row in reader.rows if row[0] != "system"]
    assert [row[0] for row in rows] == [line.system for line in found.lines]
    for row, line in zip(rows, found.lines, strict=True):
        assert row[1:3] == [f"{line.mean_layers:.2f}", f"{line.metric:.4f}"] and row[4] == f"{line.divergence:.3f}"
        if found.engine is not None:
            assert row[5:7] == [f"{line.p50_ms:.2f}", f"{line.speedup:.2f}"]
        assert bool(row[-1]) == (line.above is not None)
    assert len(rows[0]) == (8 if found.engine else 6)


def test_it_needs_nothing_else_and_its_picture_has_words(page):
    _, file = page
    reader, content = read(file), file.read_text(encoding="utf-8")
    assert reader.fetched == [] and reader.pictures and all(reader.pictures)
    named = {"http://www.w3.org/", "http://creativecommons.org", "http://purl.org"}  # namespaces, which nobody fetches
    assert all(any(url.startswith(one) for one in named) for url in re.findall(r"https?://[^\s\"'<)]+", content))
    assert "a &lt;chip&gt;" in content and "mine &amp; theirs" in content


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_a_complaint_and_no_wider_than_the_screen(page, width, tmp_path):
    _, file = page
    seen = tmp_path / "seen.html"
    seen.write_text(file.read_text(encoding="utf-8").replace("</body>", SIGHT), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += ["--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*command, seen.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    shown, screen = json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1))
    assert shown <= screen and "<svg" in done.stdout
