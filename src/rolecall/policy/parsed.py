"""Parsed policy folders: rules, inheritances, test cases, and the findings about them."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from rolecall.domain import Effect
from rolecall.policy.expressions import Condition, Values
from rolecall.policy.spreadsheet import plain_rows

__all__ = [
    "CONDITIONS_FILE",
    "FILE_NAMES",
    "MODEL_FILE",
    "NO_FILES",
    "POLICY_FILE",
    "TEST_FILE",
    "Finding",
    "Inheritance",
    "ParsedPolicy",
    "PolicyFiles",
    "PolicyTestCase",
    "Rule",
    "Severity",
    "lines_of",
]

MODEL_FILE = "model.conf"
POLICY_FILE = "policy.csv"
TEST_FILE = "policy_test.csv"
CONDITIONS_FILE = "conditions.yaml"
FILE_NAMES = (MODEL_FILE, POLICY_FILE, TEST_FILE, CONDITIONS_FILE)
"""Names of the files of a policy folder, in the order of `PolicyFiles`. Conditions are optional."""

# Maximum findings of each severity, and maximum characters of a message: a broken file could have a million findings,
# and lines of any length.
MAX_FINDINGS = 1000
MAX_MESSAGE = 400

# Characters that some editors show as the end of a line; Python's and Casbin's readers disagree about them.
_HIDDEN_LINE_END = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")


class PolicyFiles(NamedTuple):
    """Texts of the files of a policy folder, as `cleaned` makes them; empty where unreadable, or without conditions.

    `policy` has plain rows, so that Casbin reads what the parser reads.
    """

    model: str
    policy: str
    tests: str
    conditions: str = ""

    @classmethod
    def cleaned(cls, model: str, policy: str, tests: str, conditions: str = "") -> "PolicyFiles":
        """Return the files with these texts, which may have CRLF line ends, a byte order mark, quoted rows."""
        texts = (text.removeprefix("\ufeff").replace("\r\n", "\n") for text in (model, policy, tests, conditions))
        model, policy, tests, conditions = texts
        return cls(model, plain_rows(policy), tests, conditions)

    @property
    def version(self) -> str:
        """Hash of the model, the rules and the conditions, 16 hexadecimal digits; tests don't count.

        Empty where there is no model or no rule.
        """
        if not self.model or not self.policy:
            return ""
        digest = hashlib.sha256()
        for text in (self.model, self.policy, *filter(None, [self.conditions])):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]

    def differing(self, other: "PolicyFiles") -> list[str]:
        """Return the names of the files whose texts differ."""
        pairs = zip(FILE_NAMES, self, other, strict=True)
        return [name for name, own, others in pairs if own != others]


NO_FILES = PolicyFiles("", "", "")


class Severity(StrEnum):
    """Severity of a finding: an error keeps a policy from going live; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """Problem of a policy folder: its place (lines and columns count from 1; 0 is the whole file), and its fix.

    Without a `file` it is about the folder itself.
    """

    file: str
    line: int
    column: int
    message: str
    fix: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        """Format the finding on one line, as compilers print them."""
        where = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{where}{self.severity}: {self.message} Fix: {self.fix}"

    def in_folder(self, folder: Path) -> str:
        """Format the finding with the folder before the file."""
        return str(replace(self, file=str(folder / self.file)))


class Rule(NamedTuple):
    """One `p` row. A tuple, because up to 100,000 of them are passed from one process to another."""

    role: str
    resource: str
    action: str
    effect: Effect
    line: int
    condition: str = ""

    def __str__(self) -> str:
        """Format the row as in policy.csv."""
        condition = f", {self.condition}" if self.condition else ""
        return f"p, {self.role}, {self.resource}, {self.action}, {self.effect}{condition}"


@dataclass(frozen=True, slots=True)
class Inheritance:
    """One `g` row: `role` has all rules of `parent`."""

    role: str
    parent: str
    line: int


@dataclass(frozen=True, slots=True)
class PolicyTestCase:
    """One row of policy_test.csv: a request with the values of its conditions, and the expected decision."""

    role: str
    resource: str
    action: str
    expected: Effect
    note: str
    line: int
    values: Values = field(default_factory=dict)


@dataclass(slots=True)
class ParsedPolicy:
    """Contents of a policy folder, and the findings about it."""

    rules: list[Rule] = field(default_factory=list)
    inheritances: list[Inheritance] = field(default_factory=list)
    cases: list[PolicyTestCase] = field(default_factory=list)
    conditions: dict[str, Condition] = field(default_factory=dict)
    condition_lines: dict[str, int] = field(default_factory=dict)
    has_condition_column: bool = False
    findings: list[Finding] = field(default_factory=list)
    files: PolicyFiles = NO_FILES
    _counts: Counter[Severity] = field(default_factory=Counter)

    def add(
        self, file: str, line: int, column: int, message: str, fix: str, severity: Severity = Severity.ERROR
    ) -> None:
        """Add a finding. The thousandth of a severity says that there are more; further ones are dropped."""
        self._counts[severity] += 1
        if self._counts[severity] > MAX_FINDINGS:
            return
        if self._counts[severity] == MAX_FINDINGS:
            message, fix = "There are more findings than are shown.", "Correct those above first."
        self.findings.append(Finding(file, line, column, _short(message), _short(fix), severity))

    @property
    def errors(self) -> list[Finding]:
        """The findings that keep the policy from going live."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]


def lines_of(text: str, file: str, parsed: ParsedPolicy) -> list[tuple[int, str]]:
    """Return the numbered lines that are neither empty nor comments; unprintable characters become findings."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        if hidden := _HIDDEN_LINE_END.search(line):
            message = f"Character U+{ord(hidden.group()):04X} looks like the end of a line, but not to Casbin."
            parsed.add(file, number, hidden.start() + 1, message, "End lines with LF or CRLF.")
            continue
        if line[0] == "#":
            continue
        if not line.isprintable():
            column = next(i for i, character in enumerate(line) if not character.isprintable())
            if not line.lstrip(" ").startswith("#"):
                message = (
                    f"Character U+{ord(line[column]):04X} is invisible, and Casbin may drop the row because of it."
                )
                parsed.add(file, number, column + 1, message, "Delete it, or use a plain space.")
            continue
        stripped = line.strip(" ")
        if stripped and stripped[0] != "#":
            rows.append((number, line))
    return rows


def _short(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
