"""Files and folders are there whole or not at all, whoever is killed, and whatever is full."""

import errno
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hadskip_export.support.errors import BundleError, DataError, EngineError
from hadskip_export.support.files import check_place, named, new_folder, replaced, scratch


@pytest.mark.parametrize("before", [None, "before"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
def test_a_file_is_replaced_when_the_block_ends_well_and_else_nothing_is_left(tmp_path: Path, before, error):
    file = tmp_path / "file.json"
    if before is not None:
        file.write_text(before)

    def write() -> None:
        with replaced(file) as part:
            part.write_text("after")
            assert (file.read_text() if file.exists() else None) == before
            if error is not None:
                raise error

    if error is None:
        write()
    else:
        with pytest.raises(error):
            write()
    assert (file.read_text() if file.exists() else None) == (before if error else "after")
    assert list(tmp_path.iterdir()) == ([file] if file.exists() else [])


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path):
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    with replaced(link) as part:
        part.write_text("after")
    assert link.is_symlink() and file.read_text() == "after" and len(list(tmp_path.iterdir())) == 2


# Killed, or at the same time


def in_another_process(code: str) -> subprocess.Popen:
    """Runs it until it has said something."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "begun\n"
    return process


def half_written(path: Path, kind: str) -> subprocess.Popen:
    return in_another_process(f"""
        from pathlib import Path
        from hadskip_export.support.files import new_folder, replaced
        with {kind}(Path({str(path)!r})) as part:
            (part / "deep").mkdir() if {kind == "new_folder"} else None
            (part / "deep" / "file" if {kind == "new_folder"} else part).write_text("a longer half")
            print("begun", flush=True)
            input()
    """)


def write(path: Path, kind: str) -> None:
    with KINDS[kind](path) as part:
        (part / "file" if kind == "new_folder" else part).write_text("whole")


KINDS = {"replaced": replaced, "new_folder": new_folder}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_living_process_writes_is_left_alone_and_what_a_killed_one_left_goes(tmp_path: Path, kind: str):
    path = tmp_path / "result"
    with half_written(path, kind) as process:
        with pytest.raises(BundleError, match=f"{path}: another process is writing it"):
            write(path, kind)
        part = tmp_path / ".result.part"
        assert (part / "deep" / "file" if kind == "new_folder" else part).read_text() == "a longer half"
        process.kill()
        process.wait()
    assert part.exists() and not path.exists()
    write(path, kind)
    assert (path / "file" if kind == "new_folder" else path).read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path] and (kind == "replaced" or len(list(path.iterdir())) == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_of_many_at_once_one_writes_and_the_others_are_refused(tmp_path: Path, kind: str):
    def attempt(number: int) -> str:
        try:
            with KINDS[kind](tmp_path / "result") as part:
                file = part / "file" if kind == "new_folder" else part
                file.write_text(f"{number}")
                time.sleep(0.001)
                assert file.read_text() == f"{number}"
            return "written"
        except BundleError:
            return "refused"
        except OSError as error:  # the folder is there already
            return errno.errorcode[error.errno or 0]

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(attempt, range(200)))
    assert "written" in outcomes and set(outcomes) <= {"written", "refused", "ENOTEMPTY"}
    assert kind == "replaced" or outcomes.count("written") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["result"]


def test_a_temporary_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code = """
        from hadskip_export.support.files import scratch
        with scratch() as folder:
            (folder / "file").write_text("mine")
            print("begun", flush=True)
            input()
    """
    with in_another_process(code) as killed, in_another_process(code) as living:
        before = set(tmp_path.iterdir())
        killed.kill()
        killed.wait()
        with scratch() as folder:
            assert len(list(tmp_path.iterdir())) == 2 and folder not in before
        (left,) = tmp_path.iterdir()
        assert left in before and (left / "file").read_text() == "mine"
        living.communicate("\n")
    assert list(tmp_path.iterdir()) == []


# No room


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", ["python", "safetensors", "tokenizers", "wrapped"])
def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(tmp_path: Path, kind: str, library: str):
    """The limit of a file's size stands for it, for it needs no rights."""
    path = tmp_path / "result"
    code = f"""
        import errno, resource, sys
        from pathlib import Path
        import numpy
        import safetensors.numpy
        import tokenizers
        from hadskip_export.support.errors import EngineError
        from hadskip_export.support.files import new_folder, replaced
        def wrapped(file):
            try:
                file.write_bytes(bytes(100_000))
            except OSError as error:
                raise EngineError("it broke") from error
        write = {{
            "python": lambda file: file.write_bytes(bytes(100_000)),
            "safetensors": lambda file: safetensors.numpy.save_file({{"a": numpy.zeros(100_000)}}, file),
            "tokenizers": lambda file: tokenizers.Tokenizer(
                tokenizers.models.WordLevel({{str(i): i for i in range(10_000)}}, "0")).save(str(file)),
            "wrapped": wrapped,
        }}[{library!r}]
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            with {kind}(Path({str(path)!r})) as part:
                write(part / "file" if {kind == "new_folder"} else part)
        except OSError as error:
            print(error.errno == errno.EFBIG, error.filename)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout == f"True {path}\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_has_another_reason_stays_what_it_is(tmp_path: Path):
    for error in (ValueError("os error"), EngineError("no"), FileNotFoundError(errno.ENOENT, "not there", "mine")):
        with pytest.raises(type(error)) as caught, named(tmp_path):
            raise error
        assert caught.value is error


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_named_by_the_file(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as caught:
        write(tmp_path / "result", "replaced")
    assert caught.value.filename == str(tmp_path / "result")


def test_what_is_no_file_is_written_to_as_it_is(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        with replaced(pipe) as part:
            part.write_text("after")
        assert reader.communicate()[0] == "after"
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_link_to_itself_is_refused(tmp_path: Path):
    link = tmp_path / "link.json"
    link.symlink_to(link)
    with pytest.raises(DataError, match="leads to itself"):
        check_place(link, "--json")
    with pytest.raises(DataError, match="leads to itself"), replaced(link):
        pass
    assert list(tmp_path.iterdir()) == [link]
