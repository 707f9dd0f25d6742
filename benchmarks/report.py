"""Reports of measured figures in docs/benchmarks: JSON, a table, and a picture."""

import json
import logging
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import matplotlib as mpl
import structlog

mpl.use("agg")
from matplotlib import pyplot as plt

__all__ = ["Figure", "quiet", "report", "table"]

# Maximum length of a bar in the picture: larger shares are drawn like this one.
FAR = 5.0
FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


@dataclass(frozen=True)
class Figure:
    """One measured figure with its bar: a minimum if `at_least`, else a maximum."""

    what: str
    value: float
    bar: float
    at_least: bool
    unit: str = "x"
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the figure is on the right side of its bar."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    @property
    def share(self) -> float:
        """The ratio to the bar: above 1 if it is reached, below 1 if it is missed, at most `FAR`."""
        over, under = (self.value, self.bar) if self.at_least else (self.bar, self.value)
        return min(over / under, FAR) if under > 0 else float(self.reached) * FAR

    @property
    def row(self) -> list[str]:
        """The cells of the table's row."""
        sign = "≥" if self.at_least else "≤"
        return [self.what, f"{_text(self.value)} {self.unit}", self.note, f"{sign} {_text(self.bar)} {self.unit}"]


def quiet() -> None:
    """Log warnings only."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def table(figures: list[Figure]) -> str:
    """Format the figures as text."""
    widths = [max(len(each.row[column]) for each in figures) for column in range(4)]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(each.row, widths, strict=True))
        + ("" if each.reached else "  MISSED")
        for each in figures
    ]
    return "\n".join(rows)


def report(name: str, title: str, figures: list[Figure]) -> None:
    """Write the report `name`: JSON, Markdown and picture."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, grpcio {grpc.__version__}"
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    data = {"title": title, "at": at, "machine": machine, "figures": [asdict(each) for each in figures]}
    (FOLDER / f"{name}.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    lines = [f"# {title}", "", f"{at}, {machine}.", "", "| figure | measured | | bar | |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(each.row)} | {'' if each.reached else 'missed'} |" for each in figures]
    lines += ["", f"![]({name}.png)", ""]
    (FOLDER / f"{name}.md").write_text("\n".join(lines))
    _draw(FOLDER / f"{name}.png", f"{title}\n{machine}", figures)


def _draw(file: Path, title: str, figures: list[Figure]) -> None:
    """Draw the ratio of each figure to its bar."""
    shares = [each.share for each in figures]
    figure, axes = plt.subplots(figsize=(11, 1.2 + 0.45 * len(figures)))
    colors = ["#2b7a4b" if each.reached else "#b5482f" for each in figures]
    places = range(len(figures), 0, -1)
    axes.barh(list(places), shares, color=colors)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(list(places), [each.what for each in figures])
    for place, share, each in zip(places, shares, figures, strict=True):
        axes.text(share, place, f" {each.row[1]} (bar {each.row[3]})", va="center", fontsize=9)
    axes.set_xlim(0, max(*shares, 1.5) * 1.35)
    axes.set_xlabel("measured against the bar; right of the line is better than it")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
