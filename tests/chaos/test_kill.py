"""SIGKILL and SIGTERM at moments spread over a command's life: nothing is lost, and what is left goes with the next."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import JOBS, MOMENTS, Job, leftovers, start

pytestmark = pytest.mark.slow

FATAL = (signal.SIGKILL, signal.SIGTERM)
TRIES = 5  # to meet a moment of a life that is shorter than the first one was


@pytest.mark.parametrize("job", JOBS, indirect=True)
def test_whenever_it_is_killed_the_next_one_does_it_all(job: Job, tmp_path: Path):
    """Killed again and again in one place, until one run is let through; then the whole life anew."""
    moments, stopped = max(2, MOMENTS // len(JOBS)), 0
    life = _life(job, tmp_path / "first")
    folder = _prepared(job, tmp_path / "work")
    for moment in range(moments):
        number = FATAL[moment % 2]
        for _ in range(TRIES):
            # The first two fifths are imports, where nothing happens yet.
            done, lived = _killed(job, folder, number, life * (0.4 + 0.6 * (moment + 0.5) / moments))
            if done.returncode != 0:
                stopped += 1
            if done.returncode != 0 and number == signal.SIGTERM:
                assert done.returncode in (143, -signal.SIGTERM), done.stderr
                assert done.returncode < 0 or done.stderr.splitlines()[-1] == "Error: terminated"
                assert "Traceback" not in done.stderr and leftovers(folder) == []
            whole = job.finished(folder / job.target)
            if whole:
                job.check(folder / job.target)  # what has its name is whole
                shutil.rmtree(folder)
                _prepared(job, folder)
            if done.returncode != 0 or not whole:
                break
            life = min(life, lived)  # it was done before its moment came: the first time had found the machine busier
    if job.name != "train" or not (folder / job.target / "summary.json").exists():
        done = start(*job.arguments(folder))
        _, stderr = done.communicate()
        assert done.returncode == 0, stderr
    job.check(folder / job.target)
    assert leftovers(folder) == []
    assert {file.name for file in folder.iterdir()} == {job.target}
    assert stopped, "it was never stopped"


def _prepared(job: Job, folder: Path) -> Path:
    folder.mkdir()
    job.prepare(folder)
    return folder


def _life(job: Job, folder: Path) -> float:
    """Seconds that it takes undisturbed."""
    _prepared(job, folder)
    started = time.monotonic()
    process = start(*job.arguments(folder))
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    job.check(folder / job.target)
    return time.monotonic() - started


def _killed(job: Job, folder: Path, number: int, after: float) -> tuple[subprocess.CompletedProcess, float]:
    """What became of it, and the seconds until then."""
    started = time.monotonic()
    process = start(*job.arguments(folder), before=job.before)
    try:
        out, err = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    seconds = time.monotonic() - started
    return subprocess.CompletedProcess(process.args, process.returncode, out, err), seconds
