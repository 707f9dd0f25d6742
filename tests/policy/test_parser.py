"""Everything wrong with a policy folder is found at its file, line and column, with what to do about it."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolecall.domain import Effect, Permission
from rolecall.policy import Build, Finding, Rule, Severity, build, read_and_index, request_problem
from rolecall.policy.parser import MAX_FILE_BYTES
from rolecall.policy.syntax import value_problem
from support.policy_folders import CASES, HEADER, MODEL, OWNER_ROW, write_folder

NAMES = ("model.conf", "policy.csv", "policy_test.csv")


def _build(
    folder: Path, policy: str | bytes = OWNER_ROW, cases: str | bytes = CASES, model: str | bytes = MODEL
) -> Build:
    return build(write_folder(folder, policy, cases, model), 0.0)


def _place(finding: Finding) -> tuple[str, int, int]:
    return finding.file, finding.line, finding.column


def _places(result: Build) -> list[tuple[str, int, int]]:
    return [_place(finding) for finding in result.errors]


# Files


def test_good_folder_has_no_finding(tmp_path: Path) -> None:
    """The folder that the other tests break is a good one."""
    result = _build(tmp_path)

    assert result.findings == ()
    assert result.policy is not None


def test_missing_folder_is_one_finding(tmp_path: Path) -> None:
    """A missing folder is one finding: which folder is missing, and how to name another."""
    result = build(tmp_path / "nowhere", 0.0)

    assert result.policy is None
    assert _places(result) == [("", 0, 0)]
    assert "ROLECALL_POLICY" in result.errors[0].fix
    assert result.version == ""


@pytest.mark.parametrize("name", NAMES)
def test_missing_file_is_named(name: str, tmp_path: Path) -> None:
    """One missing file is one finding; for the tests it names the command that writes them."""
    write_folder(tmp_path)
    (tmp_path / name).unlink()

    result = build(tmp_path, 0.0)

    assert _places(result) == [(name, 0, 0)]
    assert ("rolecall policy matrix" in result.errors[0].fix) is (name == "policy_test.csv")


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, _device], ids=["directory", "FIFO", "device"])
def test_special_file_is_not_read(make: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    """Anything but a regular file is refused at once: reading it could block, or never end."""
    write_folder(tmp_path)
    (tmp_path / name).unlink()
    make(tmp_path / name)

    result = build(tmp_path, 0.0)

    assert _places(result) == [(name, 0, 0)]
    assert "is not a regular file" in result.errors[0].message


@pytest.mark.parametrize("name", NAMES)
def test_file_that_cannot_be_opened_says_why(name: str, tmp_path: Path) -> None:
    """A file that can't be opened, here a link to itself, is refused with the system's reason."""
    write_folder(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(name)

    result = build(tmp_path, 0.0)

    assert _places(result) == [(name, 0, 0)]
    assert os.strerror(errno.ELOOP) in result.errors[0].message


@pytest.mark.parametrize("name", ["policies\0", "x" * 5000])
def test_impossible_path_is_no_folder(name: str) -> None:
    """A folder name that can't be is a finding, and no exception."""
    result = build(Path(name), 0.0)

    assert result.policy is None
    assert len(result.errors) == 1


def test_file_in_place_of_the_folder_cannot_be_read(tmp_path: Path) -> None:
    """A path that names a file, not a folder, is refused."""
    path = tmp_path / "policy"
    path.write_text(OWNER_ROW)

    result = build(path, 0.0)

    assert _places(result) == [("", 0, 0)]
    assert "is not a folder" in result.errors[0].message


