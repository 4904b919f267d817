"""CPU, memory, cores and quantiles. Linux only: everything is read from /proc and from process clocks."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

OPEN_FILES = 20_000  # 2,000 streams are 4,000 sockets in the contender


def raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def family(pid: int) -> tuple[int, ...]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone since the listing
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, ()))
    return tuple(found)


def cpu_ns(pids: Sequence[int]) -> int:
    """User and system time, threads that have ended included."""
    # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED), include/linux/posix-timers.h; what clock_getcpuclockid(3) answers.
    return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in pids)


def memory_bytes(pids: Sequence[int], field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the highest since `reset_memory_peak`), summed."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                total += int(line.split()[1]) * 1024
    return total


def reset_memory_peak(pids: Sequence[int]) -> None:
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def cores() -> tuple[int, int]:
    """One for load generator and stub, one for the contender; the same where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not values:
        return float("nan")
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def machine() -> dict[str, object]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "unknown",
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
        "load_average": round(os.getloadavg()[0], 2),
    }
