"""A bundle's last step: all of it is there or none, and what nobody needs any more goes when nobody can be using it."""

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hadskip_export.exporters.seal import SERVED_SECONDS, amend, clear, new_bundle, seal, undone_if_failed
from hadskip_export.runtime import read_bundle
from hadskip_export.support.errors import BundleError
from tests.exporters.changing import copy_of, files_of

OLD = time.time() - SERVED_SECONDS - 60


@pytest.fixture
def mine(bundle: Path, tmp_path: Path) -> Path:
    return copy_of(bundle, tmp_path)


def test_every_file_that_is_needed_is_listed_with_its_size_and_digest(mine: Path):
    (mine / "model" / "stray.onnx").write_bytes(b"nobody asked")
    (mine / "notes.txt").write_text("mine")
    sealed = seal(mine, read_bundle(mine).manifest)
    names = {name for name in files_of(mine) if name not in ("manifest.json", "manifest.sha256")}
    # The piece of all gates is one of the manifest's, though this cut does not call it.
    assert set(sealed.files) == names - {"model/stray.onnx", "notes.txt"}
    for name, info in sealed.files.items():
        content = (mine / name).read_bytes()
        assert (info.size, info.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (mine / "manifest.sha256").read_text().split() == [
        hashlib.sha256((mine / "manifest.json").read_bytes()).hexdigest()
    ]


def test_a_manifest_is_replaced_and_what_is_no_longer_named_stays(mine: Path):
    opened = read_bundle(mine)
    (mine / "engines" / "other").mkdir()
    (mine / "engines" / "other" / "report.json").write_text("{}")
    (info,) = opened.manifest.engines
    for file in files_of(mine):
        os.utime(mine / file, (OLD, OLD))
    amend(opened, replace(opened.manifest, engines=(replace(info, folder="engines/other"),)))
    after = read_bundle(mine)
    assert after.manifest.engines[0].folder == "engines/other"
    dropped = mine / info.folder / "report.json"
    assert dropped.is_file()  # somebody may be serving it
    clear(after)
    assert dropped.is_file()  # for a day from now on, however old it is
    os.utime(dropped, (OLD, OLD))
    clear(after)
    assert not dropped.exists()


def test_a_digest_of_the_one_before_is_one_too_and_of_any_other_is_none(mine: Path):
    opened = read_bundle(mine)
    before = (mine / "manifest.json").read_bytes()
    amend(opened, replace(opened.manifest, task="another"))
    (mine / "manifest.json").write_bytes(before)
    assert read_bundle(mine).manifest.task == "test"  # killed in between, or read just then
    (mine / "manifest.json").write_bytes(before.replace(b'"test"', b'"tent"'))
    with pytest.raises(BundleError, match="does not match"):
        read_bundle(mine)


def test_what_is_cleared_is_old_and_named_by_nobody(mine: Path):
    before = files_of(mine)
    folders = [mine / "engines" / "killed" / "deep", mine / "engines" / "young", mine / "model" / "weights"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name, age in (("old.onnx", OLD), ("young.onnx", None)):
            (folder / name).write_text("left")
            if age is not None:
                os.utime(folder / name, (age, age))
    for name in before:  # what is named may be as old as it likes
        os.utime(mine / name, (OLD, OLD))
    clear(read_bundle(mine))
    after = files_of(mine)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"{folder.relative_to(mine).as_posix()}/young.onnx" for folder in folders}
    for folder in folders:
        os.utime(folder / "young.onnx", (OLD, OLD))
    clear(read_bundle(mine))
    assert files_of(mine) == before
    for folder in (folders[0], folders[0].parent, folders[1]):
        if folder.exists():
            os.utime(folder, (OLD, OLD))
    clear(read_bundle(mine))
    for folder in (folders[0], folders[0].parent):
        if folder.exists():
            os.utime(folder, (OLD, OLD))
    clear(read_bundle(mine))
    assert sorted(folder.name for folder in (mine / "engines").iterdir()) == ["ort-fp32-gates"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_was_written_is_undone_if_the_block_fails(mine: Path, error: type[BaseException]):
    before = files_of(mine)
    with pytest.raises(error), undone_if_failed(read_bundle(mine)):  # noqa: PT012
        for place in ("engines/new/file", "model/new.onnx", "model/weights/new.safetensors"):
            (mine / place).parent.mkdir(exist_ok=True)
            (mine / place).write_text("half")
        (mine / "engines" / "empty").mkdir()
        raise error
    assert files_of(mine) == before
    assert [folder.name for folder in (mine / "engines").iterdir()] == ["ort-fp32-gates"]


def test_what_was_written_stays_if_it_does_not(mine: Path):
    with undone_if_failed(read_bundle(mine)):
        (mine / "model" / "new.onnx").write_text("whole")
    assert (mine / "model" / "new.onnx").is_file()


# A new bundle


def test_it_takes_its_name_at_the_end(tmp_path: Path):
    out = tmp_path / "deep" / "bundle"
    with new_bundle(out) as folder:
        (folder / "file").write_text("content")
        assert not out.exists() and folder.parent == out.parent
    assert (out / "file").read_text() == "content"
    assert list(out.parent.iterdir()) == [out]


def test_it_may_take_the_place_of_an_empty_folder(tmp_path: Path):
    (tmp_path / "bundle").mkdir()
    with new_bundle(tmp_path / "bundle") as folder:
        (folder / "file").write_text("content")
    assert (tmp_path / "bundle" / "file").is_file()


@pytest.mark.parametrize("what", ["a file", "a folder"])
def test_it_overwrites_nothing(tmp_path: Path, what: str):
    out = tmp_path / "bundle"
    if what == "a folder":
        out.mkdir()
    mine = out if what == "a file" else out / "mine"
    mine.write_text("mine")
    with pytest.raises(BundleError, match="exists already"), new_bundle(out):
        pytest.fail("work began")
    assert mine.read_text() == "mine" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_one_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]):
    with pytest.raises(error), new_bundle(tmp_path / "bundle") as folder:  # noqa: PT012
        (folder / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt(), None], ids=repr)
def test_a_bundle_is_replaced_when_told_to_and_stays_if_that_fails(mine: Path, error: BaseException | None):
    before = files_of(mine)

    def write() -> None:
        with new_bundle(mine, force=True) as folder:
            (folder / "manifest.json").write_text("new")
            assert files_of(mine) == before
            if error is not None:
                raise error

    if error is None:
        write()
    else:
        with pytest.raises(type(error)):
            write()
    assert files_of(mine) == (before if error else {"manifest.json": b"new"})
    assert [place.name for place in mine.parent.iterdir()] == [mine.name]


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="is no bundle"), new_bundle(tmp_path, force=True):
        pytest.fail("the block must not run")
    assert (tmp_path / "thesis.txt").read_text() == "mine"