@pytest.mark.parametrize("end", ["\r", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_hidden_line_end_hides_no_rule(end: str, tmp_path: Path) -> None:
    """A line end that an editor shows, behind a comment, is refused where Casbin sees no such line."""
    write_folder(tmp_path)
    with (tmp_path / "policy.csv").open("a", newline="", encoding="utf-8") as file:
        file.write(f"# a note{end}p, TOP, secrets, view, deny\n")

    result = build(tmp_path, 0.0)

    assert result.policy is None
    assert [f"U+{ord(end):04X}" in error.message for error in result.errors] == [True]


def test_findings_are_bounded(tmp_path: Path) -> None:
    """A file that is broken from end to end gives a thousand findings, each of a readable length."""
    write_folder(tmp_path)
    (tmp_path / "policy.csv").write_text("x" * 100_000 + "\n" + "x\n" * 5000)

    result = build(tmp_path, 0.0)

    assert len(result.errors) == 1000
    assert "more findings" in result.errors[-1].message
    assert max(len(str(error)) for error in result.errors) < 1000


def test_many_warnings_hide_no_error(tmp_path: Path) -> None:
    """An error keeps the policy out, however many warnings precede it."""
    write_folder(tmp_path)
    with (tmp_path / "policy.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"p, TOP, größe{i}, view, allow\n" for i in range(1500))
        file.write("p, TOP, last, view, DENY\n")

    result = build(tmp_path, 0.0)

    assert result.policy is None
    assert any("DENY" in error.message for error in result.errors)


def test_mistyped_name_is_a_warning(tmp_path: Path) -> None:
    """A role, resource or action that occurs once and looks like a frequent one is served, with a warning."""
    write_folder(tmp_path)
    with (tmp_path / "policy.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"p, VIEWER, secrets/{i}, view, allow\n" for i in range(3))
        file.write("p, VIEWR, secrts, veiw, allow\n")

    result = build(tmp_path, 0.0)

    warned = [finding.message for finding in result.findings if finding.severity is Severity.WARNING]
    assert result.policy is not None
    for word in ("`VIEWER`", "`secrets`"):
        assert any(word in message and "is similar to" in message for message in warned)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf", b"\r\n"], ids=["empty", "blank", "mark", "CRLF"])
def test_empty_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    """An empty file could be a truncated one, so it is refused, whichever it is."""
    write_folder(tmp_path)
    (tmp_path / name).write_bytes(content)

    result = build(tmp_path, 0.0)

    assert _places(result) == [(name, 0, 0)]
    assert result.errors[0].message == "The file is empty."


def test_very_large_file_is_refused_unread(tmp_path: Path) -> None:
    """A file beyond the limit is refused by its size."""
    write_folder(tmp_path)
    os.truncate(tmp_path / "policy.csv", MAX_FILE_BYTES + 1)

    result = build(tmp_path, 0.0)

    assert _places(result) == [("policy.csv", 0, 0)]
    assert str(MAX_FILE_BYTES) in result.errors[0].message


@pytest.mark.parametrize("name", NAMES)
def test_byte_that_is_not_utf8_is_found_in_its_line(name: str, tmp_path: Path) -> None:
    """Bytes of another encoding are found at line and column, in any of the files."""
    write_folder(tmp_path)
    with (tmp_path / name).open("ab") as file:
        file.write(b"# caf\xe9\n")
    last = (tmp_path / name).read_bytes().count(b"\n")

    result = build(tmp_path, 0.0)

    assert _places(result) == [(name, last, 6)]
    assert "0xe9" in result.errors[0].message


def test_byte_that_is_not_utf8_is_found_behind_a_byte_order_mark(tmp_path: Path) -> None:
    """A byte order mark doesn't shift the place of a bad byte."""
    result = _build(tmp_path, b"\xef\xbb\xbf" + OWNER_ROW.encode() + b"p, A, caf\xe9, read, allow\n")

    assert _places(result) == [("policy.csv", 2, 10)]
    assert "0xe9" in result.errors[0].message


def test_byte_order_mark_and_crlf_are_simply_read(tmp_path: Path) -> None:
    """Files as Windows editors write them give the same policy and the same version."""
    rows = f"{OWNER_ROW}p, A, docs, read, allow\n"
    plain = _build(tmp_path / "plain", rows)
    dressed = [b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() for text in (rows, CASES, MODEL)]

    result = _build(tmp_path / "dressed", dressed[0], dressed[1], dressed[2])

    assert result.findings == ()
    assert result.policy is not None
    assert plain.policy is not None
    assert result.policy.rules == plain.policy.rules
    assert result.version == plain.version


def test_rows_of_a_spreadsheet_are_simply_read(tmp_path: Path) -> None:
    """Quoted values and comments, padding and empty rows give the same policy, and the lines stay."""
    rows = '"# TOP, the ""top"" role",,,,,\n,,,,,\n"p","TOP","owners","update","allow",\np,A,docs,"read",allow,,\n'
    rows += 'g,B,A,,,\n" p "," B ","files","view","deny"\n# a plain comment,,,\n'
    cases = '"role","resource","action","expected","note",,\n,,,,,,\n"TOP","owners","update","allow","yes, it may",,\n'
    cases += '"# B, too",,,,,,\nB,docs,read,allow,,,\n'

    result = _build(tmp_path, rows, cases)

    assert result.findings == ()
    assert result.policy is not None
    assert result.policy.rules == (
        Rule("TOP", "owners", "update", Effect.ALLOW, 3),
        Rule("A", "docs", "read", Effect.ALLOW, 4),
        Rule("B", "files", "view", Effect.DENY, 6),
    )
    assert result.policy.chain("B", "A") == ("B", "A")
    assert result.tests == 2
    assert '"' not in result.files.policy.split("\n", 1)[1]


@pytest.mark.parametrize(
    ("separator", "message", "fix"),
    [(";", "separated by semicolons", "comma"), ("\t", "separated by tabs", "CSV UTF-8")],
)
@pytest.mark.parametrize("quote", ["", '"'])
def test_another_separator_is_one_finding(separator: str, message: str, fix: str, quote: str, tmp_path: Path) -> None:
    """A sheet that was exported with another separator is told so once, and not for each row."""
    values = [["p", "TOP", "owners", "update", "allow"], *([["p", "A", "docs", "read", "allow"]] * 50)]
    rows = "\n".join(separator.join(f"{quote}{value}{quote}" for value in row) for row in values)

    result = _build(tmp_path, f"# a comment\n\n{rows}\n")

    assert _places(result) == [("policy.csv", 3, 2 + 2 * len(quote))]
    assert message in result.errors[0].message
    assert fix in result.errors[0].fix


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(name: str, encoding: str, tmp_path: Path) -> None:
    """A file of UTF-16, with or without a byte order mark, is called that, with the export that helps."""
    path = write_folder(tmp_path) / name
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))

    result = build(tmp_path, 0.0)

    assert _places(result) == [(name, 0, 0)]
    assert "UTF-16" in result.errors[0].message
    assert "CSV UTF-8" in result.errors[0].fix


def test_spacing_comments_and_missing_last_newline_do_not_matter(tmp_path: Path) -> None:
    """Rows may be indented, packed or spread, between comments of any letters and empty lines."""
    comments = "  # ünïcode \t \u200b comment\n\n#,,(\n"
    text = f"{comments}p,A,docs,read,allow\n   p ,  TOP,owners ,update,   allow  \n \np, B, *, *, deny"

    result = _build(tmp_path, text)

    assert result.findings == ()
    assert result.policy is not None
    assert result.policy.rules == (
        Rule("A", "docs", "read", Effect.ALLOW, 4),
        Rule("TOP", "owners", "update", Effect.ALLOW, 5),
        Rule("B", "*", "*", Effect.DENY, 7),
    )


def test_version_is_of_model_and_policy_alone(tmp_path: Path) -> None:
    """The version changes with every letter of the policy, not with its tests."""
    versions = [
        _build(tmp_path).version,
        _build(tmp_path, cases=CASES + "TOP,docs,read,deny,\n").version,
        _build(tmp_path, OWNER_ROW + "# a comment\n").version,
        _build(tmp_path, model=MODEL + "# a comment\n").version,
    ]

    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


def test_finding_prints_as_compilers_do(tmp_path: Path) -> None:
    """A finding is one line that editors can jump from."""
    result = _build(tmp_path, f"{OWNER_ROW}p, A, docs, read, Allow\n")

    assert len(result.findings) == 1
    assert str(result.findings[0]) == (
        "policy.csv:2:19: error: The effect `Allow` is unknown, and Casbin would ignore the row. "
        "Fix: Write `allow` or `deny`, in lower case."
    )


def test_every_error_of_all_files_is_reported_at_once(tmp_path: Path) -> None:
    """One reading finds what is wrong in all three files and every row."""
    result = _build(
        tmp_path,
        "p, A, docs, vi*, allowed\nq, A\np, A, docs, read, allow\n",
        f"{HEADER}A,docs\nA,docs,read,maybe,\n",
        MODEL.replace("g = _, _", "g = _, _, _"),
    )

    assert _places(result) == [
        ("model.conf", 11, 5),
        ("policy.csv", 1, 13),
        ("policy.csv", 1, 18),
        ("policy.csv", 2, 1),
        ("policy_test.csv", 2, 7),
        ("policy_test.csv", 3, 13),
    ]


@pytest.mark.parametrize("cases", [f"{HEADER}TOP,owners,update,deny,\n", "nonsense\n", "", CASES])
def test_folder_with_failing_tests_is_indexed(cases: str, tmp_path: Path) -> None:
    """The index of a folder needs no expectation to be met, so that a tool can show what the policy says now."""
    source, policy = read_and_index(write_folder(tmp_path, cases=cases))

    assert policy is not None
    assert all(error.file == "policy_test.csv" for error in source.errors)


def test_folder_with_an_error_in_a_rule_is_not_indexed(tmp_path: Path) -> None:
    """Where a row is wrong there is no index, only the findings."""
    source, policy = read_and_index(write_folder(tmp_path, f"{OWNER_ROW}p, A, docs, read, Allow\n"))

    assert policy is None
    assert [error.line for error in source.errors] == [2]


# The model


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(" = ", "="),
        lambda text: text.replace(" && ", "   &&   ").replace(", ", ","),
        lambda text: text.replace("(r.obj, p.obj)", "( r.obj , p . obj )").replace("!some", "! some"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: "\n".join(f"  {line}  " for line in text.split("\n")),
        lambda text: "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#")),
        lambda text: "\n".join(reversed(text.replace("]\n", "] ").split("\n"))).replace("] ", "]\n"),
    ],
    ids=["no spaces", "more spaces", "around signs", "empty lines", "indented", "no comments", "other order"],
)
def test_model_is_accepted_up_to_spacing(change: Callable[[str], str], tmp_path: Path) -> None:
    """The served model may be spaced and ordered freely."""
    result = _build(tmp_path, model=change(MODEL))

    assert result.findings == ()


