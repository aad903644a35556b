"""README and docs keep the rules of prose that a program can check, and show only command lines that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hadskip_export.cli import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "notebook" / "README.md"]
MOST_COLUMNS, MOST_README = 120, 7_000
FENCE = re.compile(r"^\s*(```|~~~)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def lines(page: Path) -> Iterator[tuple[int, str, bool]]:
    """Number, text and whether it is code, of each line. Code is fenced or indented by four spaces."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.match(line) is not None
        yield number, line, fenced or fence or line.startswith("    ")
        fenced ^= fence


def command_lines() -> Iterator[tuple[str, str, bool]]:
    """Place, command line and whether it is complete: in code it is, inside a sentence it may name a command alone."""
    for page in PAGES:
        begun = ""
        for number, line, code in lines(page):
            place = f"{name(page)}:{number}"
            if not code:
                for quoted in re.findall(r"`(hadskip-export [^`]+)`", line):
                    yield place, quoted, False
                continue
            begun += line.strip().removeprefix("$ ")
            if begun.endswith("\\"):
                begun = begun[:-1]
                continue
            if begun.startswith("hadskip-export "):
                yield place, begun, True
            begun = ""


def why_wrong(line: str, complete: bool) -> str | None:
    """Why the command line cannot be typed as it stands; None if it can. Nothing is run."""
    words = shlex.split(line, comments=True)[1:]
    if words[0] not in main.commands:
        return None if words[0] in ("--version", "--help", "-v") else f"no command {words[0]}"
    command = main.commands[words[0]]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words[1:]:
        if word.startswith("--") and word.partition("=")[0] not in known | {"--help"}:
            return f"{words[0]} has no {word}"
    if complete:
        try:
            with main.make_context("hadskip-export", [words[0]], resilient_parsing=True) as parent:
                command.make_context(words[0], words[1:], parent=parent)
        except click.ClickException as error:
            return error.format_message()
    return None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_prose_is_not_wide(page):
    wide = [
        f"{name(page)}:{number} has {len(line)} columns"
        for number, line, code in lines(page)
        if not code and not line.startswith("|") and len(LINK.sub("]", line)) > MOST_COLUMNS
    ]
    assert not wide


def test_readme_is_short():
    assert len(README.read_bytes()) <= MOST_README


@pytest.mark.parametrize("page", LINKING, ids=name)
def test_links_lead_somewhere(page):
    """The pages in docs/ are a site of their own: a link that leaves it would lead nowhere there."""
    site = ROOT / "docs" if page.parent.name == "docs" else ROOT
    targets = [target.partition("#")[0] for _, line, code in lines(page) if not code for target in LINK.findall(line)]
    files = {target: (page.parent / target).resolve() for target in targets if not re.match(r"[a-z]+:|$", target)}
    assert [target for target, file in files.items() if not (file.exists() and file.is_relative_to(site))] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_is_python(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        compile(block, name(page), "exec")


@pytest.mark.parametrize(("place", "line", "complete"), list(command_lines()), ids=str)
def test_command_lines_parse(place, line, complete):
    assert why_wrong(line, complete) is None


@pytest.mark.parametrize(
    "line",
    [
        "hadskip-export fly",
        "hadskip-export bench bundle --no-such-option 3",
        "hadskip-export train --model bert  # lacks --budget",
        "hadskip-export estimate --model minilm --layers-run many",
    ],
)
def test_a_wrong_command_line_is_found(line):
    assert why_wrong(line, complete=True) is not None
