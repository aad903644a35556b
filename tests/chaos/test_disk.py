"""A disk that is full at a size anywhere below what a command needs: one line that names a file, and nothing is left.

The limit of a file's size stands for the disk, for it needs no rights. Where this machine lets us mount one, a small
disk of its own is tried, too.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.chaos.conftest import JOBS, SIZES, Job, leftovers, start

pytestmark = pytest.mark.slow

LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


def check_refused(process: subprocess.Popen, folder: Path) -> bool:
    """Whether it was refused, and then as it should be."""
    _, stderr = process.communicate()
    if process.returncode == 0:
        return False
    last = stderr.splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in stderr, stderr
    assert last.startswith("Error: /") and "make room there" in last, stderr
    assert leftovers(folder) == []
    return True


@pytest.mark.parametrize("job", JOBS, indirect=True)
def test_files_that_may_not_grow(job: Job, tmp_path: Path):
    refusals = 0
    probe = tmp_path / "probe"
    probe.mkdir()
    job.prepare(probe)
    given = {file: file.stat().st_mtime_ns for file in probe.rglob("*") if file.is_file()}
    assert start(*job.arguments(probe)).wait() == 0
    files = [file for file in probe.rglob("*") if file.is_file() and given.get(file) != file.stat().st_mtime_ns]
    largest = max(file.stat().st_size for file in files)
    for number in range(max(2, SIZES // len(JOBS))):
        folder = tmp_path / str(number)
        folder.mkdir()
        job.prepare(folder)
        limit = int(largest * (number + 0.5) / max(2, SIZES // len(JOBS)))
        refused = check_refused(start(*job.arguments(folder), before=LIMIT.format(limit)), folder)
        refusals += refused
        if job.name in ("build", "predict") and refused:
            assert not (folder / job.target).exists()
    assert refusals


@pytest.mark.skipif(not shutil.which("mount") or os.geteuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize("job", JOBS, indirect=True)
def test_a_small_disk(job: Job, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        job.prepare(disk)
        need = sum(file.stat().st_size for file in disk.rglob("*") if file.is_file())
        subprocess.run(["mount", "-o", f"remount,size={need + 120_000}", disk], check=True)
        before = {file for file in disk.rglob("*") if file.name != ".lock"}
        if check_refused(start(*job.arguments(disk)), disk):
            if job.name != "train":
                assert {file for file in disk.rglob("*") if file.name != ".lock"} == before
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            assert start(*job.arguments(disk)).wait() == 0  # with room it goes on
        job.check(disk / job.target)
    finally:
        subprocess.run(["umount", disk], check=True)
