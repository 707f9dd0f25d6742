"""Strict reading of a policy folder: every row becomes a rule, or a finding with its place and its fix.

Casbin itself drops, bends or crashes on most of what is refused here without saying so.
"""

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from rolecall.domain import Effect

__all__ = [
    "MODEL",
    "MODEL_FILE",
    "POLICY_FILE",
    "TEST_FILE",
    "Finding",
    "GoldenCase",
    "Inheritance",
    "Rule",
    "Severity",
    "Source",
    "read",
    "word_problem",
]

MODEL_FILE = "model.conf"
POLICY_FILE = "policy.csv"
TEST_FILE = "policy_test.csv"

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_ACTION = 256
MAX_RESOURCE = 1024
MAX_ROLE = 64

# The one model that is served: section -> key -> value.
_MODEL = {
    "request_definition": {"r": "sub, obj, act"},
    "policy_definition": {"p": "sub, obj, act, eft"},
    "role_definition": {"g": "_, _"},
    "policy_effect": {"e": "some(where (p.eft == allow)) && !some(where (p.eft == deny))"},
    "matchers": {
        "m": 'g(r.sub, p.sub) && (keyMatch(r.obj, p.obj) || keyMatch(r.obj, p.obj + "/*"))'
        ' && (p.act == "*" || r.act == p.act)'
    },
}
MODEL = "\n".join(f"[{section}]\n{key} = {value}" for section, d in _MODEL.items() for key, value in d.items())

# A word holds no space, comma, quote, bracket, `#`, `*`, `/` or backslash: Casbin splits, swallows or keeps those silently.
_WORD = r"[^\s,\"'`()\[\]{}#*/\\]+"
_ROLE = rf"[A-Za-z][A-Za-z0-9_.-]{{0,{MAX_ROLE - 1}}}"
_RESOURCE = rf"(?:{_WORD}(?:/{_WORD})*(?:/?\*)?|\*)"
_ROW = re.compile(rf" *p *, *({_ROLE}) *, *({_RESOURCE}) *, *({_WORD}|\*) *, *(allow|deny) *")
_ROLE_FULL = re.compile(_ROLE)
_RESOURCE_FULL = re.compile(_RESOURCE)
_ACTION_FULL = re.compile(rf"{_WORD}|\*")
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")
_FORBIDDEN = re.compile(r"[\s,\"'`()\[\]{}#\\]")


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
        return f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message} Fix: {self.fix}"


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

    def add(  # noqa: PLR0913 - a finding has this many parts
        self, file: str, line: int, column: int, message: str, fix: str, severity: Severity = Severity.ERROR
    ) -> None:
        """Record a finding."""
        self.findings.append(Finding(file, line, column, message, fix, severity))

    @property
    def errors(self) -> list[Finding]:
        """The findings that keep the policy from going live."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]


def read(folder: Path) -> Source:
    """Read model.conf, policy.csv and policy_test.csv of `folder`. Never raises for what the files hold."""
    source = Source()
    texts = {name: _text(folder, name, source) for name in (MODEL_FILE, POLICY_FILE, TEST_FILE)}
    digest = hashlib.sha256()
    for name in (MODEL_FILE, POLICY_FILE):
        digest.update(texts[name].encode() + b"\0")
    source.version = digest.hexdigest()[:16]
    source.policy_text = texts[POLICY_FILE]
    if texts[MODEL_FILE]:
        _read_model(texts[MODEL_FILE], source)
    if texts[POLICY_FILE]:
        _read_policy(texts[POLICY_FILE], source)
    if texts[TEST_FILE]:
        _read_cases(texts[TEST_FILE], source)
    return source


def word_problem(kind: str, text: str) -> tuple[str, str] | None:
    """What is wrong with a role, resource or action of a policy, and its fix; None where nothing is."""
    limit = {"role": MAX_ROLE, "resource": MAX_RESOURCE, "action": MAX_ACTION}[kind]
    pattern = {"role": _ROLE_FULL, "resource": _RESOURCE_FULL, "action": _ACTION_FULL}[kind]
    if not text:
        return f"The {kind} is empty.", f"Name a {kind}."
    if len(text) > limit:
        return f"The {kind} has {len(text)} characters, more than {limit}.", "Shorten it."
    if bad := _FORBIDDEN.search(text):
        return (
            f"The {kind} `{text}` holds {bad.group()!r}, which Casbin keeps, splits at or swallows silently.",
            "Write it bare: no quotes, brackets, spaces, backslashes or `#` inside a value; a comment needs its own line.",
        )
    if kind == "resource" and _DOTS.search(text):
        return f"The resource `{text}` has a segment `.` or `..`.", "Name the resource without such segments."
    if pattern.fullmatch(text):
        return None
    if "*" in text:
        where = "alone or at the end of a resource" if kind == "resource" else "alone, as the whole action"
        allowed = f"`*` may stand only {where}" if kind != "role" else "a role has no `*`"
        return (
            f"The {kind} `{text}` has a `*` where Casbin would ignore what follows it: {allowed}.",
            "Move or drop the `*`.",
        )
    if kind == "resource":
        return (
            f"The resource `{text}` has an empty segment.",
            "Write it as `type/id`, without a leading or double slash.",
        )
    if kind == "action":
        return f"The action `{text}` holds a slash.", "Name the action in one word."
    return f"The role `{text}` is no name.", "Start with a letter; then letters, digits, `_`, `.` and `-`."


def _text(folder: Path, name: str, source: Source) -> str:
    """The text of one file with LF line ends and no byte order mark; empty, with a finding, where there is none."""
    path = folder / name
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            source.add(name, 0, 0, f"The file is larger than {MAX_FILE_BYTES} bytes.", "Split it, or drop rules.")
            return ""
        raw = path.read_bytes()
    except FileNotFoundError:
        fix = "Create it in the policy folder"
        if name == TEST_FILE:
            fix += "; `rolecall policy matrix --format test` writes one from what the policy says now"
        source.add(name, 0, 0, f"There is no {name} in {folder}.", f"{fix}.")
        return ""
    except OSError as error:
        source.add(name, 0, 0, f"{path} can't be read: {error.strerror}.", "Make it a file that this user may read.")
        return ""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        source.add(name, line, column, f"Byte 0x{raw[error.start]:02x} is not UTF-8.", "Save the file as UTF-8.")
        return ""
    text = text.replace("\r\n", "\n")
    if not text.strip():
        source.add(name, 0, 0, "The file is empty.", "Restore it: an empty policy could be a truncated one.")
        return ""
    return text


def _rows(text: str, file: str, source: Source) -> list[tuple[int, str]]:
    """The lines that say something, numbered; those with unprintable characters become findings."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line[0] == "#":
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


