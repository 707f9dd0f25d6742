"""Strict reading of a policy folder: every row becomes a rule, or a finding with its place and its fix.

Casbin itself drops, bends or crashes on most of what is refused here without saying so.
"""

import hashlib
import re
from pathlib import Path

from rolecall.domain import Effect
from rolecall.policy.model import read_model
from rolecall.policy.source import (
    MODEL_FILE,
    POLICY_FILE,
    TEST_FILE,
    GoldenCase,
    Inheritance,
    Rule,
    Source,
    lines_of,
)

__all__ = ["read", "word_problem"]

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_ACTION = 256
MAX_RESOURCE = 1024
MAX_ROLE = 64

# A word holds no space, comma, quote, bracket, `#`, `*`, `/` or backslash: Casbin splits at those, swallows or keeps
# them silently.
_WORD = r"[^\s,\"'`()\[\]{}#*/\\]+"
_ROLE = rf"[A-Za-z][A-Za-z0-9_.-]{{0,{MAX_ROLE - 1}}}"
_RESOURCE = rf"(?:{_WORD}(?:/{_WORD})*(?:/?\*)?|\*)"
_ROW = re.compile(rf" *p *, *({_ROLE}) *, *({_RESOURCE}) *, *({_WORD}|\*) *, *(allow|deny) *")
_ROLE_FULL = re.compile(_ROLE)
_RESOURCE_FULL = re.compile(_RESOURCE)
_ACTION_FULL = re.compile(rf"{_WORD}|\*")
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")
_FORBIDDEN = re.compile(r"[\s,\"'`()\[\]{}#\\]")


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
        read_model(texts[MODEL_FILE], source)
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
            f"The {kind} `{text}` holds {bad.group()!r}, which Casbin keeps, splits at or swallows.",
            "Write it bare: no quotes, brackets, spaces, backslashes or `#`; a comment needs its own line.",
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


def _read_policy(text: str, source: Source) -> None:
    """Turn the rows into rules; the fast pattern takes well-formed `p` rows, the rest is looked at closely."""
    words: dict[str, str] = {}
    effects = {effect.value: effect for effect in Effect}
    rules = source.rules
    for number, line in lines_of(text, POLICY_FILE, source):
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
    rows = lines_of(text, TEST_FILE, source)
    if not rows or rows[0][1].replace(" ", "") != header:
        source.add(
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
