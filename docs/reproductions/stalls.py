"""Print when the kernel's kdamond threads run, and the stalls of a loop on each core meanwhile (Linux only).

`stalls.py [SECONDS]`. /proc/PID/schedstat has the nanoseconds that a thread has run; the script samples it every 10
ms. The loops only read the clock: on an otherwise idle machine their stalls are the times in which the kernel ran
something else.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path

STALL_MS = 1.0


def spin(core: int, seconds: float) -> list[float]:
    """Read the clock on one core; returns the milliseconds of each stall."""
    os.sched_setaffinity(0, {core})
    end = last = time.monotonic_ns()
    end += int(seconds * 1e9)
    stalls = []
    while last < end:
        at = time.monotonic_ns()
        if at - last >= STALL_MS * 1e6:
            stalls.append((at - last) / 1e6)
        last = at
    return stalls


def runs(process: Path, seconds: float) -> list[tuple[float, float]]:
    """Return when a thread ran, as (second, milliseconds)."""
    began = time.monotonic()
    last = int((process / "schedstat").read_text().split()[0])
    found: list[tuple[float, float]] = []
    while (at := time.monotonic() - began) < seconds:
        ran = int((process / "schedstat").read_text().split()[0])
        if ran - last > 500_000:
            found.append((at, (ran - last) / 1e6))
        last = ran
        time.sleep(0.01)
    return found


def main() -> None:
    """Watch kdamond for SECONDS, then spin on all cores for as long."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    threads = [folder.parent for folder in Path("/proc").glob("[0-9]*/comm") if "kdamond" in folder.read_text()]
    for thread in threads:
        name = (thread / "comm").read_text().strip()
        print(f"{name} ran for", ", ".join(f"{length:.1f} ms at {at:.2f} s" for at, length in runs(thread, seconds)))
    if not threads:
        print("no kdamond thread: DAMON is off")
    cores = sorted(os.sched_getaffinity(0))
    with multiprocessing.Pool(len(cores)) as pool:
        results = pool.starmap(spin, [(core, seconds) for core in cores])
    for core, stalls in zip(cores, results, strict=True):
        print(
            f"core {core}: {len(stalls)} stalls of {STALL_MS:g} ms or more, the longest {max(stalls, default=0):.1f} ms"
        )


if __name__ == "__main__":
    main()
