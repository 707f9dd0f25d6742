"""Benchmark of growth: a server's memory, files and threads over a million calls on each transport."""

from pathlib import Path

from load import Serving
from report import Figure
from sites import check_requests, create_site

__all__ = ["growth"]

CALLS = 1_000_000
# Calls until the C library's arenas of all threads have settled.
WARMING_CALLS = 200_000
# Seconds of one round.
SECONDS = 5.0
CONNECTIONS, STREAMS = 32, 4


def growth(folder: Path) -> list[Figure]:
    """Measure the growth after the warm-up."""
    site = create_site(folder, 10_000)
    check = check_requests(1)[0]
    figures = []
    for transport in ("polling", "standard"):
        with Serving(transport, folder, site.token) as serving:
            while (early := serving.counts())["answered"] < WARMING_CALLS:
                serving.load(check, SECONDS, CONNECTIONS, STREAMS)
            while (late := serving.counts())["answered"] - early["answered"] < CALLS:
                serving.load(check, SECONDS, CONNECTIONS, STREAMS)
        over = f"{late['answered'] - early['answered']:,.0f} calls, {transport} transport"
        more = {name: late[name] - early[name] for name in ("memory", "files", "threads")}
        kept = more["files"] + more["threads"]
        note = f"of {late['memory'] / 1e6:.0f} MB"
        figures += [
            Figure(f"memory grown over {over}", more["memory"] / 1e6, 5, at_least=False, unit="MB", note=note),
            Figure(f"files and threads grown over {over}", kept, 0, at_least=False, unit=""),
        ]
    return figures