MODEL_DIFFERENCES = [
    ("r = sub, obj, act\n", "r = sub, dom, obj, act\n", 5, 5, "says `r = sub, dom, obj, act`"),
    ("p = sub, obj, act, eft", "p = sub, obj, act", 8, 5, "says `p = sub, obj, act`"),
    ("g = _, _", "g = _, _, _", 11, 5, "says `g = _, _, _`"),
    ("g = _, _", "g = _, _\ng2 = _, _", 12, 1, "`g2` is not part of [role_definition]"),
    ("some(where (p.eft == allow)) && ", "", 14, 5, "says `e = !some(where (p.eft == deny))`"),
    (" && !some(where (p.eft == deny))", "", 14, 5, "says `e = some(where (p.eft == allow))`"),
    ("(keyMatch(r.obj, p.obj) ||", "(regexMatch(r.obj, p.obj) ||", 17, 5, "regexMatch"),
    ('"/*"', '"/ *"', 17, 5, '"/ *"'),
    ("r.act == p.act", "r.act == p.obj", 17, 5, "r.act == p.obj"),
    ("[matchers]", "[matcher]", 16, 1, "Section [matcher] is not part"),
    ("[matchers]\n", "", 16, 1, "`m` is not part of [policy_effect]"),
    ("[matchers]", "[constants]\nx = 1\n[matchers]", 16, 1, "Section [constants] is not part"),
    ("r = sub, obj, act\n", "r\n", 5, 2, "says `r = `"),
    ("r = sub, obj, act\n", "r = s ub, obj, act\n", 5, 5, "says `r = s ub, obj, act`"),
    ("r = sub, obj, act\n", "  r=  sub obj, act  \n", 5, 7, "says `r = sub obj, act`"),
    ("keyMatch(r.obj, p.obj) ||", "key Match(r.obj, p.obj) ||", 17, 5, "key Match"),
    ('p.act == "*"', 'p.act == "* "', 17, 5, '"* "'),
    ("[matchers]", "[ matchers ]", 16, 1, "Section [ matchers ] is not part"),
    ("g = _, _", "g = _, _\ng = _, _", 12, 1, "`g` of [role_definition] is defined twice"),
    ("[matchers]", "matchers", 16, 1, "`matchers` is not part of [policy_effect]"),
    ("e = some", "\te = some", 14, 1, "U+0009"),
]


