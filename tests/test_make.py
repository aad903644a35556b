"""`make test` leaves the slow tests out; other targets run them all."""

import re
from pathlib import Path

import pytest

MARK = ".".join(("pytest", "mark", "slow"))  # so that this file is none of them
ROOT = Path(__file__).parent.parent
TARGETS = {name for name in re.findall(r"tests[\w/.]*", (ROOT / "Makefile").read_text()) if name != "tests"}
SLOW = [file.relative_to(ROOT) for file in sorted(ROOT.glob("tests/**/test_*.py")) if MARK in file.read_text()]


@pytest.mark.parametrize("file", SLOW, ids=str)
def test_a_target_runs_the_slow_tests_of(file: Path):
    assert TARGETS & {part.as_posix() for part in (file, *file.parents)}
