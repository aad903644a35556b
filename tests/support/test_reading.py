"""What is no file, or too large, is not read."""

import os
from pathlib import Path

import pytest

from hadskip_export.support.reading import opened, read_at_most


@pytest.mark.parametrize("content", [b"", b"x" * 99, b"x" * 100])
def test_a_file_of_at_most_so_many_bytes_is_read(tmp_path: Path, content: bytes):
    (tmp_path / "file").write_bytes(content)
    assert read_at_most(tmp_path / "file", 100) == content
    with opened(tmp_path / "file") as handle:
        assert handle.read() == content


def test_a_larger_file_is_refused_with_its_size(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 1101)
    with pytest.raises(OSError, match="1,101 bytes; at most 1,100 are read"):
        read_at_most(tmp_path / "file", 1100)


def test_a_file_that_says_it_is_empty_and_is_not_is_read_no_further_than_allowed():
    """As those of `/proc` are."""
    assert os.stat("/proc/self/status").st_size == 0
    assert read_at_most(Path("/proc/self/status"), 1 << 20).startswith(b"Name:")
    with pytest.raises(OSError, match="at most 10 are read"):
        read_at_most(Path("/proc/self/status"), 10)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda file: file.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, make):
    make(tmp_path / "thing")
    with pytest.raises(OSError), opened(tmp_path / "thing"):  # noqa: PT011
        pytest.fail("the block must not run")
