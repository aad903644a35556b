"""Tokens are those of `transformers`, whatever the text; padding is only padding."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from hadskip_export.errors import BundleError
from hadskip_export.exporters.build import Source
from hadskip_export.runtime.tokenization import Encoded, Tokenizer, pad
from tests.conftest import WORDS

any_text = st.text() | st.lists(st.sampled_from([*WORDS, "🙂", "[SEP]", "漢", "É"]), max_size=60).map(" ".join)


@pytest.fixture(scope="module")
def theirs(model_folder: Path) -> BertTokenizerFast:
    return BertTokenizerFast.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def tokenizer_file(source: Source) -> Path:
    return source.tokenizer


@settings(max_examples=150, deadline=None)
@given(any_text, any_text | st.none(), st.integers(3, 40))
def test_tokens_are_those_of_transformers(tokenizer_file: Path, theirs, text: str, second: str | None, max_length: int):
    lists = ([text],) if second is None else ([text], [second])  # a single empty second text it would take for none
    expected = theirs(*lists, truncation=True, max_length=max_length)
    (got,) = Tokenizer(tokenizer_file, max_length).encode([text if second is None else (text, second)])
    assert got.ids == expected["input_ids"][0]
    assert got.type_ids == expected["token_type_ids"][0]
    assert got.truncated == (len(theirs(*lists)["input_ids"][0]) > max_length)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=8))
def test_padding_can_be_undone(rows: list[list[int]]):
    batch = pad([Encoded(ids, [i % 2 for i in ids], False) for ids in rows])
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.token_type_ids.shape
    assert batch.input_ids.shape == (len(rows), max(map(len, rows)))
    assert {array.dtype for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)} == {
        np.dtype(np.int64)
    }
    for row, ids in enumerate(rows):
        real = batch.attention_mask[row] == 1
        assert real.tolist() == [i < len(ids) for i in range(batch.input_ids.shape[1])]
        assert batch.input_ids[row][real].tolist() == ids
        assert batch.token_type_ids[row][real].tolist() == [i % 2 for i in ids]
        assert not batch.input_ids[row][~real].any()


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path):
    file = tmp_path / "tokenizer.json"
    for content in ("", "{}", "not JSON"):
        file.write_text(content)
        with pytest.raises(BundleError, match=r"tokenizer\.json"):
            Tokenizer(file, 32)
    with pytest.raises(BundleError, match=r"missing\.json"):
        Tokenizer(tmp_path / "missing.json", 32)
