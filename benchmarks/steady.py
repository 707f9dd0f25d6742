"""Whether a server's memory, files and threads stay as they are over a million calls on each lane."""

from pathlib import Path

from load import Serving
from report import Figure
from sites import found, questions

__all__ = ["growth"]

CALLS = 1_000_000
# So long is one round, and so many calls come before it is looked.
SECONDS, WARM = 5.0, 100_000
CONNECTIONS, STREAMS = 32, 4


def growth(folder: Path) -> list[Figure]:
    """What grows from the first hundred thousand calls on."""
    site = found(folder, 10_000)
    check = questions(1)[0]
    figures = []
    for lane in ("fast", "standard"):
        with Serving(lane, folder, site.token) as serving:
            begin = serving.counts()
            early = begin
            while (late := serving.counts())["answered"] - begin["answered"] < CALLS:
                if early is begin and late["answered"] > WARM:
                    early = late
                serving.load(check, SECONDS, CONNECTIONS, STREAMS)
        calls = late["answered"] - begin["answered"]
        grown = (late["memory"] - early["memory"]) / 1e6
        others = f"{late['files'] - early['files']:+.0f} files, {late['threads'] - early['threads']:+.0f} threads"
        what = f"memory grown over {calls:,.0f} calls, {lane} lane"
        figures.append(
            Figure(what, grown, 5, at_least=False, unit="MB", note=f"of {late['memory'] / 1e6:.0f} MB; {others}")
        )
    return figures
