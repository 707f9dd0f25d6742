"""Strict parser of a policy folder: every row becomes a rule, or a finding with its place and its fix.

Casbin itself silently drops or changes most of what is refused here, or crashes on it later.
"""

import codecs
import json
import re
import stat
from datetime import datetime
from pathlib import Path
from typing import Any

from rolecall.domain import Effect
from rolecall.policy.model import read_model
from rolecall.policy.parsed import (
    CONDITIONS_FILE,
    FILE_NAMES,
    NO_FILES,
    POLICY_FILE,
    TEST_FILE,
    Inheritance,
    ParsedPolicy,
    PolicyFiles,
    PolicyTestCase,
    Rule,
    Severity,
    lines_of,
)
from rolecall.policy.spreadsheet import bare, find_other_separator, is_quoted_comment
from rolecall.policy.syntax import (
    CONDITION,
    MAX_ACTION,
    NAME,
    RESOURCE,
    ROLE,
    has_dot_segment,
    value_problem,
    value_warning,
)

__all__ = ["CASES_HEADER", "parse", "read", "read_files", "read_values"]

# A person's address where a role belongs, perhaps as a subject is written.
_ADDRESS = re.compile(r"(?:user:)?([^\s@:\"'`]+@[^\s@:\"'`]+)")
_QUOTED_COMMA = re.compile(r'"[^"]*,[^"]*"')
# Maximum characters of a row that a finding repeats.
MAX_SHOWN = 100

CASES_HEADER = "role,resource,action,expected,note"
# A note may hold commas if it is quoted; the context is the rest of the row.
_NOTE_AND_CONTEXT = re.compile(r'( *"(?:[^"]|"")*" *|[^,]*),?(.*)')
# Keys of a context: the variable that each is, and its type in JSON.
_VALUE_KEYS: dict[str, tuple[str, type]] = {
    "context": ("context", dict),
    "subject_properties": ("subject.properties", dict),
    "resource_properties": ("resource.properties", dict),
    "action_properties": ("action.properties", dict),
    "scope": ("scope", str),
    "time": ("time", str),
    "subject_id": ("subject.id", str),
    "subject_email": ("subject.email", str),
    "subject_kind": ("subject.kind", str),
}

MAX_FILE_BYTES = 64 * 1024 * 1024
# Fast path: rows that are well-formed without further checks.
_ROW = re.compile(rf" *p *, *({ROLE}) *, *({RESOURCE}) *, *({NAME}|\*) *, *(allow|deny) *(?:, *({CONDITION}) *)?")


def read(folder: Path) -> ParsedPolicy:
    """Read the files of `folder`. Never raises because of their contents."""
    parsed = ParsedPolicy()
    return parse(read_files(folder, parsed), parsed)


def read_files(folder: Path, parsed: ParsedPolicy) -> PolicyFiles:
    """Read the texts of the files of `folder`; those that can't be read are empty, with a finding in `parsed`."""
    if not _is_folder(folder):
        fix = (
            "Name the folder with model.conf, policy.csv and policy_test.csv (ROLECALL_POLICY, --policy), or create it:"
            " `rolecall policy new`."
        )
        parsed.add("", 0, 0, "The policy folder doesn't exist, or is not a folder.", fix)
        return NO_FILES
    return PolicyFiles.cleaned(*(_text(folder, name, parsed) for name in FILE_NAMES))


def parse(files: PolicyFiles, parsed: ParsedPolicy) -> ParsedPolicy:
    """Parse the texts into `parsed`, and return it. An empty text is left out."""
    parsed.files = files
    if files.model:
        read_model(files.model, parsed)
    if files.conditions:
        # A policy without conditions doesn't load PyYAML.
        from rolecall.policy.conditions import read_conditions  # noqa: PLC0415

        read_conditions(files.conditions, parsed)
    if files.policy:
        _read_policy(files.policy, parsed)
    if files.tests:
        _read_cases(files.tests, parsed)
    return parsed


