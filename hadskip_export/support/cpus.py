"""How many CPUs this process may use: what the number of threads defaults to."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cpus(cgroups: Path = CGROUPS, own_groups: Path = OWN_GROUPS) -> int:
    """At least 1: those it may run on, its affinity where the system has such a thing; where its container has a quota
    of processor time, as many as that fills, rounded up. More threads would be stopped in the middle of each period.

    Args:
        cgroups: where the control groups are mounted, version 1 or 2.
        own_groups: which of them this process is in.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *(math.ceil(quota) for quota in _quotas(cgroups, own_groups))]))


def _quotas(cgroups: Path, own_groups: Path) -> list[float]:
    """CPUs' worth of time that each group around this process may use."""
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:  # no Linux
        return []
    quotas = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = cgroups / controllers if controllers else cgroups
        # Inside a container the path may be the host's, while its own group is mounted as the root.
        around = [mount.joinpath(*Path(path).parts[1:end]) for end in range(1, len(Path(path).parts) + 1)]
        quotas += [quota for group in around if (quota := _quota(group)) is not None]
    return quotas


def _quota(group: Path) -> float | None:
    """Of one group, None where it has no limit."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / file).read_text() for file in files).split()
            if quota != "max" and int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # the other version, or a root, which has no such files
            continue
    return None
