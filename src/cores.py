"""Threads that share the cores of a machine with other processes: looked at from the moment a command starts."""

import os
import time
from pathlib import Path

Worked = tuple[float, float, float]  # as `worked` gives it
SPINS = "1000"  # what GNU's OpenMP itself takes for more threads than cores, instead of 300,000


def worked() -> Worked:
    """Seconds on the clock, those that all cores together have worked (0 where unknown), and those of this process."""
    stat = Path("/proc/stat")
    user, nice, system = map(int, stat.read_text().split()[1:4] if stat.is_file() else (0, 0, 0))
    cores = (user + nice + system) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), cores, time.process_time()


START = worked()


def share_the_cores(before: Worked, now: Worked) -> None:
    """Lets threads that wait for each other sleep soon, if other processes keep cores busy that they would run on.

    By default they spin for long: that is faster on cores of their own; where another training has these too, a thread
    spins while the one that it waits for cannot run, and both trainings take several times as long. It is for the time
    before torch is loaded, whose OpenMP asks once.
    """
    seconds, all_cores, mine = (after - earlier for after, earlier in zip(now, before, strict=True))
    others = (all_cores - mine) / max(seconds, 0.1)
    cores = os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdigit() else cores
    if "OMP_WAIT_POLICY" not in os.environ and threads > 1 and others + threads > cores + 0.5:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