@pytest.mark.parametrize(("old", "new", "line", "column", "message"), MODEL_DIFFERENCES)
def test_other_model_is_refused_where_it_differs(
    old: str, new: str, line: int, column: int, message: str, tmp_path: Path
) -> None:
    """Each difference from the served model is found at its place, and what to write is given."""
    assert old in MODEL

    result = _build(tmp_path, model=MODEL.replace(old, new))

    assert result.policy is None
    first = result.errors[0]
    assert _place(first) == ("model.conf", line, column)
    assert message in first.message
    assert first.fix


@pytest.mark.parametrize(
    ("lines", "missing"),
    [
        ("r = sub, obj, act\n", "`r` of [request_definition]"),
        ("[role_definition]\ng = _, _\n", "`g` of [role_definition]"),
    ],
)
def test_missing_part_of_the_model_is_named(lines: str, missing: str, tmp_path: Path) -> None:
    """A missing part of the model is named with the line to add."""
    result = _build(tmp_path, model=MODEL.replace(lines, ""))

    assert _places(result) == [("model.conf", 0, 0)]
    assert result.errors[0].message == f"{missing} is missing."
    assert result.errors[0].fix.startswith("Add `")


# Rows of the policy

LONG_ROLE = "R" * 65
LONG_RESOURCE = "d" * 1025
LONG_ACTION = "a" * 257

BAD_ROWS = [
    # row, column, part of the message, part of the fix
    ("p, A, docs, read", 17, "4 values, this one 3", "Add the effect"),
    ("p, A, docs, read, allow, x", 26, "4 values, this one 5", "p, ROLE, resource, action, allow"),
    ("p, A, docs, read, allow,,x,", 25, "4 values, this one 6", "can't hold a comma"),
    ("p", 2, "4 values, this one 0", "p, ROLE, resource, action, allow"),
    ("g, A", 5, "2 values, this one 1", "g, ROLE, PARENT"),
    ("g, A, B, acme", 10, "2 values, this one 3", "g, ROLE, PARENT"),
    ('p, A, "docs,files", read, allow', 7, '"docs,files" holds a comma', "can't hold a comma"),
    ('"p, A, docs, read, allow"', 1, "holds a comma", "a cell of its own"),
    ('p, A, "docs, read, allow', 7, "isn't closed", "in the same line"),
    ('"# a note', 1, "isn't closed", "each line beginning with `#`"),
    ("pp, A, docs, read, allow", 1, "`pp` is unknown", "Begin the row with `p`"),
    ("  P, A, docs, read, allow", 3, "`P` is unknown", "Begin the row with `p`"),
    ("policy, A, docs, read, allow", 1, "`policy` is unknown", "Begin the row with `p`"),
    ("g2, A, B", 1, "`g2` is unknown", "Begin the row with `p`"),
    (", A, docs, read, allow", 1, "`` is unknown", "Begin the row with `p`"),
    ("A docs read allow", 1, "`A docs read allow` is unknown", "Begin the row with `p`"),
    ('"pp", A, docs, read, allow', 2, "`pp` is unknown", "Begin the row with `p`"),
    ('"p","A","my docs","read","allow",,', 10, "`my docs` holds ' '", "spaces"),
    ("p, A, docs, read, DENY", 19, "`DENY` is unknown", "in lower case"),
    ("p, A, docs, read, Allow", 19, "`Allow` is unknown", "in lower case"),
    ("p, A, docs, read, ", 17, "4 values, this one 3", "Add the effect"),
    ("p, A, docs, read, allow # why", 19, "`allow # why` is unknown", "line of its own"),
    ("p TOP docs read allow", 1, "is unknown", "by commas"),
    ("p, , docs, read, allow", 4, "The role is empty.", "Name the role."),
    ("p, A,, read, allow", 6, "The resource is empty.", "Name the resource."),
    ("p, A, docs, , allow", 13, "The action is empty.", "Name the action."),
    ('p, A"A", docs, read, allow', 4, '`A"A"` holds', "no quotes"),
    ('p, """A""", docs, read, allow', 4, '`"""A"""` holds', "no quotes"),
    ("p, A, 'docs', read, allow", 7, "`'docs'` holds", "no quotes"),
    ("p, A, docs, `read`, allow", 13, "``read`` holds", "no quotes"),
    ("p, A, docs#1, read, allow", 7, "`docs#1` holds '#'", "a comment needs its own line"),
    ("p, A, docs(1), read, allow", 7, "`docs(1)` holds '('", "brackets"),
    ("p, A, docs[1, read, allow", 7, "`docs[1` holds '['", "brackets"),
    ("p, A, docs{1}, read, allow", 7, "`docs{1}` holds '{'", "brackets"),
    ("p, A, docs\\a, read, allow", 7, "holds '\\\\'", "backslashes"),
    ("p, A, my docs, read, allow", 7, "`my docs` holds ' '", "spaces"),
    ("p, A, docs, read it, allow", 13, "`read it` holds ' '", "spaces"),
    ("p, A, secrets/*/x, read, allow", 7, "`secrets/*/x` has a `*`", "Put `*` "),
    ("p, A, **, read, allow", 7, "`**` has a `*`", "Put `*` "),
    ("p, A, *docs, read, allow", 7, "`*docs` has a `*`", "Put `*` "),
    ("p, A, docs, vi*, allow", 13, "`vi*` has a `*`", "Put `*` "),
    ("p, A*, docs, read, allow", 4, "`A*` is not a valid name", "Start with a letter"),
    ("p, *, docs, read, allow", 4, "`*` is not a valid name", "Start with a letter"),
    ("p, ÄRZTE, docs, read, allow", 4, "`ÄRZTE` is not a valid name", "Start with a letter"),
    ("p, A, docs//x, read, allow", 7, "`docs//x` has an empty segment", "`type/id`"),
    ("p, A, /docs, read, allow", 7, "`/docs` has an empty segment", "`type/id`"),
    ("p, A, docs/, read, allow", 7, "`docs/` has an empty segment", "`type/id`"),
    ("p, A, docs//*, read, allow", 7, "`docs//*` has an empty segment", "`type/id`"),
    ("p, A, docs//x*, read, allow", 7, "`docs//x*` has an empty segment", "`type/id`"),
    ("p, A, /*, read, allow", 7, "`/*` has an empty segment", "`type/id`"),
    ("p, A, /, read, allow", 7, "`/` has an empty segment", "`type/id`"),
    ("p, A, docs/../x, read, allow", 7, "has a segment `.` or `..`", "without such segments"),
    ("p, A, docs/./x, read, allow", 7, "has a segment `.` or `..`", "without such segments"),
    ("p, A, .., read, allow", 7, "has a segment `.` or `..`", "without such segments"),
    ("p, A, ./docs, read, allow", 7, "has a segment `.` or `..`", "without such segments"),
    ("p, A, docs/.., read, allow", 7, "has a segment `.` or `..`", "without such segments"),
    ("p, A, docs/../*, read, allow", 7, "has a segment `.` or `..`", "without such segments"),
    ("p, A, docs, read/write, allow", 13, "`read/write` holds a slash", "one word"),
    ("p, 1A, docs, read, allow", 4, "`1A` is not a valid name", "Start with a letter"),
    ("p, A/B, docs, read, allow", 4, "`A/B` is not a valid name", "Start with a letter"),
    (
        "p, user:ann@acme.io, docs, read, allow",
        4,
        "is a person's address",
        "`rolecall members set-role ann@acme.io ROLE`",
    ),
    ("g, bob@acme.io, TOP", 4, "people don't stand", "`rolecall members set-role bob@acme.io TOP`"),
    ("g, TOP, bob@acme.io", 9, "people don't stand", "`rolecall members set-role bob@acme.io TOP`"),
    ('"g","bob@acme.io","TOP"', 6, "people don't stand", "`rolecall members set-role bob@acme.io TOP`"),
    ("g, bob@, TOP", 4, "`bob@` is not a valid name", "Start with a letter"),
    ("g, A, B!", 7, "`B!` is not a valid name", "Start with a letter"),
    ("g, , B", 4, "The role is empty.", "Name the role."),
    (f"p, {LONG_ROLE}, docs, read, allow", 4, "The role has 65 characters, more than 64.", "Shorten it."),
    (f"p, A, {LONG_RESOURCE}, read, allow", 7, "The resource has 1025 characters, more than 1024.", "Shorten it."),
    (f"p, A, docs, {LONG_ACTION}, allow", 13, "The action has 257 characters, more than 256.", "Shorten it."),
    ("p,\tA, docs, read, allow", 3, "U+0009", "plain space"),
    ("p, A, docs\x00, read, allow", 11, "U+0000", "Delete it"),
    ("p, A, do\u200bcs, read, deny", 9, "U+200B", "Delete it"),
    ("p, A, docs, read,\u00a0deny", 18, "U+00A0", "plain space"),
    ("p, A, docs, read, deny\u202e", 23, "U+202E", "Delete it"),
    ("\ufeffp, A, docs, read, deny", 1, "U+FEFF", "Delete it"),
    ("p, A, docs, read, allow\rp, B, docs, read, deny", 24, "U+000D", "LF or CRLF"),
    ("p, A, docs, read, allow\u2028p, B, docs, read, deny", 24, "U+2028", "LF or CRLF"),
]


