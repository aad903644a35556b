"""What fits into the time, and which engines are worth a trial."""

from pathlib import Path

import pytest

from hadskip_export.support.errors import BundleError, DataError, EngineError
from hadskip_export.tuning.engines import worth_trying
from hadskip_export.tuning.plan import FEWEST, MOST_EPOCHS, Plan, held_back, read_plan, what_fits, write_plan


@pytest.mark.parametrize("minutes", [1, 10, 30, 300])
@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.5])
@pytest.mark.parametrize("texts", [100, 1400, 70_000])
def test_the_training_keeps_to_its_part_of_the_time(minutes: float, seconds: float, texts: int):
    """By more epochs where there is time, by fewer texts where there is not, or not at all."""
    if 0.6 * minutes < FEWEST * 2.5 * seconds / 60:
        with pytest.raises(DataError, match=r"--minutes .*: 100 texts take some \d+ minutes here"):
            what_fits(minutes, texts, seconds)
        return
    learned, epochs, expected = what_fits(minutes, texts, seconds)
    assert FEWEST <= learned <= texts and 1 <= epochs <= MOST_EPOCHS and expected <= 0.6 * minutes + 1e-9
    more = learned * seconds / 60 if learned == texts else 2.5 * seconds / 60
    assert epochs == MOST_EPOCHS or expected + more > 0.6 * minutes - 1e-9


def test_as_many_texts_are_held_back_as_show_the_loss():
    assert held_back(2000, 0.01) == 600 and held_back(500, 0.01) == 299 and held_back(100_000, 0.01) == 2000
    assert held_back(500, None) == 150
    assert held_back(299 + FEWEST, 0.01) == 299
    with pytest.raises(DataError, match=r"398 different texts are too few: 299 .* give at least 399"):
        held_back(298 + FEWEST, 0.01)


def test_a_plan_reads_back_for_the_same_request_alone(tmp_path: Path):
    plan, asked = Plan(("ort-fp32",), 10, 5, 3, 1.5), {"seed": 0, "engines": ["a"], "epochs": None}
    assert read_plan(tmp_path / "none", asked) is None and read_plan(tmp_path, asked) is None
    write_plan(tmp_path, asked, plan)
    assert read_plan(tmp_path, asked) == plan
    with pytest.raises(BundleError, match="another seed"):
        read_plan(tmp_path, asked | {"seed": 1})
    for damaged in ("{}", "null", '{"asked": [], "plan": {}}', "{"):
        (tmp_path / "plan.json").write_text(damaged)
        with pytest.raises(BundleError, match="not of an optimisation"):
            read_plan(tmp_path, asked)
    (tmp_path / "plan.json").rename(tmp_path / ".plan.json.part")  # killed while it was written
    assert read_plan(tmp_path, asked) is None


def test_engines_worth_a_trial_are_the_best_in_fp32_and_what_is_clearly_faster():
    layer_ms = {"ort-fp32": 3.0, "openvino-fp32": 2.9, "ort-int8": 2.7, "openvino-int8": 1.0, "openvino-bf16": 1.5}
    assert [plan.tag for plan in worth_trying(layer_ms)] == ["openvino-fp32", "openvino-int8", "openvino-bf16"]
    assert [plan.tag for plan in worth_trying({"ort-fp32": 1.0, "ort-int8": 0.95})] == ["ort-fp32"]
    with pytest.raises(EngineError, match="no engine could be measured in fp32"):
        worth_trying({"ort-int8": 1.0})
