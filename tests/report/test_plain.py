"""Results as JSON: what a dataclass holds, and nothing that is no JSON."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hadskip_export.report.plain import to_json
from tests.report.results import BENCHMARK, ROW


@dataclass(frozen=True)
class Found:
    place: Path
    values: tuple[float, ...]


def test_a_dataclass_becomes_what_it_holds():
    found = json.loads(to_json(BENCHMARK))
    assert set(found) == {"environment", "rows", "peers"}
    assert found["rows"][0] == json.loads(json.dumps(vars(ROW)))


def test_paths_are_text_and_numbers_that_are_none_are_null():
    plain = to_json(Found(Path("a") / "b", (1.0, float("nan"), float("inf"))))
    assert json.loads(plain) == {"place": str(Path("a") / "b"), "values": [1.0, None, None]}


def test_what_nobody_thought_of_is_not_written_as_something_else():
    with pytest.raises(NotImplementedError, match="ndarray"):
        to_json({"values": np.zeros(2)})
