"""Benchmarks of Checks beside other load: a flood of unknown subjects, a CPU-bound call, and a log of all decisions."""

from pathlib import Path
from typing import Any

from load import Flow, Measured, Serving, in_turns, median, p50, p99, rate
from report import Figure
from sites import check_requests, create_site

from rolecall.v1 import authorization_pb2 as pb

__all__ = ["a_burning_call", "a_decision_log", "unknown_subjects"]

WHO_AM_I = "rolecall.v1.SessionService/WhoAmI"
MEMBERS = 10_000
RATE, SECONDS = 2_000.0, 3.0
UNKNOWN_SUBJECTS_A_SECOND = 5_000.0
# CPU seconds of one CPU-bound call; the next call follows at once.
BURNING_SECONDS = 0.2
CONNECTIONS, STREAMS = 32, 4


def unknown_subjects(folder: Path) -> list[Figure]:
    """Measure cached Checks beside 5,000 Checks a second of unknown subjects, each about another one."""
    site = create_site(folder, MEMBERS)
    warm = Flow(check_requests(1000), RATE)
    messages = [
        pb.CheckRequest(subject=f"nobody{place}@acme.io", action="view", resource="members").SerializeToString()
        for place in range(int(UNKNOWN_SUBJECTS_A_SECOND * SECONDS * 5))
    ]
    turn = len(messages) // 5
    floods = iter(
        [Flow(messages[first : first + turn], UNKNOWN_SUBJECTS_A_SECOND) for first in range(0, len(messages), turn)]
    )
    with Serving("polling", site.folder, site.token) as serving:
        before = serving.counts()["memory"]
        alone: list[Measured] = []
        beside: list[Measured] = []
        for flood in floods:
            alone.append(serving.pace(SECONDS, warm=warm)["warm"])
            beside.append(serving.pace(SECONDS, warm=warm, flood=flood)["warm"])
        grown = (serving.counts()["memory"] - before) / 1e6
    late, usual = median(beside, p99), median(alone, p99)
    note = f"{late:,.0f} to {usual:,.0f} µs, {grown:.0f} MB more"
    what = f"p99 beside {UNKNOWN_SUBJECTS_A_SECOND:,.0f} unknown subjects a second, to alone"
    return [Figure(what, late / usual, 5, at_least=False, note=note)]


def a_burning_call(folder: Path) -> list[Figure]:
    """Measure cached Checks beside a call that computes in Python in a pool thread, all the time."""
    site = create_site(folder, MEMBERS)
    flows = {"warm": Flow(check_requests(1000), RATE / 4), "burning": Flow([b""], 0, connections=1, path=WHO_AM_I)}
    with Serving("polling", site.folder, site.token, burning=BURNING_SECONDS) as serving:
        serving.pace(SECONDS, warm=flows["warm"])
        times = in_turns({"polling": serving}, lambda each: each.pace(SECONDS, **flows)["warm"])["polling"]
    return [
        Figure("p50 beside a call that burns the processor", median(times, p50) / 1000, 1, at_least=False, unit="ms"),
        Figure("p99 beside a call that burns the processor", median(times, p99) / 1000, 6, at_least=False, unit="ms"),
    ]


def a_decision_log(folder: Path) -> list[Figure]:
    """Measure Checks with a log of all decisions, and without one."""
    site = create_site(folder, MEMBERS)
    settings: dict[str, Any] = {"decision_log": "all", "decision_log_file": str(folder / "decisions.jsonl")}
    check = check_requests(1)[0]
    with Serving("polling", folder, site.token) as off, Serving("polling", folder, site.token, 0, **settings) as on:
        times = in_turns({"off": off, "on": on}, lambda each: each.load(check, SECONDS, CONNECTIONS, STREAMS))
    ratio = median(times["on"], rate) / median(times["off"], rate)
    note = f"{median(times['on'], rate):,.0f} to {median(times['off'], rate):,.0f}"
    return [Figure("Checks a second with a log of all decisions, to without", ratio, 0.7, at_least=True, note=note)]