@pytest.mark.parametrize(("row", "column", "message", "fix"), BAD_ROWS, ids=[repr(row[0][:40]) for row in BAD_ROWS])
def test_bad_row_is_found_at_its_column(row: str, column: int, message: str, fix: str, tmp_path: Path) -> None:
    """A row that Casbin would drop, bend or crash on is one error at the value that is wrong."""
    result = _build(tmp_path, f"{OWNER_ROW}\n# a comment\n{row}\n")

    assert result.policy is None
    assert _places(result) == [("policy.csv", 4, column)]
    assert message in result.errors[0].message
    assert fix in result.errors[0].fix


GOOD_ROWS = [
    "p, a.B_c-9, docs, read, allow",
    f"p, {LONG_ROLE[1:]}, docs, read, allow",
    f"p, A, {LONG_RESOURCE[1:]}, read, allow",
    f"p, A, {LONG_RESOURCE[2:]}*, read, allow",
    f"p, A, docs, {LONG_ACTION[1:]}, allow",
    "p, A, docs/a/b/c/d, read, allow",
    "p, A, docs/*, read, allow",
    "p, A, docs*, read, deny",
    "p, A, *, read, allow",
    "p, A, docs, *, deny",
    "p, A, docs/.hidden/..., read, allow",
    "p, A, urn:x:1;v=2|3@acme.io, read:all, allow",
]


@pytest.mark.parametrize("row", GOOD_ROWS, ids=[repr(row[:40]) for row in GOOD_ROWS])
def test_good_row_is_read_as_it_stands(row: str, tmp_path: Path) -> None:
    """A row within the limits becomes exactly the rule that it states, and prints as it."""
    result = _build(tmp_path, OWNER_ROW + row)

    assert result.findings == ()
    assert result.policy is not None
    rule = result.policy.rules[1]
    assert str(rule) == row
    assert result.policy.permissions_of(rule.role) == [Permission(rule.resource, rule.action, rule.effect)]


