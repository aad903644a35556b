"""Tokens are those of `transformers`, whatever the text; padding is only padding."""

import base64
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as BackendTokenizer
from transformers import AutoTokenizer, BertTokenizerFast

from hadskip_export.exporters.write import Source
from hadskip_export.modeling.checkpoint import save_tokenizer
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.tokenization import Encoded, Tokenizer, pad
from hadskip_export.support.errors import BundleError, DataError
from tests.conftest import WORDS

any_text = st.text() | st.lists(st.sampled_from([*WORDS, "🙂", "[SEP]", "漢", "É"]), max_size=60).map(" ".join)


@pytest.fixture(scope="module")
def theirs(model_folder: Path) -> BertTokenizerFast:
    return BertTokenizerFast.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def tokenizer_file(source: Source) -> Path:
    return source.tokenizer


def assert_equal(got: Encoded, expected: Encoded) -> None:
    for one, other in ((got.ids, expected.ids), (got.type_ids, expected.type_ids)):
        assert one.dtype == np.int64 and one.tolist() == other.tolist()


@settings(max_examples=150, deadline=None)
@given(any_text, any_text | st.none(), st.integers(3, 40))
def test_tokens_are_those_of_transformers(tokenizer_file: Path, theirs, text: str, second: str | None, max_length: int):
    lists = ([text],) if second is None else ([text], [second])  # a single empty second text it would take for none
    expected = theirs(*lists, truncation=True, max_length=max_length)
    (got,) = Tokenizer(tokenizer_file, max_length).encode([text if second is None else (text, second)])
    assert got.ids.tolist() == expected["input_ids"][0]
    assert got.type_ids.tolist() == expected["token_type_ids"][0]
    assert got.ids.dtype == got.type_ids.dtype == np.int64
    assert got.truncated == (len(theirs(*lists)["input_ids"][0]) > max_length)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=8))
def test_padding_can_be_undone(rows: list[list[int]]):
    arrays = [np.array(ids) for ids in rows]
    batch = pad([Encoded(ids, ids % 2, False) for ids in arrays])
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


def test_a_text_of_no_tokens_is_refused_by_place(tokenizer_file: Path, tmp_path: Path):
    """BERT's tokenizers always add [CLS] and [SEP]; one without them would give the engines nothing to run."""
    plain = json.loads(tokenizer_file.read_text()) | {"post_processor": None}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(plain))
    tokenizer = Tokenizer(file, 16)
    assert len(tokenizer.encode(["good"])[0])
    with pytest.raises(DataError, match="input 2: a text of no tokens"):
        tokenizer.encode(["good", ""])


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path):
    file = tmp_path / "tokenizer.json"
    for content in ("", "{}", "not JSON"):
        file.write_text(content)
        with pytest.raises(BundleError, match=r"tokenizer\.json"):
            Tokenizer(file, 32)
    with pytest.raises(BundleError, match=r"missing\.json"):
        Tokenizer(tmp_path / "missing.json", 32)


# Tokenised before


@settings(max_examples=150, deadline=None)
@given(any_text, any_text | st.none(), st.integers(3, 40), st.sampled_from(["left", "right"]), st.booleans(), st.data())
def test_what_transformers_made_of_a_text_is_taken_as_the_text_is(
    tokenizer_file: Path, theirs, text: str, second: str | None, max_length: int, side: str, padded: bool, data
):
    lists = ([text],) if second is None else ([text], [second])
    made = theirs(
        *lists, truncation=True, max_length=max_length, padding="max_length" if padded else False, padding_side=side
    )
    kind = data.draw(st.sampled_from([list, tuple, np.array, np.int32, np.uint16]))
    given = {name: kind(rows[0]) for name, rows in made.items()}
    if not padded and data.draw(st.booleans()):
        del given["attention_mask"]  # all of it is real
    tokenizer = Tokenizer(tokenizer_file, max_length)
    (expected,) = tokenizer.encode([text if second is None else (text, second)])
    (got,) = tokenizer.encode([given])
    assert_equal(got, expected)
    assert got.truncated is False  # nobody knows


def test_an_encoding_of_transformers_is_taken_as_it_is(tokenizer_file: Path, theirs):
    tokenizer = Tokenizer(tokenizer_file, 32)
    for text in ("a good film", "naïve 🙂"):
        assert_equal(*tokenizer.encode([theirs(text), text]))