def _read_model(text: str, source: Source) -> None:
    """Hold the model against the one that is served."""
    section = ""
    seen: set[tuple[str, str]] = set()
    for number, line in _rows(text, MODEL_FILE, source):
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            section = stripped[1:-1].strip()
            if section not in _MODEL:
                source.add(MODEL_FILE, number, 1, f"Section [{section}] is not part of the model.", "Delete it.")
            continue
        key, _, value = (part.strip() for part in stripped.partition("="))
        expected = _MODEL.get(section, {}).get(key)
        if expected is None:
            source.add(MODEL_FILE, number, 1, f"`{key}` is not part of [{section}] of the model.", "Delete the line.")
        elif (section, key) in seen:
            source.add(MODEL_FILE, number, 1, f"`{key}` of [{section}] stands twice.", "Delete one of the two.")
        elif _without_spaces(value) != _without_spaces(expected):
            column = line.index("=") + 2 if "=" in line else 1
            message = f"[{section}] says `{key} = {value}`, but Rolecall serves only `{key} = {expected}`."
            source.add(MODEL_FILE, number, column, message, f"Write `{key} = {expected}`.")
        seen.add((section, key))
    for name, keys in _MODEL.items():
        for key, value in keys.items():
            if (name, key) not in seen:
                fix = f"Add `{key} = {value}` under [{name}]."
                source.add(MODEL_FILE, 0, 0, f"`{key}` of [{name}] is missing.", fix)


def _without_spaces(value: str) -> str:
    """`value` less the spaces outside string literals."""
    parts = value.split('"')
    return '"'.join("".join(part.split()) if i % 2 == 0 else part for i, part in enumerate(parts))