@pytest.mark.parametrize(
    ("row", "warnings"),
    [
        ("p, A, mañana/文書, läsa, allow", [(7, "U+00F1"), (18, "U+00E4")]),
        ("p, A, docs, r\u0435ad, deny", [(13, "U+0435")]),
        ("  p, A, \uff44ocs*, *, allow", [(9, "U+FF44")]),
    ],
    ids=["other languages", "Cyrillic e", "wide d"],
)
def test_letters_beyond_ascii_are_a_warning(row: str, warnings: list[tuple[int, str]], tmp_path: Path) -> None:
    """A name that may look like another is accepted, with a warning that names the code point."""
    result = _build(tmp_path, OWNER_ROW + row)

    assert result.policy is not None
    assert str(result.policy.rules[1]) == row.strip()
    assert [(_place(f), f.severity) for f in result.findings] == [
        (("policy.csv", 2, column), Severity.WARNING) for column, _ in warnings
    ]
    assert all(point in f.message for f, (_, point) in zip(result.findings, warnings, strict=True))


@pytest.mark.parametrize(
    ("kind", "text"), [("role", "VIEWER"), ("resource", "docs/a*"), ("resource", "*"), ("action", "*"), ("action", "é")]
)
def test_valid_value_has_no_problem(kind: str, text: str) -> None:
    """A single role, resource or action can be checked before it is written."""
    assert value_problem(kind, text) is None


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        ("resource", "", "not set"),
        ("action", "", "not set"),
        ("resource", LONG_RESOURCE, "1024"),
        ("action", LONG_ACTION, "256"),
        ("resource", "docs*", "`*`"),
        ("action", "*", "`*`"),
        ("resource", "do\u200bcs", "invisible"),
        ("action", "read\n", "control character"),
        ("resource", "docs//x", "empty segment"),
        ("resource", "/docs", "empty segment"),
        ("resource", "docs/", "empty segment"),
        ("resource", "docs/./x", "`..`"),
        ("resource", "..", "`..`"),
    ],
)
def test_invalid_value_of_a_request_says_why(kind: str, text: str, problem: str) -> None:
    """A word that can't be a resource or action is refused in a request, with the field's name first."""
    answer = request_problem(kind, text)

    assert answer is not None
    assert answer.startswith(kind)
    assert problem in answer


@pytest.mark.parametrize(
    ("kind", "text"),
    [("resource", LONG_RESOURCE[1:]), ("resource", "docs/.a/b..c/..."), ("action", LONG_ACTION[1:]), ("action", "a/b")],
)
def test_valid_value_of_a_request_has_no_problem(kind: str, text: str) -> None:
    """Up to the limits a question may hold any visible word, also such as no rule could."""
    assert request_problem(kind, text) is None


def test_policy_without_a_rule_is_refused(tmp_path: Path) -> None:
    """Comments and inheritance alone are no policy."""
    result = _build(tmp_path, "# to be done\ng, A, B\n")

    assert ("policy.csv", 0, 0) in _places(result)
    assert "The policy has no rule." in [error.message for error in result.errors]


# The policy as a whole


def _chain(links: int) -> str:
    return "".join(f"g, r{i}, r{i + 1}\n" for i in range(links)) + f"p, r{links}, docs, read, allow\n"


WHOLE = [
    (
        "g, A, A\np, A, docs, read, allow\n",
        [(2, "The roles inherit in a cycle: A -> A.", "Delete one of these `g` rows.")],
    ),
    (
        "g, A, B\ng, B, C\ng, C, B\n",
        [(3, "The roles inherit in a cycle: B -> C -> B.", "Delete one of these `g` rows.")],
    ),
    (_chain(10), [(2, "`r0` inherits through 10 links; Casbin silently stops after 9.", "Shorten the chain")]),
    (_chain(11), [(3, "`r1` inherits through 10 links", "Shorten"), (2, "`r0` inherits through 11 links", "Shorten")]),
    ("g, A, GHOST\n", [(2, "`GHOST` is inherited from, but not defined.", "Give `GHOST` a rule")]),
    (
        "g, A, B\np, B, docs, read, allow\ng, A, B\n",
        [(4, "`A` already inherits from `B` in line 2.", "Delete one of the two rows.")],
    ),
    (
        "p, A, docs, read, allow\np, A, docs, read, allow\n",
        [(3, "`A` has a rule on `docs read` already, in line 2.", "Delete one of the two rows")],
    ),
    (
        "p, A, docs*, read, allow\np, A, docs*, read, deny\np,A,docs*,read,allow\n",
        [
            (3, "`A` has a rule on `docs* read` already, in line 2.", "where their effects differ, deny wins"),
            (4, "`A` has a rule on `docs* read` already, in line 2.", "where their effects differ, deny wins"),
        ],
    ),
]


@pytest.mark.parametrize(
    ("rows", "expected"),
    WHOLE,
    ids=["own parent", "circle", "ten links", "eleven links", "undefined parent", "same link", "same rule", "conflict"],
)
def test_contradictory_rows_are_refused(rows: str, expected: list[tuple[int, str, str]], tmp_path: Path) -> None:
    """Rows that are right each by itself and wrong together are found at the row to change."""
    result = _build(tmp_path, OWNER_ROW + rows)

    assert result.policy is None
    assert _places(result) == [("policy.csv", line, 1) for line, _, _ in expected]
    for error, (_, message, fix) in zip(result.errors, expected, strict=True):
        assert message in error.message
        assert fix in error.fix


