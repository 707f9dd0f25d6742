"""Warm traffic beside a flood of strangers, beside a call that burns the processor, and with a log of all decisions."""

from pathlib import Path
from typing import Any

from load import Flow, Measured, Serving, in_turns, median, p50, p99, rate
from report import Figure
from sites import found, questions

from rolecall.v1 import authorization_pb2 as pb

__all__ = ["a_burning_call", "a_decision_log", "strangers"]

WHO_AM_I = "rolecall.v1.SessionService/WhoAmI"
MEMBERS = 10_000
RATE, SECONDS = 2_000.0, 3.0
STRANGERS_A_SECOND = 5_000.0
# So long one call burns; the next follows at once.
BURNING_SECONDS = 0.2
CONNECTIONS, STREAMS = 32, 4


def strangers(folder: Path) -> list[Figure]:
    """Questions about people whom nobody knows, each another one."""
    site = found(folder, MEMBERS)
    warm = Flow(questions(1000), RATE)
    asked = [
        pb.CheckRequest(subject=f"nobody{place}@acme.io", action="view", resource="members").SerializeToString()
        for place in range(int(STRANGERS_A_SECOND * SECONDS * 5))
    ]
    turn = len(asked) // 5
    floods = iter([Flow(asked[first : first + turn], STRANGERS_A_SECOND) for first in range(0, len(asked), turn)])
    with Serving("fast", site.folder, site.token) as serving:
        before = serving.counts()["memory"]
        alone: list[Measured] = []
        beside: list[Measured] = []
        for flood in floods:
            alone.append(serving.pace(SECONDS, warm=warm)["warm"])
            beside.append(serving.pace(SECONDS, warm=warm, flood=flood)["warm"])
        grown = (serving.counts()["memory"] - before) / 1e6
    late, usual = median(beside, p99), median(alone, p99)
    note = f"{late:,.0f} to {usual:,.0f} µs, {grown:.0f} MB more"
    what = f"p99 beside {STRANGERS_A_SECOND:,.0f} unknown subjects a second, to alone"
    return [Figure(what, late / usual, 5, at_least=False, note=note)]


def a_burning_call(folder: Path) -> list[Figure]:
    """A call in the pool that burns the processor in Python, all the time."""
    site = found(folder, MEMBERS)
    flows = {"warm": Flow(questions(1000), RATE / 4), "burning": Flow([b""], 0, connections=1, path=WHO_AM_I)}
    with Serving("fast", site.folder, site.token, burning=BURNING_SECONDS) as serving:
        serving.pace(SECONDS, warm=flows["warm"])
        found_ = in_turns({"fast": serving}, lambda each: each.pace(SECONDS, **flows)["warm"])["fast"]
    return [
        Figure("p50 beside a call that burns the processor", median(found_, p50) / 1000, 1, at_least=False, unit="ms"),
        Figure("p99 beside a call that burns the processor", median(found_, p99) / 1000, 6, at_least=False, unit="ms"),
    ]


def a_decision_log(folder: Path) -> list[Figure]:
    """Every decision noted, beside none."""
    site = found(folder, MEMBERS)
    told: dict[str, Any] = {"decision_log": "all", "decision_log_file": str(folder / "decisions.jsonl")}
    check = questions(1)[0]
    with Serving("fast", folder, site.token) as off, Serving("fast", folder, site.token, 0, **told) as on:
        times = in_turns({"off": off, "on": on}, lambda each: each.load(check, SECONDS, CONNECTIONS, STREAMS))
    ratio = median(times["on"], rate) / median(times["off"], rate)
    note = f"{median(times['on'], rate):,.0f} to {median(times['off'], rate):,.0f}"
    return [Figure("Checks a second with a log of all decisions, to without", ratio, 0.7, at_least=True, note=note)]
