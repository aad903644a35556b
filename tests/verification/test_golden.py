"""Golden inputs: random words, the same ones every time, or the user's own."""

from pathlib import Path

import numpy as np
import pytest

from hadskip_export.runtime import read_bundle
from hadskip_export.support.errors import BundleError, DataError
from hadskip_export.verification.golden import COUNT, INPUTS, OUTPUTS, read_golden, read_texts, vocabulary_texts
from tests.conftest import WORDS
from tests.exporters.changing import copy_of, reseal


def test_inputs_are_words_of_the_vocabulary_and_the_same_every_time():
    texts = vocabulary_texts(["[CLS]", "##ing", "12", *WORDS])
    assert texts == vocabulary_texts(["[CLS]", "##ing", "12", *WORDS])
    assert len(texts) == COUNT
    assert texts[0] == ""
    words = [word for text in texts for part in ([text] if isinstance(text, str) else text) for word in part.split()]
    assert set(words) <= set(WORDS)
    assert [number for number, text in enumerate(texts) if isinstance(text, tuple)] == list(range(8, COUNT, 8))
    lengths = {len(text.split()) for text in texts if isinstance(text, str)}
    assert min(lengths) == 0
    assert max(lengths) > 64


def test_a_vocabulary_without_words_will_do():
    assert len(vocabulary_texts(["##a", "12"])) == COUNT


def test_a_file_of_texts_is_read_line_by_line(tmp_path: Path):
    file = tmp_path / "golden.txt"
    file.write_text("one text\n\n  \nzwei Wörter 🙂\n", encoding="utf-8")
    assert read_texts(file) == ["one text", "zwei Wörter 🙂"]


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe"], ids=["missing", "empty", "blank", "not UTF-8"])
def test_a_file_without_texts_is_refused(tmp_path: Path, content):
    file = tmp_path / "golden.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"--golden .*golden\.txt") as error:
        read_texts(file)
    assert "\n" not in str(error.value)


def test_what_a_bundle_keeps_is_what_the_model_gave(bundle: Path, source):
    golden = read_golden(read_bundle(bundle))
    assert len(golden.texts) == COUNT
    assert golden.margins.shape == golden.routes.shape == (COUNT, 4)
    assert golden.logits.shape == (COUNT, 2)
    assert golden.routes.dtype == bool
    assert golden.labels == source.config.labels
    np.testing.assert_array_equal(golden.routes, golden.margins > np.float32(source.point.thresholds))


def test_what_a_static_bundle_keeps_is_its_route(static_bundle: Path):
    golden = read_golden(read_bundle(static_bundle))
    assert (golden.routes == [True, False, True, False]).all()
    assert (golden.margins == [20, -20, 20, -20]).all()


@pytest.mark.parametrize("file", [INPUTS, OUTPUTS])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "junk"])
def test_damage_that_was_sealed_is_a_bundle_error(bundle: Path, tmp_path: Path, file: str, damage: str):
    copy = copy_of(bundle, tmp_path)
    content = (copy / file).read_bytes()
    if damage == "missing":
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(
            {"empty": b"", "truncated": content[: len(content) // 2], "junk": b"\xff\x00"}[damage]
        )
    reseal(copy)
    with pytest.raises(BundleError, match="golden") as error:
        read_golden(read_bundle(copy))
    assert "\n" not in str(error.value)