def test_chain_of_nine_links_is_accepted(tmp_path: Path) -> None:
    """The longest chain that Casbin follows is served to its end."""
    result = _build(tmp_path, f"{OWNER_ROW}{_chain(9)}p, r0, files, read, allow\n")

    assert result.findings == ()
    assert result.policy is not None
    assert result.policy.decide("r0", "read", "docs").role_chain == tuple(f"r{i}" for i in range(10))


def test_longest_chain_counts_where_chains_join(tmp_path: Path) -> None:
    """Of two ways to the same role the longer one is measured, and the shorter one explains."""
    rows = _chain(9) + "g, top, r9\ng, top, r0\n"

    result = _build(tmp_path, OWNER_ROW + rows)

    assert [error.message for error in result.errors] == [
        "`top` inherits through 10 links; Casbin silently stops after 9."
    ]


def test_role_defined_by_inheriting_is_defined(tmp_path: Path) -> None:
    """A role without a rule of its own may be inherited from when it inherits itself."""
    result = _build(tmp_path, f"{OWNER_ROW}g, A, B\ng, B, C\np, C, docs, read, allow\np, A, files, read, allow\n")

    assert result.findings == ()
    assert result.policy is not None
    assert result.policy.roles_that_may("read", "docs") == ("A", "B", "C")


@pytest.mark.parametrize(
    ("more", "owners"),
    [("", ("X", "ADMIN", "OTHER")), ("p, X, owners, update, deny\n", ("ADMIN", "OTHER"))],
    ids=["heir", "heir denied"],
)
def test_roles_stand_as_the_file_first_names_them(more: str, owners: tuple[str, ...], tmp_path: Path) -> None:
    """A role counts from the first row that names it, be it as the parent of another; so do those that own."""
    rows = "g, X, ADMIN\np, OTHER, owners, update, allow\np, ADMIN, owners, update, allow\n"

    policy = _build(tmp_path, rows + more, f"{HEADER}ADMIN,owners,update,allow,\n").policy

    assert policy is not None
    assert policy.roles == ("X", "ADMIN", "OTHER")
    assert policy.owner_roles == owners


@pytest.mark.parametrize(
    "rows",
    [
        "p, A, docs, read, allow\n",
        "p, A, owners, update, deny\n",
        "p, A, owners, update, allow\np, A, own*, *, deny\n",
        "p, A, owners/x, update, allow\n",
    ],
    ids=["no rule", "deny", "allow undone by deny", "beneath only"],
)
def test_policy_without_an_owner_role_is_refused(rows: str, tmp_path: Path) -> None:
    """Some role must be allowed `owners update`, or no organization could have an owner."""
    result = _build(tmp_path, rows, f"{HEADER}A,docs,write,deny,\n")

    assert _places(result) == [("policy.csv", 0, 0)]
    assert "No role may `owners update`" in result.errors[0].message
    assert ", owners, update, allow`" in result.errors[0].fix


@pytest.mark.parametrize(("resource", "effect"), [("docs", "allow"), ("docs*", "allow"), ("docs/*", "deny")])
def test_redundant_inherited_rule_is_only_a_warning(resource: str, effect: str, tmp_path: Path) -> None:
    """A row that repeats an inherited permission doesn't keep a policy from going live."""
    rows = f"g, A, B\ng, B, C\np, C, {resource}, read, {effect}\np, A, {resource}, read, {effect}\n"

    result = _build(tmp_path, OWNER_ROW + rows)

    assert result.policy is not None
    assert result.errors == ()
    assert [(_place(f), f.severity, f.message) for f in result.findings] == [
        (("policy.csv", 5, 1), Severity.WARNING, "`A` inherits this from `C` in line 4.")
    ]


@pytest.mark.parametrize(
    "row",
    ["p, A, docs, read, deny", "p, A, docs*, read, allow", "p, A, docs, *, allow", "p, D, docs, read, allow"],
    ids=["other effect", "other resource", "other action", "other role"],
)
def test_rule_that_says_something_new_is_no_warning(row: str, tmp_path: Path) -> None:
    """A row that differs from the inherited one in anything is left alone."""
    result = _build(tmp_path, f"{OWNER_ROW}g, A, B\np, B, docs, read, allow\np, A, files, read, allow\n{row}\n")

    assert result.findings == ()


def test_roles_that_differ_in_case_only_are_a_warning(tmp_path: Path) -> None:
    """Two spellings of one role name are pointed out, and still two roles."""
    result = _build(
        tmp_path, f"{OWNER_ROW}p, Viewer, docs, read, allow\ng, VIEWER, Viewer\np, VIEWER, files, read, allow\n"
    )

    assert result.policy is not None
    assert result.policy.decide("viewer", "read", "docs").decision is Effect.DENY
    assert [(_place(f), f.severity) for f in result.findings] == [(("policy.csv", 2, 1), Severity.WARNING)]
    assert "`VIEWER` and `Viewer` differ only in case" in result.findings[0].message


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ("g, alice, TOP\n", [2]),
        ("g, alice, TOP\np, A, docs, read, allow\ng, alice, A\n", [2]),
        ("g, alice, B\ng, B, TOP\n", [2]),
        ("g, LEAD, TOP\np, LEAD, docs, read, deny\n", []),
        ("g, LEAD, TOP\ng, CHIEF, LEAD\np, CHIEF, docs, read, deny\n", []),
    ],
)
def test_name_that_only_inherits_is_a_warning(rows: str, lines: list[int], tmp_path: Path) -> None:
    """A role without a rule from which none inherits is named once, with the command for a person."""
    result = _build(tmp_path, OWNER_ROW + rows)

    assert result.policy is not None
    assert [(finding.line, finding.severity) for finding in result.findings] == [(n, Severity.WARNING) for n in lines]
    assert all("`alice` has no rule of its own" in finding.message for finding in result.findings)
    assert all("rolecall members set-role ADDRESS" in finding.fix for finding in result.findings)