def _read_policy(text: str, source: Source) -> None:
    """Turn the rows into rules; the fast pattern takes well-formed `p` rows, the rest is looked at closely."""
    words: dict[str, str] = {}
    effects = {effect.value: effect for effect in Effect}
    rules = source.rules
    for number, line in _rows(text, POLICY_FILE, source):
        match = _ROW.fullmatch(line)
        if match is None or len(line) > MAX_ACTION or _DOTS.search(match[2]):
            _read_row(number, line, source)
            continue
        role, resource, action, effect = match.groups()
        rules.append(
            Rule(words.setdefault(role, role), resource, words.setdefault(action, action), effects[effect], number)
        )
    if not rules and not source.errors:
        source.add(
            POLICY_FILE, 0, 0, "The policy has no rule.", "Restore it: an empty policy could be a truncated one."
        )


def _read_row(number: int, line: str, source: Source) -> None:
    """Read one row that the fast pattern did not take, or say what is wrong with it."""
    cells = line.split(",")
    starts = [len(",".join(cells[:i])) + bool(i) for i in range(len(cells))]
    columns = [start + len(cell) - len(cell.lstrip(" ")) + 1 for start, cell in zip(starts, cells, strict=True)]
    values = [cell.strip(" ") for cell in cells]
    kinds = {"p": ("role", "resource", "action", "effect"), "g": ("role", "role")}.get(values[0])
    if kinds is None:
        message = f"The row type `{values[0]}` is unknown, and Casbin would drop the row."
        source.add(POLICY_FILE, number, columns[0], message, "Begin the row with `p` (a rule) or `g` (inheritance).")
        return
    problems = []
    for kind, value, column in zip(kinds, values[1:], columns[1:], strict=False):
        if kind == "effect":
            if value not in ("allow", "deny"):
                message = f"The effect `{value}` is unknown, and Casbin would ignore the row."
                problems.append((column, message, "Write `allow` or `deny`, in lower case."))
        elif problem := word_problem(kind, value):
            problems.append((column, *problem))
    if len(values) != len(kinds) + 1:
        example = "p, ROLE, resource, action, allow" if values[0] == "p" else "g, ROLE, PARENT"
        message = f"A `{values[0]}` row has {len(kinds)} values, this one {len(values) - 1}."
        column = columns[len(kinds) + 1] if len(values) > len(kinds) + 1 else len(line) + 1
        problems = [(column, message, f"Write `{example}`; a value can't hold a comma.")]
    for column, message, fix in problems:
        source.add(POLICY_FILE, number, column, message, fix)
    if problems:
        return
    if values[0] == "g":
        source.inheritances.append(Inheritance(values[1], values[2], number))
    else:
        source.rules.append(Rule(values[1], values[2], values[3], Effect(values[4]), number))


def _read_cases(text: str, source: Source) -> None:
    """Read the expectations; the header names the columns."""
    header = "role,resource,action,expected,note"
    rows = _rows(text, TEST_FILE, source)
    if not rows or rows[0][1].replace(" ", "") != header:
        line = rows[0][0] if rows else 0
        source.add(TEST_FILE, line, 1, "The first row is not the header.", f"Begin the file with `{header}`.")
        return
    for number, line in rows[1:]:
        cells = [cell.strip() for cell in line.split(",", 4)]
        if len(cells) < 4:
            message = f"A test has at least 4 values, this row {len(cells)}."
            source.add(TEST_FILE, number, len(line) + 1, message, f"Write `{header}`.")
        elif cells[3] not in ("allow", "deny"):
            column = len(",".join(line.split(",")[:3])) + 2
            message = f"`{cells[3]}` can't be expected."
            source.add(TEST_FILE, number, column, message, "Expect `allow` or `deny`, in lower case.")
        else:
            note = cells[4] if len(cells) == 5 else ""
            source.cases.append(GoldenCase(cells[0], cells[1], cells[2], Effect(cells[3]), note, number))
    if len(rows) == 1:
        source.add(TEST_FILE, 0, 0, "The file holds no test.", "Add rows that say what each role may and may not do.")
