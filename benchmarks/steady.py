"""Whether a server's memory, files and threads stay as they are over a million calls on each lane."""

from pathlib import Path

from load import Serving
from report import Figure
from sites import found, questions

__all__ = ["growth"]

CALLS = 1_000_000
# The C library's arenas of all threads take so many calls to settle.
WARMING_CALLS = 200_000
# So long is one round.
SECONDS = 5.0
CONNECTIONS, STREAMS = 32, 4


def growth(folder: Path) -> list[Figure]:
    """What grows once everything is warm."""
    site = found(folder, 10_000)
    check = questions(1)[0]
    figures = []
    for lane in ("fast", "standard"):
        with Serving(lane, folder, site.token) as serving:
            while (early := serving.counts())["answered"] < WARMING_CALLS:
                serving.load(check, SECONDS, CONNECTIONS, STREAMS)
            while (late := serving.counts())["answered"] - early["answered"] < CALLS:
                serving.load(check, SECONDS, CONNECTIONS, STREAMS)
        over = f"{late['answered'] - early['answered']:,.0f} calls, {lane} lane"
        more = {name: late[name] - early[name] for name in ("memory", "files", "threads")}
        kept = more["files"] + more["threads"]
        note = f"of {late['memory'] / 1e6:.0f} MB"
        figures += [
            Figure(f"memory grown over {over}", more["memory"] / 1e6, 5, at_least=False, unit="MB", note=note),
            Figure(f"files and threads grown over {over}", kept, 0, at_least=False, unit=""),
        ]
    return figures