def _is_folder(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except (OSError, ValueError):
        return False


def _text(folder: Path, name: str, parsed: ParsedPolicy) -> str:
    """Read one file as it is, without a byte order mark; empty, with a finding, if it can't be read."""
    path = folder / name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            parsed.add(name, 0, 0, f"{name} is not a regular file.", "Make it a file, or a link to one.")
            return ""
        if status.st_size > MAX_FILE_BYTES:
            parsed.add(name, 0, 0, f"The file is larger than {MAX_FILE_BYTES} bytes.", "Split it, or drop rules.")
            return ""
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        if name == CONDITIONS_FILE:
            return ""
        fix = "Create it in the policy folder"
        if name == TEST_FILE:
            fix += "; `rolecall policy matrix --format test` writes one from the present policy"
        parsed.add(name, 0, 0, f"The policy folder has no {name}.", f"{fix}.")
        return ""
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its path is not valid"
        parsed.add(name, 0, 0, f"{name} can't be read: {why}.", "Make it a file that this user may read.")
        return ""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:2]:
        fix = "Save it as UTF-8; in a spreadsheet, as `CSV UTF-8 (comma delimited)`."
        parsed.add(name, 0, 0, "The file is UTF-16, as spreadsheets write `Unicode Text`.", fix)
        return ""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        fix = "Save the file as UTF-8; in a spreadsheet, as `CSV UTF-8 (comma delimited)`."
        parsed.add(name, line, column, f"Byte 0x{raw[error.start]:02x} is not UTF-8.", fix)
        return ""
    if not text.strip():
        fix = "Restore it: an empty policy could be a truncated one."
        if name == CONDITIONS_FILE:
            fix = "Restore it; delete it if no rule has a condition."
        parsed.add(name, 0, 0, "The file is empty.", fix)
        return ""
    return text


def _read_policy(text: str, parsed: ParsedPolicy) -> None:
    """Parse the rows: well-formed `p` rows by one pattern, which is fast, all others by `_read_row`."""
    if separator := find_other_separator(text):
        parsed.add(POLICY_FILE, *separator)
        return
    interned: dict[str, str] = {}
    effects = {effect.value: effect for effect in Effect}
    rules = parsed.rules
    for number, line in lines_of(text, POLICY_FILE, parsed):
        match = _ROW.fullmatch(line)
        if match is None or len(line) > MAX_ACTION or not line.isascii() or has_dot_segment(match[2]):
            _read_row(number, line, parsed)
            continue
        role, resource, action, effect, condition = match.groups("")
        if condition and not parsed.has_condition_column:
            _read_row(number, line, parsed)
            continue
        role, action = interned.setdefault(role, role), interned.setdefault(action, action)
        rules.append(Rule(role, resource, action, effects[effect], number, interned.setdefault(condition, condition)))
    if not rules and not any(finding.file == POLICY_FILE for finding in parsed.errors):
        parsed.add(
            POLICY_FILE, 0, 0, "The policy has no rule.", "Restore it: an empty policy could be a truncated one."
        )


def _read_row(number: int, line: str, parsed: ParsedPolicy) -> None:
    """Parse one row that the fast pattern didn't match, or add findings about it."""
    if quoting := _quoting_problem(line):
        parsed.add(POLICY_FILE, number, *quoting)
        return
    cells = line.split(",")
    starts = [len(",".join(cells[:i])) + bool(i) for i in range(len(cells))]
    columns = [start + len(cell) - len(cell.lstrip(" ")) + 1 for start, cell in zip(starts, cells, strict=True)]
    values = [cell.strip(" ") for cell in cells]
    rule = ("role", "resource", "action", "effect")
    kinds: tuple[str, ...] | None = {"p": rule, "g": ("role", "role")}.get(values[0])
    if values[0] == "p" and len(values) == 6 and parsed.has_condition_column:
        kinds = (*rule, "condition")
    if kinds is None:
        message = f"The row type `{values[0]}` is unknown, and Casbin would drop the row."
        fix = "Begin the row with `p` (a rule) or `g` (inheritance)."
        if values[0].startswith(("p ", "g ")) or ";" in line:
            fix = "Separate the values by commas: `p, ROLE, resource, action, allow`."
        parsed.add(POLICY_FILE, number, columns[0], message, fix)
        return
    problems = []
    for kind, value, column in zip(kinds, values[1:], columns[1:], strict=False):
        if kind == "effect":
            if value not in ("allow", "deny"):
                message = f"The effect `{value}` is unknown, and Casbin would ignore the row."
                fix = "Write `allow` or `deny`, in lower case."
                problems.append((column, message, "Put the comment on a line of its own." if "#" in value else fix))
        elif kind == "role" and (address := _ADDRESS.fullmatch(value)):
            other = values[3 - values.index(value)] if values[0] == "g" and len(values) == 3 else "ROLE"
            message = f"`{value}` is a person's address, and people don't stand in policy files."
            fix = f"Delete the row; give the member a role: `rolecall members set-role {address[1]} {other}`."
            problems.append((column, message, fix))
        elif problem := value_problem(kind, value):
            problems.append((column, *problem))
        elif warning := value_warning(kind, value):
            parsed.add(POLICY_FILE, number, column, *warning, Severity.WARNING)
    if len(values) != len(kinds) + 1:
        example = "p, ROLE, resource, action, allow" if values[0] == "p" else "g, ROLE, PARENT"
        message = f"A `{values[0]}` row has {len(kinds)} values, this one {len(values) - 1}."
        column = columns[len(kinds) + 1] if len(values) > len(kinds) + 1 else len(line) + 1
        fix = f"Write `{example}`; a value can't hold a comma."
        if values[0] == "p" and len(values) == 4:
            fix = "Add the effect: `, allow` or `, deny`."
        elif values[0] == "p" and len(values) == 6:
            fix = f"Write `{example}`; a condition at the end needs the model with conditions (docs/policy.md)."
        problems = [(column, message, fix)]
    for column, message, fix in problems:
        parsed.add(POLICY_FILE, number, column, message, fix)
    if problems:
        return
    if values[0] == "g":
        parsed.inheritances.append(Inheritance(values[1], values[2], number))
    else:
        parsed.rules.append(Rule(values[1], values[2], values[3], Effect(values[4]), number, "".join(values[5:])))


