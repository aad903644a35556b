"""The number of threads keeps to affinity and to a container's quota, by either version of control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hadskip_export.support.cpus import usable_cpus

CPUS = 8


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CPUS)), raising=False)


def usable(folder: Path, own_groups: str, files: dict[str, str]) -> int:
    own = folder / "own"
    own.write_text(own_groups)
    for name, content in files.items():
        file = folder / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return usable_cpus(folder / "groups", own)


@pytest.mark.parametrize(
    ("own_groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, CPUS),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, CPUS),
        ("0::/\n", {}, CPUS),
        ("0::/\n", {"cpu.max": "nonsense\n"}, CPUS),
        ("", {"cpu.max": "200000 100000\n"}, CPUS),
        ("0::/pods/one\n", {"pods/one/cpu.max": "300000 100000\n", "pods/cpu.max": "max 100000\n"}, 3),
        ("0::/pods/one\n", {"pods/one/cpu.max": "max 100000\n", "pods/cpu.max": "200000 100000\n"}, 2),
        ("0::/../host/pod\n", {"cpu.max": "200000 100000\n"}, 2),
        ("4:cpu,cpuacct:/a\n3:memory:/a\n",
         {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 3),
        ("4:cpu,cpuacct:/docker/ab\n",
         {"cpu,cpuacct/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 1),
        ("4:cpu,cpuacct:/\n",
         {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, CPUS),
        ("4:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, CPUS),
    ],
)  # fmt: skip
def test_a_quota_counts_in_the_number_of_threads(tmp_path: Path, own_groups: str, files: dict[str, str], expected: int):
    assert usable(tmp_path, own_groups, files) == expected


def test_affinity_counts_where_it_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert usable(tmp_path, "0::/\n", {"cpu.max": "400000 100000\n"}) == 1


def test_a_real_affinity_counts():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from hadskip_export.runtime.engines import EngineOptions; print(EngineOptions().thread_count)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
