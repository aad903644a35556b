"""Golden inputs: random words, the same ones every time, or the user's own."""

import zipfile
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
    np.testing.assert_array_equal(golden.routes, golden.margins > np.float32(source.points[0].thresholds))


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


def arrays_of(bundle: Path) -> dict[str, np.ndarray]:
    with np.load(bundle / OUTPUTS) as found:
        return dict(found)


def header(dtype: str, shape: str) -> bytes:
    """A .npy file that is its header alone."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def write_outputs(bundle: Path, change, compression: int = zipfile.ZIP_STORED) -> None:
    """Writes outputs.npz anew: `change` takes and returns .npy files by name."""
    with zipfile.ZipFile(bundle / OUTPUTS) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(bundle / OUTPUTS, "w", compression) as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)
    reseal(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found | {"margins.npy": header("<f4", "(64, 1099511627776)")},
        lambda found: found | {"margins.npy": header("<f4", "(1099511627776, 4)")},
        lambda found: found | {"margins.npy": header("<f4", "(64, 4)")},
        lambda found: found | {"margins.npy": header("|O", "(64, 4)")},
        lambda found: found | {"margins.npy": header("<f8", "(64, 4)") + bytes(64 * 4 * 8)},
        lambda found: found | {"routes.npy": header("|b1", "(64, -4)")},
        lambda found: found | {"labels.npy": header("<U0", "(1099511627776,)")},
        lambda found: found | {"labels.npy": header("<U1099511", "(1000000,)")},
        lambda found: found | {"labels.npy": header("<U4", "()") + bytes(16)},
        lambda found: found | {"thresholds.npy": b"\x93NUMPY\x02\x00" + found["thresholds.npy"][8:]},
        lambda found: found | {"logits.npy": found["logits.npy"][:-4]},
        lambda found: found | {"logits.npy": b""},
        lambda found: {name: content for name, content in found.items() if name != "logits.npy"},
        lambda found: found | {f"{number}.npy": b"" for number in range(5000)},
    ],
)
def test_outputs_that_are_not_what_the_model_gives_are_refused_before_memory_is_taken(
    bundle: Path, tmp_path: Path, change
):
    copy = copy_of(bundle, tmp_path)
    write_outputs(copy, change)
    with pytest.raises(BundleError, match="golden files cannot be read"):
        read_golden(read_bundle(copy))


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    write_outputs(copy, lambda found: found, zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="compressed"):
        read_golden(read_bundle(copy))


@pytest.mark.parametrize(
    "line", ["5", "null", "{}", '["a"]', '["a", "b", "c"]', '["a", 5]', "[" * 100_000, "not JSON", '"\xff"']
)
def test_golden_inputs_that_are_no_texts_are_refused(bundle: Path, tmp_path: Path, line: str):
    copy = copy_of(bundle, tmp_path)
    lines = (copy / INPUTS).read_bytes().splitlines()
    (copy / INPUTS).write_bytes(b"\n".join([line.encode("latin-1"), *lines[1:]]))
    reseal(copy)
    with pytest.raises(BundleError, match="golden files cannot be read"):
        read_golden(read_bundle(copy))


@pytest.mark.parametrize("name", [INPUTS, OUTPUTS])
def test_golden_files_that_are_not_listed_are_refused(bundle: Path, tmp_path: Path, name: str):
    """Nobody has looked where they lead."""
    copy = copy_of(bundle, tmp_path)
    (copy / name).rename(tmp_path / "elsewhere")
    reseal(copy)
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is not listed"):
        read_golden(read_bundle(copy))


def test_golden_files_that_are_not_compressed_are_read_whoever_wrote_them(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    arrays = arrays_of(copy)
    np.savez(copy / OUTPUTS, **arrays)
    reseal(copy)
    golden = read_golden(read_bundle(copy))
    np.testing.assert_array_equal(golden.logits, arrays["logits"])
    assert golden.labels == tuple(arrays["labels"].tolist())
