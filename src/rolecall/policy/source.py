"""What a policy folder says, as plain values, and everything found wrong with it."""

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from rolecall.domain import Effect

__all__ = [
    "MODEL_FILE",
    "POLICY_FILE",
    "TEST_FILE",
    "Finding",
    "GoldenCase",
    "Inheritance",
    "Rule",
    "Severity",
    "Source",
    "lines_of",
]

MODEL_FILE = "model.conf"
POLICY_FILE = "policy.csv"
TEST_FILE = "policy_test.csv"

# A broken file could have a million, and a line of any length.
MAX_FINDINGS = 1000
MAX_MESSAGE = 400

# What some editors show as the end of a line, and Python's and Casbin's readers may or may not take for one.
_HIDDEN_LINE_END = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")


class Severity(StrEnum):
    """An error keeps a policy from going live; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, where (lines and columns count from 1; 0 is the whole file), and what to do."""

    file: str
    line: int
    column: int
    message: str
    fix: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        """The finding on one line, as compilers print them."""
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.severity}: {self.message} Fix: {self.fix}"


class Rule(NamedTuple):
    """One `p` row. A tuple, because there may be 100,000 to hand from one process to another."""

    role: str
    resource: str
    action: str
    effect: Effect
    line: int

    def __str__(self) -> str:
        """The row as the file has it."""
        return f"p, {self.role}, {self.resource}, {self.action}, {self.effect}"


@dataclass(frozen=True, slots=True)
class Inheritance:
    """One `g` row: `role` may all that `parent` may."""

    role: str
    parent: str
    line: int


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One row of policy_test.csv: what the policy is expected to answer."""

    role: str
    resource: str
    action: str
    expected: Effect
    note: str
    line: int


@dataclass(slots=True)
class Source:
    """All that a folder says, and everything found wrong with it."""

    rules: list[Rule] = field(default_factory=list)
    inheritances: list[Inheritance] = field(default_factory=list)
    cases: list[GoldenCase] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    version: str = ""
    policy_text: str = ""
    _counts: Counter[Severity] = field(default_factory=Counter)

    def add(
        self, file: str, line: int, column: int, message: str, fix: str, severity: Severity = Severity.ERROR
    ) -> None:
        """Record a finding; those beyond the first thousand of a severity are only counted, in a last one."""
        self._counts[severity] += 1
        if self._counts[severity] > MAX_FINDINGS:
            return
        if self._counts[severity] == MAX_FINDINGS:
            message, fix = "There are more findings than are told.", "Correct those above first."
        self.findings.append(Finding(file, line, column, _short(message), _short(fix), severity))

    @property
    def errors(self) -> list[Finding]:
        """The findings that keep the policy from going live."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]


def lines_of(text: str, file: str, source: Source) -> list[tuple[int, str]]:
    """The lines that say something, numbered; those with unprintable characters become findings."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        if hidden := _HIDDEN_LINE_END.search(line):
            message = f"Character U+{ord(hidden.group()):04X} looks like the end of a line, and is none for Casbin."
            source.add(file, number, hidden.start() + 1, message, "End lines with LF or CRLF.")
            continue
        if line[0] == "#":
            continue
        if not line.isprintable():
            column = next(i for i, character in enumerate(line) if not character.isprintable())
            if not line.lstrip(" ").startswith("#"):
                message = f"Character U+{ord(line[column]):04X} can't be seen, and Casbin may drop the row for it."
                source.add(file, number, column + 1, message, "Delete it, or use a plain space.")
            continue
        stripped = line.strip(" ")
        if stripped and stripped[0] != "#":
            rows.append((number, line))
    return rows


def _short(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
