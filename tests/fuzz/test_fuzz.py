"""The fuzzer: `make fuzz CASES=20000 SEED=0`. Every case comes from its seed and number alone, so that a finding is
made again by `SEED=.. FIRST=number CASES=1`. Findings are kept under `build/fuzz`, each with its files."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.worker import keep

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / "build" / "fuzz"
CASES, SEED, FIRST = (
    int(os.environ.get("CASES", "20000")),
    int(os.environ.get("SEED", "0")),
    int(os.environ.get("FIRST", "0")),
)
WORKERS = 2
MOST_DEATHS = 30  # of a worker's processes: then something is wrong with nearly all cases


class Worker:
    """Every `WORKERS`th case from `first` on, in one process until one of them ends it, and then in another."""

    def __init__(self, bundle: Path, folder: Path, first: int):
        self._bundle, self._folder, self._next, self._deaths = bundle, folder, first, 0
        folder.mkdir()
        self._start()

    def _start(self) -> None:
        numbers = (SEED, self._next, FIRST + CASES, WORKERS)
        self._log = (self._folder / "stderr.txt").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(self._bundle), str(self._folder), *map(str, numbers)],
            cwd=ROOT,
            env=os.environ | {"RUST_BACKTRACE": "0"},
            stderr=self._log,
        )

    def go_on(self) -> bool:
        """Whether it has more to do. What ended its process is kept as a finding, and the next one begins after it."""
        code = self._process.poll()
        if code is None:
            return True
        self._log.close()
        why = f"ended by {code}\n" + (self._folder / "stderr.txt").read_text(errors="replace")[-3000:]
        assert (self._folder / "number").exists(), f"before the first case: {why}"
        number = (self._folder / "number").read_text()
        if number == "done":
            return False
        keep(self._folder / "findings" / number, self._folder / "case", "?", why)
        self._deaths += 1
        self._next = int(number) + WORKERS
        if self._deaths < MOST_DEATHS:
            self._start()
        return self._deaths < MOST_DEATHS

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def findings(self) -> list[Path]:
        return sorted((self._folder / "findings").glob("*"))


@pytest.mark.slow
def test_no_file_makes_a_reader_fail_otherwise_than_by_an_error_of_ours(bundle: Path, tmp_path: Path):
    started = time.perf_counter()
    workers = [Worker(bundle, tmp_path / f"worker{number}", FIRST + number) for number in range(min(WORKERS, CASES))]
    running = workers
    try:
        while running := [worker for worker in running if worker.go_on()]:
            time.sleep(0.1)
    finally:
        for worker in running:
            worker.stop()
    found = [finding for worker in workers for finding in worker.findings()]
    print(f"\n{CASES:,} cases of seed {SEED} in {time.perf_counter() - started:.0f} s: {len(found)} findings")
    shutil.rmtree(FINDINGS, ignore_errors=True)
    for finding in found:
        shutil.copytree(finding, FINDINGS / finding.name, symlinks=True)
    reasons = Counter((finding / "why.txt").read_text().strip().splitlines()[-1][:200] for finding in found)
    assert not found, f"kept in {FINDINGS}: {reasons.most_common()}"
