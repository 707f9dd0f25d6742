"""Strict parser of a policy folder: every row becomes a rule, or a finding with its place and its fix.

Casbin itself silently drops or changes most of what is refused here, or crashes on it later.
"""

import re
import stat
from pathlib import Path

from rolecall.domain import Effect
from rolecall.policy.model import read_model
from rolecall.policy.parsed import (
    MODEL_FILE,
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
from rolecall.policy.syntax import MAX_ACTION, NAME, RESOURCE, ROLE, has_dot_segment, value_problem, value_warning

__all__ = ["parse", "read", "read_files"]

MAX_FILE_BYTES = 64 * 1024 * 1024
# Fast path: rows that are well-formed without further checks.
_ROW = re.compile(rf" *p *, *({ROLE}) *, *({RESOURCE}) *, *({NAME}|\*) *, *(allow|deny) *")
# The byte order mark, which Casbin reads as a part of the first rule.
_BOM = b"\xef\xbb\xbf"


def read(folder: Path) -> ParsedPolicy:
    """Read model.conf, policy.csv and policy_test.csv of `folder`. Never raises because of their contents."""
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
    return PolicyFiles(*(_text(folder, name, parsed) for name in (MODEL_FILE, POLICY_FILE, TEST_FILE)))


def parse(files: PolicyFiles, parsed: ParsedPolicy) -> ParsedPolicy:
    """Parse the texts into `parsed`, and return it. An empty text is left out."""
    parsed.files = files
    if files.model:
        read_model(files.model, parsed)
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
    """Read one file, with LF line ends and no byte order mark; empty, with a finding, if it can't be read."""
    path = folder / name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            parsed.add(name, 0, 0, f"{name} is not a regular file.", "Make it a file, or a link to one.")
            return ""
        if status.st_size > MAX_FILE_BYTES:
            parsed.add(name, 0, 0, f"The file is larger than {MAX_FILE_BYTES} bytes.", "Split it, or drop rules.")
            return ""
        raw = path.read_bytes().removeprefix(_BOM)
    except FileNotFoundError:
        fix = "Create it in the policy folder"
        if name == TEST_FILE:
            fix += "; `rolecall policy matrix --format test` writes one from the present policy"
        parsed.add(name, 0, 0, f"The policy folder has no {name}.", f"{fix}.")
        return ""
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its path is not valid"
        parsed.add(name, 0, 0, f"{name} can't be read: {why}.", "Make it a file that this user may read.")
        return ""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        parsed.add(name, line, column, f"Byte 0x{raw[error.start]:02x} is not UTF-8.", "Save the file as UTF-8.")
        return ""
    text = text.replace("\r\n", "\n")
    if not text.strip():
        parsed.add(name, 0, 0, "The file is empty.", "Restore it: an empty policy could be a truncated one.")
        return ""
    return text


def _read_policy(text: str, parsed: ParsedPolicy) -> None:
    """Parse the rows: well-formed `p` rows by one pattern, which is fast, all others by `_read_row`."""
    interned: dict[str, str] = {}
    effects = {effect.value: effect for effect in Effect}
    rules = parsed.rules
    for number, line in lines_of(text, POLICY_FILE, parsed):
        match = _ROW.fullmatch(line)
        if match is None or len(line) > MAX_ACTION or not line.isascii() or has_dot_segment(match[2]):
            _read_row(number, line, parsed)
            continue
        role, resource, action, effect = match.groups()
        rules.append(
            Rule(
                interned.setdefault(role, role), resource, interned.setdefault(action, action), effects[effect], number
            )
        )
    if not rules and not any(finding.file == POLICY_FILE for finding in parsed.errors):
        parsed.add(
            POLICY_FILE, 0, 0, "The policy has no rule.", "Restore it: an empty policy could be a truncated one."
        )


def _read_row(number: int, line: str, parsed: ParsedPolicy) -> None:
    """Parse one row that the fast pattern didn't match, or add findings about it."""
    cells = line.split(",")
    starts = [len(",".join(cells[:i])) + bool(i) for i in range(len(cells))]
    columns = [start + len(cell) - len(cell.lstrip(" ")) + 1 for start, cell in zip(starts, cells, strict=True)]
    values = [cell.strip(" ") for cell in cells]
    kinds = {"p": ("role", "resource", "action", "effect"), "g": ("role", "role")}.get(values[0])
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
        problems = [(column, message, fix)]
    for column, message, fix in problems:
        parsed.add(POLICY_FILE, number, column, message, fix)
    if problems:
        return
    if values[0] == "g":
        parsed.inheritances.append(Inheritance(values[1], values[2], number))
    else:
        parsed.rules.append(Rule(values[1], values[2], values[3], Effect(values[4]), number))


def _read_cases(text: str, parsed: ParsedPolicy) -> None:
    """Parse policy_test.csv; its first row must be the header."""
    header = "role,resource,action,expected,note"
    rows = lines_of(text, TEST_FILE, parsed)
    if not rows or rows[0][1].replace(" ", "") != header:
        parsed.add(
            TEST_FILE,
            rows[0][0] if rows else 0,
            1,
            "The first row is not the header.",
            f"Begin the file with `{header}`.",
        )
        return
    for number, line in rows[1:]:
        cells = [cell.strip() for cell in line.split(",", 4)]
        if len(cells) < 4:
            message = f"A test has at least 4 values, this row {len(cells)}."
            parsed.add(TEST_FILE, number, len(line) + 1, message, f"Write `{header}`.")
        elif cells[3] not in ("allow", "deny"):
            column = len(",".join(line.split(",")[:3])) + 2
            message = f"`{cells[3]}` is not a decision."
            parsed.add(TEST_FILE, number, column, message, "Expect `allow` or `deny`, in lower case.")
        else:
            note = cells[4] if len(cells) == 5 else ""
            parsed.cases.append(PolicyTestCase(cells[0], cells[1], cells[2], Effect(cells[3]), note, number))
    if len(rows) == 1:
        parsed.add(TEST_FILE, 0, 0, "The file has no test.", "Add rows that say what each role may and may not do.")