# Expectations


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("TOP,owners,update,allow,\n", (1, 1), "The first row is not the header: it reads `TOP,owners,update,allow,`."),
        ("# only a comment\n", (0, 1), "The first row is not the header: there is none."),
        ("role,resource,action,expected\nTOP,owners,update,allow\n", (1, 1), "`role,resource,action,expected`"),
        ("Rolle,Ressource\nTOP,owners,update,allow\n", (1, 1), "it reads `Rolle,Ressource`"),
        ("role;resource;action;expected;note\nTOP;owners;update;allow;\n", (1, 5), "separated by semicolons"),
        ("role\tresource\taction\texpected\nTOP\towners\tupdate\tallow\n", (1, 5), "separated by tabs"),
        (f'{HEADER}"TOP","owners","update","maybe",,\n', (2, 25), "`maybe` is not a decision."),
        (f'"# a note\n{CASES}', (1, 1), 'it reads `"# a note`'),
        (HEADER, (0, 0), "The file has no test."),
        (f"{HEADER}TOP,owners,update\n", (2, 18), "A test has at least 4 values, this row 3."),
        (f"{HEADER}TOP, owners, update, Allow,x\n", (2, 21), "`Allow` is not a decision."),
        (f"{HEADER}TOP,owners,update,,x\n", (2, 19), "`` is not a decision."),
        (f"{HEADER}\nTOP,owners,update,deny,no\n", (3, 1), "should be deny, but is allow by line 1"),
        (f"{HEADER}TOP,docs,read,allow,\n", (2, 1), "should be allow, but is deny because"),
        (f"{HEADER}GHOST,docs,read,deny,\n", (2, 1), "The policy has no role `GHOST`."),
        (f"{HEADER}top,docs,read,deny,\n", (2, 1), "The policy has no role `top`."),
        (f"{HEADER}TOP,,read,deny,\n", (2, 1), "The request isn't valid"),
        (f"{HEADER}TOP,docs,,deny,\n", (2, 1), "The request isn't valid"),
        (f"{HEADER}TOP,docs/*,read,deny,\n", (2, 1), "The request isn't valid"),
        (f"{HEADER}TOP,docs,*,deny,\n", (2, 1), "The request isn't valid"),
        (f"{HEADER}TOP,*,read,deny,\n", (2, 1), "The request isn't valid"),
        (f"{HEADER}TOP,a//b,read,deny,\n", (2, 1), "The request isn't valid"),
        (f"{HEADER}TOP,owners/,update,allow,\n", (2, 1), "The request isn't valid"),
        (f"{HEADER}TOP,a/../b,read,deny,\n", (2, 1), "The request isn't valid"),
        (f"{HEADER}TOP,owners/.,update,allow,\n", (2, 1), "The request isn't valid"),
        (f"{HEADER}TOP,{LONG_RESOURCE},read,deny,\n", (2, 1), "The request isn't valid"),
        (f"{CASES}TOP,own\u200bers,update,deny,\n", (3, 8), "U+200B"),
    ],
)
def test_bad_expectation_keeps_the_policy_back(text: str, place: tuple[int, int], message: str, tmp_path: Path) -> None:
    """An expectation that can't be read, asked or met is an error at its row."""
    result = _build(tmp_path, cases=text)

    assert result.policy is None
    assert _places(result) == [("policy_test.csv", *place)]
    assert message in result.errors[0].message
    assert result.errors[0].fix


def test_expectation_broken_by_a_deny_names_its_row(tmp_path: Path) -> None:
    """A wrong expectation names the rule that decided."""
    rows = f"{OWNER_ROW}p, A, docs, *, allow\np, A, docs/x*, read, deny\n"

    result = _build(tmp_path, rows, f"{HEADER}A,docs/xy,read,allow,readers read\n")

    assert result.errors[0].message == (
        "`A` `docs/xy read` should be allow, but is deny by line 3, `p, A, docs/x*, read, deny`."
    )


@pytest.mark.parametrize("note", ["", ",", ",why, oh why", ', "quoted"'])
def test_note_of_an_expectation_is_free_text(note: str, tmp_path: Path) -> None:
    """The note may be left out or hold commas, and the header may have spaces."""
    result = _build(tmp_path, cases=f"role, resource, action, expected, note\n TOP, owners, update, allow{note}\n")

    assert result.findings == ()


# Anything at all

_WORDS = ["p", "g", "A", "B", "TOP", "docs", "owners", "update", "allow", "deny"]
_SIGNS = [",", ", ", "\n", "*", "/", "..", "#", "(", ")", "[", '"', "\t", "\r\n", "\u200b", "é", "=", " "]
_ROWS = [OWNER_ROW, "g, A, B\n", "p, A, docs, read, allow\n"]
_SOUP = st.lists(st.sampled_from([*_WORDS, *_SIGNS, *_ROWS]), max_size=40).map("".join)


@settings(max_examples=100, deadline=None)
@given(st.one_of(_SOUP, st.binary(max_size=60)), st.one_of(st.just(CASES), _SOUP), st.one_of(st.just(MODEL), _SOUP))
def test_any_text_gives_a_policy_or_an_error(policy: str | bytes, cases: str, model: str) -> None:
    """Any text in the files gives either a policy without errors or errors without a policy."""
    with tempfile.TemporaryDirectory() as folder:
        result = build(write_folder(Path(folder), policy, cases, model), 0.0)

    assert (result.policy is None) is bool(result.errors)
    assert all(finding.file in NAMES and finding.message and finding.fix for finding in result.findings)