def test_types_are_zero_where_none_are_given(tokenizer_file: Path):
    (got,) = Tokenizer(tokenizer_file, 32).encode([{"input_ids": [2, 7, 3]}])
    assert_equal(got, Encoded(np.array([2, 7, 3]), np.zeros(3, np.int64), False))


class OnAnotherDevice:
    """As a tensor on a GPU is: numpy cannot have it."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


REFUSED = [
    ({}, "without input_ids"),
    ({"ids": [2, 3]}, "without input_ids"),
    ({"input_ids": [[2, 3], [2, 7, 3]]}, "without input_ids"),
    ({"input_ids": OnAnotherDevice()}, "without input_ids"),
    ({"input_ids": None}, "one list of whole numbers"),
    ({"input_ids": 2}, "one list of whole numbers"),
    ({"input_ids": "2 3"}, "one list of whole numbers"),
    ({"input_ids": []}, "one list of whole numbers"),
    ({"input_ids": [2.0, 3.0]}, "one list of whole numbers"),
    ({"input_ids": [True, False]}, "one list of whole numbers"),
    ({"input_ids": [2, 2**70]}, "one list of whole numbers"),
    ({"input_ids": [[2, 3]]}, "give a list of such inputs"),
    ({"input_ids": [2, 3], "attention_mask": [1]}, "of one length"),
    ({"input_ids": [2, 3], "token_type_ids": [0, 0, 0]}, "of one length"),
    ({"input_ids": [2, 3], "attention_mask": None}, "of one length"),
    ({"input_ids": [2, 3], "attention_mask": [0, 0]}, "0 tokens; the model takes 1 to 8"),
    ({"input_ids": np.zeros(0, np.int64)}, "0 tokens; the model takes 1 to 8"),
    ({"input_ids": [2] * 9}, "9 tokens; the model takes 1 to 8"),
    ({"input_ids": [2, -1, 3]}, "not in the vocabulary"),
    ({"input_ids": [2, 7, 3], "attention_mask": [1, 0, 1]}, "attention_mask with a 0 between ones"),
    ({"input_ids": [2, 3], "position_ids": [0, 5]}, "'position_ids', which no model here takes"),
    ({"input_ids": [2, 3], "atention_mask": [1, 0]}, "'atention_mask', which no model here takes"),
    ({"input_ids": [2, 3], "attention_mask": [1, 2]}, "attention_mask other than 0 and 1"),
    ({"input_ids": [2, 3], "attention_mask": [0.0, -1e9]}, "attention_mask other than 0 and 1"),
    ({"input_ids": [2, 3], "token_type_ids": [0, 2]}, "token_type_ids that cannot be; .* segments 0 to 1"),
    ({"input_ids": [2, 3], "token_type_ids": [0, -1]}, "token_type_ids that cannot be; .* segments 0 to 1"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=lambda value: repr(value)[:40])
def test_ids_that_no_tokenizer_gives_are_refused_by_place(tokenizer_file: Path, given: dict, message: str):
    with pytest.raises(DataError, match=f"^input 2: .*{message}") as error:
        Tokenizer(tokenizer_file, 8).encode(["good", given])
    assert "\n" not in str(error.value)


def test_the_last_id_that_the_model_knows_is_the_last_that_is_taken(bundle: Path):
    """A vocabulary may have holes, so that the last id is larger than the number of tokens. Here it has one."""
    with Predictor.load(bundle) as predictor:
        size, tokenizer = predictor.bundle.manifest.model.vocab_size, predictor.tokenizer
        assert tokenizer.encode(["az"])[0].ids.max() == size - 1 == len(tokenizer.vocabulary())
        assert predictor({"input_ids": [size - 1]}).layers == predictor({"input_ids": np.array([size - 1])}).layers
        for wrong in (size, -1, 2**40):
            with pytest.raises(DataError, match=f"input 1: an id that is not in the vocabulary of {size}"):
                predictor({"input_ids": [2, wrong, 3]})


def test_what_stands_where_nobody_reads_does_not_matter(tokenizer_file: Path):
    padded = {"input_ids": [2, 3, 10**6, -100], "attention_mask": [1, 1, 0, 0]}
    assert Tokenizer(tokenizer_file, 8, 90).encode([padded])[0].ids.tolist() == [2, 3]


# What tokenizer.json does not have


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("names", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]])
def test_settings_beside_the_file_count_as_for_transformers(model_folder: Path, tmp_path: Path, side: str, names):
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    saved = BertTokenizerFast.from_pretrained(folder, truncation_side=side, model_input_names=names)
    saved.save_pretrained(folder)
    save_tokenizer(folder, tmp_path / "tokenizer.json")
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(tmp_path / "tokenizer.json", 9)
    for text in ("the film was good", "a very long and dreadful story of a bad plot and an even worse scene"):
        for pair in (None, "the scene was a good one and the plot was not"):
            expected = theirs(text, pair, truncation=True, max_length=9)
            (got,) = ours.encode([text if pair is None else (text, pair)])
            assert got.ids.tolist() == expected["input_ids"]
            assert got.type_ids.tolist() == expected.get("token_type_ids", [0] * len(got))


@pytest.mark.parametrize("side", ["right", "left"])
def test_of_a_text_of_any_length_no_more_is_read_than_could_matter(side: str, tokenizer_file: Path, tmp_path: Path):
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"truncation_side": side}))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 9)
    words = [WORDS[number * number % len(WORDS)] for number in range(200_000)]
    kept = " ".join(words[:50] if side == "right" else words[-50:])
    for long, short in ((" ".join(words), kept), ((" ".join(words), " ".join(words)), (kept, kept))):
        one, other = tokenizer.encode([long, short])
        assert_equal(one, other)
        assert one.truncated
    blank = " " * 5_000_000
    (alone,) = tokenizer.encode([f"{blank}good" if side == "right" else f"good{blank}"])
    assert len(alone) == 2 and alone.truncated  # never silently: it was not read to its end


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"truncation_side": "up"}', '{"model_input_names": null}'])
def test_settings_that_make_no_sense_are_refused(tokenizer_file: Path, tmp_path: Path, content: str):
    file = Path(shutil.copy(tokenizer_file, tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer_config\.json"):
        Tokenizer(file, 16)


# What the model has no embeddings of


def test_a_token_without_an_embedding_is_refused_by_its_name(tokenizer_file: Path):
    last = BackendTokenizer.from_file(str(tokenizer_file)).token_to_id("##z")
    tokenizer = Tokenizer(tokenizer_file, 16, last)
    with pytest.raises(DataError, match=f"input 2: the token '##z' has the id {last}, .* of {last} tokens") as error:
        tokenizer.encode(["a", "the az film"])
    assert "\n" not in str(error.value)
    assert not tokenizer.takes("the az film") and tokenizer.takes("a")
    assert Tokenizer(tokenizer_file, 16, last + 1).takes("az")


def test_a_model_of_one_segment_takes_texts_and_refuses_pairs(tokenizer_file: Path):
    tokenizer = Tokenizer(tokenizer_file, 16, type_vocab_size=1)
    assert tokenizer.encode(["good"])[0].type_ids.max() == 0
    for pair in (("good", "bad"), {"input_ids": [2, 3], "token_type_ids": [0, 1]}):
        with pytest.raises(DataError, match=r"input 1: .* one segment, 0, and takes single texts, no pairs"):
            tokenizer.encode([pair])


def test_a_model_of_many_segments_takes_them(tokenizer_file: Path):
    given = {"input_ids": [2, 3], "token_type_ids": [0, 15]}
    assert Tokenizer(tokenizer_file, 16, type_vocab_size=16).encode([given])[0].type_ids.tolist() == [0, 15]


def test_a_model_without_segments_is_not_told_any_whatever_the_tokenizer_says(tokenizer_file: Path):
    tokenizer = Tokenizer(tokenizer_file, 16, type_vocab_size=0)
    pair, given = tokenizer.encode([("good", "film"), {"input_ids": [2, 3], "token_type_ids": [0, 1]}])
    assert pair.type_ids.tolist() == [0, 0, 0, 1, 1] and given.type_ids.tolist() == [0, 1]


# Files from a stranger

EMPTY_CHARSMAP = "BAAAAAAAAAAAAAAA"  # the library looks beyond its end when a text comes


def changed(tokenizer_file: Path, folder: Path, change) -> Path:
    """A tokenizer file with a change of its plain data."""
    plain = json.loads(tokenizer_file.read_bytes())
    change(plain)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(plain))
    return file


def set_part(part: str, **value):
    return lambda plain: plain.update({part: value})


@pytest.mark.parametrize(
    "change",
    [
        set_part("normalizer", type="Precompiled", precompiled_charsmap="AAAA"),
        set_part("normalizer", type="Precompiled", precompiled_charsmap=EMPTY_CHARSMAP),
        set_part("pre_tokenizer", type="FixedLength", length=0),
        set_part("pre_tokenizer", type="Split", pattern={"Regex": "("}, behavior="Isolated", invert=False),
        set_part("model", type="Unigram", unk_id=None, vocab=[["a", 0.0]]),
        set_part("model", type="Unigram", unk_id=5, vocab=[["a", 0.0]]),
        lambda plain: (plain["model"]["vocab"].pop("[UNK]"), plain["added_tokens"].clear()),
    ],
    ids=["panic at load", "panic at a text", "panic at any text", "regex", "no unknown", "no such unknown", "no [UNK]"],
)
def test_a_tokenizer_that_fails_or_panics_is_refused(tokenizer_file: Path, tmp_path: Path, change):
    file = changed(tokenizer_file, tmp_path, change)
    with pytest.raises(BundleError) as error:
        Tokenizer(file, 16)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


@pytest.mark.parametrize(("token", "at"), [("[SEP]", "loading"), ("[PAIR]", "a pair")])
def test_a_tokenizer_that_adds_more_than_the_model_takes_is_refused(
    tokenizer_file: Path, tmp_path: Path, token: str, at: str
):
    def change(plain: dict) -> None:
        wide = {"id": token, "ids": [3] * 30, "tokens": [token]}
        plain["post_processor"]["special_tokens"][token] = wide
        plain["post_processor"]["pair"].append({"SpecialToken": {"id": token, "type_id": 1}})

    file = changed(tokenizer_file, tmp_path, change)
    if at == "loading":
        with pytest.raises(BundleError, match=r"tokenizer\.json: no tokenizer of up to 16 tokens \(it gives"):
            Tokenizer(file, 16)
    else:
        with pytest.raises(BundleError, match=r"gives input 2 .* tokens, and the model takes 16"):
            Tokenizer(file, 16).encode(["a", ("a", "b")])


def test_a_tokenizer_that_panics_at_some_texts_says_at_which(tokenizer_file: Path, tmp_path: Path):
    """Its rule for `b` alone leads beyond the end of its table."""
    has_value, to_nowhere = 1 << 8, 1 << 30
    units = [0] * 300
    units[ord("b")] = ord("b") | has_value | to_nowhere
    table = b"".join(unit.to_bytes(4, "little") for unit in units)
    charsmap = base64.b64encode(len(table).to_bytes(4, "little") + table).decode()
    file = changed(tokenizer_file, tmp_path, set_part("normalizer", type="Precompiled", precompiled_charsmap=charsmap))
    tokenizer = Tokenizer(file, 16)
    (good,) = tokenizer.encode(["a"])
    assert len(good)
    with pytest.raises(BundleError, match=r"tokenizer\.json: this tokenizer fails on input 2 "):
        tokenizer.encode(["a", "b"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_program_is_not_taken_for_a_panic(tokenizer_file: Path, monkeypatch, error: type):
    class Stopped:
        @staticmethod
        def from_buffer(content: bytes):
            raise error

    monkeypatch.setattr("hadskip_export.runtime.tokenization.BackendTokenizer", Stopped)
    with pytest.raises(error):
        Tokenizer(tokenizer_file, 16)


@pytest.mark.parametrize("max_length", [2**70, 2**64, -1])
def test_a_length_that_the_library_cannot_have_is_refused(tokenizer_file: Path, max_length: int):
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(tokenizer_file, max_length)


def test_a_file_too_large_for_a_tokenizer_is_not_read(tmp_path: Path):
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(BundleError, match="at most 67,108,864 are read"):
        Tokenizer(file, 16)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tokenizer_file: Path, tmp_path: Path, name: str):
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(BundleError, match=f"{name}.*not a regular file"):
        Tokenizer(tmp_path / "tokenizer.json", 16)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_deep_nesting_is_refused(tokenizer_file: Path, tmp_path: Path, name: str):
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    (tmp_path / name).write_text('{"model": ' + "[" * 200_000)
    with pytest.raises(BundleError, match=name):
        Tokenizer(tmp_path / "tokenizer.json", 16)