def _quoting_problem(line: str) -> tuple[int, str, str] | None:
    """Return the column of a quoted value that is none of the policy's, what it is, and its fix; None without one."""
    if line.count('"') % 2:
        fix = "Close it in the same line. A text of several lines goes into comments, each line beginning with `#`."
        return line.rindex('"') + 1, "The quote isn't closed in this line, and Casbin reads the next one as a row.", fix
    if held := _QUOTED_COMMA.search(line):
        message = f"The quoted value {_shortened(held[0])} holds a comma, at which Casbin would split it."
        return held.start() + 1, message, "Put each value into a cell of its own; a value can't hold a comma."
    return None


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def read_values(text: str) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """Read the values of a test's conditions, or of one question: a JSON object, perhaps quoted as a CSV cell.

    Returns the problem and its fix besides, if there is one.
    """
    text = text.strip(" ,")
    if text.startswith('"') and text.endswith('"'):
        text = text[1:-1].replace('""', '"')
    if not text:
        return {}, None
    fix = 'Write a JSON object, as in `{"context": {"ip": "192.0.2.7"}, "time": "2026-01-31T09:00:00Z"}`.'
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return {}, ("The context is no JSON.", fix)
    if not isinstance(given, dict):
        return {}, ("The context is no JSON object.", fix)
    values: dict[str, Any] = {}
    for key, value in given.items():
        name, kind = _VALUE_KEYS.get(key, ("", object))
        if not name:
            return {}, (f"The context has a key `{key}`.", f"The keys are {', '.join(_VALUE_KEYS)}.")
        if not isinstance(value, kind):
            return {}, (f"`{key}` is no {'object' if kind is dict else 'text'}.", fix)
        values[name] = value
    if "time" in values:
        try:
            time = datetime.fromisoformat(values["time"])
        except ValueError:
            time = datetime.min  # noqa: DTZ901 - as a time without a zone, refused below
        if time.tzinfo is None:
            return {}, (f"`{given['time']}` is no time.", "Write it as `2026-01-31T09:00:00Z`.")
        values["time"] = time
    return values, None


def _read_cases(text: str, parsed: ParsedPolicy) -> None:
    """Parse policy_test.csv; its first row must be the header."""
    if separator := find_other_separator(text):
        parsed.add(TEST_FILE, *separator)
        return
    header = CASES_HEADER
    lines = lines_of(text, TEST_FILE, parsed)
    rows = [(number, line) for number, line in lines if line.strip(' ,"') and not is_quoted_comment(line)]
    number, line = rows[0] if rows else (0, "")
    columns = ",".join(map(bare, line.rstrip(" ,").split(",")))
    has_context = columns == f"{header},context"
    if columns != header and not has_context:
        found = f"it reads `{_shortened(line.strip())}`" if rows else "there is none"
        message = f"The first row is not the header: {found}."
        parsed.add(TEST_FILE, number, 1, message, f"Begin the file with `{header}`.")
        return
    if has_context:
        header = columns
    for number, line in rows[1:]:
        cells = [bare(cell) for cell in line.split(",", 4)]
        if len(cells) < 4:
            message = f"A test has at least 4 values, this row {len(cells)}."
            parsed.add(TEST_FILE, number, len(line) + 1, message, f"Write `{header}`.")
        elif cells[3] not in ("allow", "deny"):
            column = len(",".join(line.split(",")[:3])) + 2
            message = f"`{cells[3]}` is not a decision."
            parsed.add(TEST_FILE, number, column, message, "Expect `allow` or `deny`, in lower case.")
        else:
            rest = line.split(",", 4)[4] if len(cells) == 5 else ""
            note, text = _NOTE_AND_CONTEXT.fullmatch(rest).groups() if has_context else (rest, "")  # type: ignore[union-attr]
            values, problem = read_values(text)
            if problem:
                column = len(line) - len(text.lstrip()) + 1
                parsed.add(TEST_FILE, number, column, *problem)
                continue
            note = bare(note.rstrip(" ,"))
            parsed.cases.append(PolicyTestCase(cells[0], cells[1], cells[2], Effect(cells[3]), note, number, values))
    if len(rows) == 1:
        parsed.add(TEST_FILE, 0, 0, "The file has no test.", "Add rows that say what each role may and may not do.")
