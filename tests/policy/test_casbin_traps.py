"""Silent behaviours of Casbin, and how this project handles each."""

import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from casbin.rbac.default_role_manager import RoleManager
from casbin.util import key_match, regex_match

from rolecall.domain import Effect, Reason
from rolecall.policy import Decision, Finding, Policy, build, casbin_check, explain, parser
from support.policy_folders import CASES, MODEL, OWNER_ROW, SHIPPED, casbin_over, write_folder

DENY_THEN_ALLOW = "p, A, docs, read, {deny}\np, A, docs, read, allow\n"


def _errors(folder: Path, rows: str | bytes, model: str = MODEL) -> tuple[Finding, ...]:
    return build(write_folder(folder, rows, CASES, model), 0.0).errors


def _policy(folder: Path, rows: str) -> Policy:
    result = build(write_folder(folder, OWNER_ROW + rows, CASES), 0.0)
    assert result.policy is not None, result.errors
    return result.policy


def _casbin(folder: Path, rows: str | bytes, model: str = MODEL) -> Any:
    return casbin_over(write_folder(folder, rows, CASES, model))


def _with_matcher(matcher: str) -> str:
    head, _, _ = MODEL.partition("[matchers]")
    return f"{head}[matchers]\nm = {matcher}\n"


def test_decisions_are_right_from_many_threads(tmp_path: Path) -> None:
    """Casbin parses its matcher on every call, which fails at times beside other threads; a decision never does."""
    policy = _policy(tmp_path, "g, B, A\np, A, docs, read, allow\np, B, docs/x*, read, deny\n")
    questions = [("B", "read", "docs"), ("B", "read", "docs/x1"), ("A", "read", "docs/x1"), ("C", "read", "docs")]
    expected = [Reason.GRANTED, Reason.FORBIDDEN, Reason.GRANTED, Reason.UNKNOWN_ROLE]
    wrong: list[object] = []

    def ask() -> None:
        for _ in range(1000):
            got = [policy.decide(*question).reason for question in questions]
            if got != expected:
                wrong.append(got)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_reload_never_denies_in_between(tmp_path: Path) -> None:
    """Casbin clears the roles during a reload and denies meanwhile; a new policy is built aside of the old one."""
    rows = "g, B, A\np, A, docs, read, allow\n"
    enforcer = _casbin(tmp_path / "casbin", rows)
    during: list[bool] = []

    class Watching(RoleManager):  # type: ignore[misc] # casbin has no types
        def clear(self) -> None:
            super().clear()
            during.append(enforcer.enforce("B", "docs", "read"))

    enforcer.set_role_manager(Watching(10))
    enforcer.build_role_links()
    during.clear()
    enforcer.load_policy()
    policy = _policy(tmp_path / "ours", rows)

    _policy(tmp_path / "ours", "p, A, docs, read, allow\n")

    assert during == [False]
    assert enforcer.enforce("B", "docs", "read") is True
    assert policy.decide("B", "read", "docs").decision is Effect.ALLOW


def test_linked_roles_can_be_loaded_again(tmp_path: Path) -> None:
    """Casbin deep-copies its role graph on a reload and runs out of stack; a new build copies nothing."""
    rows = "p, r0, docs, read, allow\n" + "".join(f"p, r{i}, docs/{i}, read, allow\n" for i in range(1, 100))
    rows += "".join(f"g, u{i}, r{i % 100}\ng, u{i}, r{(i + 1) % 100}\n" for i in range(200))
    enforcer = _casbin(tmp_path / "casbin", rows)
    with pytest.raises(RecursionError):
        enforcer.load_policy()

    policies = [_policy(tmp_path / "ours", rows) for _ in range(3)]

    assert [policy.roles_that_may("read", "docs") for policy in policies] == [("r0", "u0", "u99", "u100", "u199")] * 3


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n"])
def test_empty_policy_is_refused(text: str, tmp_path: Path) -> None:
    """Casbin loads an empty file and allows the empty question; it could be a truncated one, so it is refused."""
    assert _casbin(tmp_path, text).enforce("", "", "") is True

    errors = _errors(tmp_path, text)

    assert "truncated" in errors[0].fix


def test_empty_question_is_denied(tmp_path: Path) -> None:
    """Nothing is allowed to nobody."""
    policy = _policy(tmp_path, "p, A, *, *, allow\n")

    decision = policy.decide("", "", "")

    assert decision.reason is Reason.UNKNOWN_ROLE


def test_byte_order_mark_does_not_drop_the_first_rule(tmp_path: Path) -> None:
    """Casbin drops the first row behind a byte order mark, here a deny; it is read."""
    rows = "\ufeffp, A, docs, read, deny\np, B, docs, read, allow\ng, A, B\n" + OWNER_ROW
    assert _casbin(tmp_path, rows).enforce("A", "docs", "read") is True

    policy = build(tmp_path, 0.0).policy

    assert policy is not None
    assert policy.decide("A", "read", "docs").reason is Reason.FORBIDDEN


@pytest.mark.parametrize("row_type", ["pp", "P", "policy", "p2"])
def test_unknown_row_type_is_refused(row_type: str, tmp_path: Path) -> None:
    """Casbin drops a row of an unknown type, here a deny, without a word; it is refused at its place."""
    rows = f"{row_type}, A, docs, read, deny\np, A, docs, read, allow\n{OWNER_ROW}"
    assert _casbin(tmp_path, rows).enforce("A", "docs", "read") is True

    errors = _errors(tmp_path, rows)

    assert [(error.line, error.column) for error in errors] == [(1, 1)]


@pytest.mark.parametrize("row", ["p, A, docs, read", "p, A, docs, read, allow, now"])
def test_wrong_number_of_values_is_refused(row: str, tmp_path: Path) -> None:
    """Casbin loads a row of too few or too many values and fails at every later question; it is refused."""
    enforcer = _casbin(tmp_path, row)
    with pytest.raises(RuntimeError, match="invalid policy size"):
        enforcer.enforce("A", "docs", "read")

    errors = _errors(tmp_path, OWNER_ROW + row)

    assert [error.line for error in errors] == [2]
    assert "has 4 values" in errors[0].message


@pytest.mark.parametrize(
    ("deny", "column"),
    [
        ('p, A, do"cs", read, deny', 7),
        ("p, A, docs, read, deny # keep out", 19),
        ("p, A, docs(x, read, deny", 7),
        ("p, A, docs[x, read, deny", 7),
    ],
)
def test_quote_comment_and_bracket_in_a_row_are_refused(deny: str, column: int, tmp_path: Path) -> None:
    """Casbin reads a deny with a quote, a comment or a bracket as another rule; Rolecall refuses the row."""
    held = _casbin(tmp_path, deny).get_policy()[0]
    assert held != ["A", "docs", "read", "deny"]

    errors = _errors(tmp_path, f"{OWNER_ROW}{deny}\np, A, docs, read, allow\n")

    assert (errors[0].line, errors[0].column) == (2, column)


def test_quoted_comma_is_refused(tmp_path: Path) -> None:
    """Casbin splits at a comma inside quotes; the row is refused."""
    row = 'p, A, "docs,files", read, allow\n'
    assert _casbin(tmp_path, row).get_policy() == [["A", '"docs', 'files"', "read", "allow"]]

    errors = _errors(tmp_path, OWNER_ROW + row)

    assert [error.message for error in errors] == [
        'The quoted value "docs,files" holds a comma, at which Casbin would split it.'
    ]


@pytest.mark.parametrize(
    "row", ['"p","A","docs","read","deny"', "p,A,docs,read,deny,,,", 'p, A, "docs", read, "deny", "",']
)
def test_rows_of_a_spreadsheet_are_what_casbin_gets(row: str, tmp_path: Path) -> None:
    """Casbin reads quotes and empty cells as values; it is asked about the row without them, as the index is."""
    raw = _casbin(tmp_path, row).get_policy()
    folder = write_folder(tmp_path / "served", f"{OWNER_ROW}{row}\np, B, docs, read, allow\ng, A, B\n")

    built = build(folder, None)

    assert raw != [["A", "docs", "read", "deny"]]
    assert built.policy is not None, built.findings
    assert built.comparisons > 0
    assert casbin_check.enforcer(built.files.policy).get_policy()[1] == ["A", "docs", "read", "deny"]
    assert built.policy.decide("A", "read", "docs").reason is Reason.FORBIDDEN


@pytest.mark.parametrize("effect", ["DENY", "Deny", "denied", ""])
def test_mistyped_deny_does_not_allow(effect: str, tmp_path: Path) -> None:
    """Casbin ignores a deny whose effect is mistyped, so that an allow rule decides; Rolecall refuses the row."""
    rows = OWNER_ROW + DENY_THEN_ALLOW.format(deny=effect)
    assert _casbin(tmp_path, rows).enforce("A", "docs", "read") is True

    errors = _errors(tmp_path, rows)

    assert (errors[0].line, errors[0].column) == (2, 19 if effect else 17)
    assert ("Write `allow` or `deny`" if effect else "Add the effect") in errors[0].fix


def test_chain_that_casbin_cuts_off_is_refused(tmp_path: Path) -> None:
    """Casbin denies through ten links of inheritance while still listing the role; such a chain is refused."""
    rows = "".join(f"g, r{i}, r{i + 1}\n" for i in range(10)) + "p, r10, docs, read, allow\n"
    enforcer = _casbin(tmp_path, rows)
    assert "r10" in enforcer.get_implicit_roles_for_user("r0")
    assert enforcer.enforce("r0", "docs", "read") is False

    errors = _errors(tmp_path, OWNER_ROW + rows)

    assert "10 links" in errors[0].message


def test_subject_named_like_a_role_is_not_that_role(tmp_path: Path) -> None:
    """Casbin gives a person called ADMIN the role ADMIN; a prefixed subject can't even be written as a role."""
    row = "p, ADMIN, docs, read, allow\n"
    assert _casbin(tmp_path, row).enforce("ADMIN", "docs", "read") is True
    policy = _policy(tmp_path, row)

    reasons = [policy.decide(subject, "read", "docs").reason for subject in ("user:ADMIN", "ADMIN@acme.io", "admin")]
    errors = _errors(tmp_path, OWNER_ROW + "p, user:ADMIN, docs, read, allow\n")

    assert reasons == [Reason.UNKNOWN_ROLE] * 3
    assert [error.line for error in errors] == [2]


def test_unknown_subjects_leave_nothing_behind(tmp_path: Path) -> None:
    """Casbin keeps every subject it is asked about; this project's policy is unchanged by a thousand questions."""
    rows = "g, B, A\np, A, docs, read, allow\n"
    enforcer = _casbin(tmp_path, rows)
    known = len(enforcer.get_role_manager().all_roles)
    for i in range(50):
        enforcer.enforce(f"stranger{i}", "docs", "read")
    assert len(enforcer.get_role_manager().all_roles) == known + 50
    policy = _policy(tmp_path, rows)
    before = pickle.dumps(vars(policy))

    for i in range(1000):
        policy.decide(f"stranger{i}", f"do{i}", f"thing{i}/x")
        policy.permissions_of(f"stranger{i}")

    assert pickle.dumps(vars(policy)) == before


def test_default_deny_is_explained_by_immutable_values(tmp_path: Path) -> None:
    """Casbin explains no default deny, and its explanation of an allow is its own list; ours is a value."""
    rows = "p, A, docs, read, allow\n"
    enforcer = _casbin(tmp_path, rows)
    assert enforcer.enforce_ex("B", "docs", "read") == (False, [])
    enforcer.enforce_ex("A", "docs", "read")[1][0] = "B"
    assert enforcer.enforce("B", "docs", "read") is True
    policy = _policy(tmp_path, rows)

    rule = policy.decide("A", "read", "docs").rule
    miss = explain(policy.decide("TOP", "read", "docs"))

    assert isinstance(rule, tuple)
    assert miss.nearest_miss == "p, A, docs, read, allow"


def test_star_in_the_middle_is_refused(tmp_path: Path) -> None:
    """Casbin ignores all that follows the first `*`, so that `docs/*/public` allows everything; it is refused."""
    row = "p, A, docs/*/public, read, allow\n"
    assert key_match("docs/payroll/secret", "docs/*/public") is True

    errors = _errors(tmp_path, OWNER_ROW + row)

    assert (errors[0].line, errors[0].column) == (2, 7)


def test_dots_in_a_rule_are_refused(tmp_path: Path) -> None:
    """Casbin compares letters, so `/x/../secret` passes for `/x/*`; no rule may have such a segment."""
    assert key_match("/x/../secret", "/x/*") is True

    errors = _errors(tmp_path, f"{OWNER_ROW}p, A, docs/../secrets, read, allow\np, A, docs/./x*, read, allow\n")

    assert [(error.line, error.column) for error in errors] == [(2, 7), (3, 7)]


def test_model_with_regular_expressions_is_refused(tmp_path: Path) -> None:
    """Casbin's `regexMatch` isn't anchored at the end and raises on a bad pattern; a model that has it is refused."""
    assert regex_match("secrets-of-the-board", "secrets") is True
    model = MODEL.replace("keyMatch(r.obj, p.obj) ||", "regexMatch(r.obj, p.obj) ||")

    errors = _errors(tmp_path, OWNER_ROW, model)

    assert [error.file for error in errors] == ["model.conf"]
    assert "regexMatch" in errors[0].message


@pytest.mark.parametrize(
    "matcher",
    [
        'g(r.sub, p.sub) && r.obj == p.obj && r.act == "a&&b"',
        'g(r.sub, p.sub) && r.obj == p.obj && r.act == "r.act"',
        'g(r.sub, p.sub) && r.obj == p.obj && r.act == "a!b"',
    ],
)
def test_matcher_with_its_own_literals_is_refused(matcher: str, tmp_path: Path) -> None:
    """Casbin rewrites `&&`, `!` and `r.` inside string literals of a matcher too; another matcher is refused."""
    literal = matcher.split('"')[1]
    model = _with_matcher(matcher)
    assert _casbin(tmp_path, "p, A, docs, read, allow\n", model).enforce("A", "docs", literal) is False

    errors = _errors(tmp_path, OWNER_ROW, model)

    assert "Rolecall serves only" in errors[0].message


def test_typing_error_in_a_matcher_is_found_before_the_first_question(tmp_path: Path) -> None:
    """Casbin loads a matcher with a typing error and fails when asked; the model is refused at its line."""
    model = MODEL.replace("g(r.sub,", "g(r.sbu,")
    enforcer = _casbin(tmp_path, "p, A, docs, read, allow\n", model)
    with pytest.raises(Exception, match="r_sbu"):
        enforcer.enforce("A", "docs", "read")

    errors = _errors(tmp_path, OWNER_ROW, model)

    assert [(error.file, error.line) for error in errors] == [("model.conf", 17)]


@pytest.mark.parametrize("text", ["9**99>1", 'r.act.startswith("r")'])
def test_policy_text_is_never_evaluated(text: str, tmp_path: Path) -> None:
    """Casbin's `eval` runs what a row says; neither such a model nor such a row is accepted."""
    model = _with_matcher("eval(p.sub)")
    row = f"p, {text}, docs, read, allow\n"
    assert _casbin(tmp_path, row, model).enforce("anybody", "docs", "read") is True

    errors = _errors(tmp_path, OWNER_ROW + row, model)

    assert [(error.file, error.line) for error in errors] == [("model.conf", 17), ("policy.csv", 2)]


_LOGGING = """
import logging, sys
logging.basicConfig(level=logging.INFO)
{action}
print(logging.getLogger("casbin.policy").disabled)
"""
_CASBIN = "import casbin; casbin.Enforcer({0!r} + '/model.conf', {0!r} + '/policy.csv')"


def _run_logging(action: str) -> tuple[str, str]:
    command = [sys.executable, "-c", _LOGGING.format(action=action)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip(), done.stderr


def test_loading_logs_no_policy_and_leaves_loggers_on() -> None:
    """Casbin logs the whole policy at INFO, then turns its loggers off for the process; `load` does neither."""
    disabled, logged = _run_logging(_CASBIN.format(str(SHIPPED)))
    assert disabled == "True"
    assert "VIEWERNOSECRETS" in logged

    disabled, logged = _run_logging(f"from rolecall.policy import load; load({str(SHIPPED)!r})")

    assert (disabled, logged) == ("False", "")


def test_building_here_logs_no_policy() -> None:
    """Building without a child logs no policy either."""
    _, logged = _run_logging(
        f"from pathlib import Path; from rolecall.policy import build; build(Path({str(SHIPPED)!r}), 0.1)"
    )

    assert logged == ""


def test_comma_in_a_name_makes_no_grant(tmp_path: Path) -> None:
    """Casbin writes a row unquoted and reads `ann, ADMIN` back as a grant of ADMIN; here the row is refused."""
    enforcer = _casbin(tmp_path, "p, ADMIN, docs, read, allow\np, GUEST, x, y, allow\n")
    enforcer.add_grouping_policy("ann, ADMIN", "GUEST")
    enforcer.save_policy()
    saved = (tmp_path / "policy.csv").read_text()
    assert casbin_over(tmp_path).enforce("ann", "docs", "read") is True

    errors = _errors(tmp_path, OWNER_ROW + saved)

    assert [error.message for error in errors] == ["A `g` row has 2 values, this one 3."]


def test_large_policy_is_built_without_waiting_for_casbin(tmp_path: Path) -> None:
    """One question costs Casbin seconds over very many rules; beyond 20,000 a start doesn't ask it."""
    rows = "".join(f"p, A, docs/{i}, read, allow\n" for i in range(20_000))

    result = build(write_folder(tmp_path, OWNER_ROW + rows), 1.0)

    assert result.policy is not None
    assert len(result.policy.rules) == 20_001
    assert result.comparisons == 0


def test_comparison_ends_in_time(tmp_path: Path) -> None:
    """The comparison with Casbin stops when its time is up, however many questions are left."""
    rows = "".join(f"p, A, docs/{i}, read, allow\n" for i in range(1000))
    began = time.monotonic()

    result = build(write_folder(tmp_path, OWNER_ROW + rows), 0.2)

    assert result.comparisons > 0
    assert time.monotonic() - began < 10


def test_comparison_without_a_limit_goes_to_the_end(tmp_path: Path) -> None:
    """With no time limit every question is compared, each time the same number."""
    folder = write_folder(tmp_path, f"{OWNER_ROW}g, A, B\np, B, docs/a*, read, allow\np, A, docs/ab, *, deny\n")

    results = [build(folder, None) for _ in range(2)]

    assert results[0].comparisons == results[1].comparisons > 100


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p, A, docs, read, deny", "`A` `docs read` is deny here and allow in Casbin."),
        ("p, A, docs*, read, allow", "is allow here and deny in Casbin."),
    ],
)
def test_different_answer_of_casbin_keeps_the_policy_back(row: str, message: str, tmp_path: Path) -> None:
    """An index that answers anything unlike Casbin over the file is an error that asks for a report."""
    source = parser.read(write_folder(tmp_path / "file", f"{OWNER_ROW}p, A, docs, read, allow\n"))
    other = _policy(tmp_path / "index", row)

    compared = casbin_check.check_against_casbin(source, other, None)

    assert compared > 0
    assert [(f.file, f.line, f.column) for f in source.errors] == [("policy.csv", 0, 0)]
    assert message in source.errors[0].message
    assert "report it" in source.errors[0].fix


def test_effect_that_allows_unknown_subjects_is_refused(tmp_path: Path) -> None:
    """Casbin's deny-override effect allows subjects without a rule; the model is refused and such a subject denied."""
    model = MODEL.replace("some(where (p.eft == allow)) && !some(", "!some(")
    rows = "p, A, docs, read, allow\n"
    assert _casbin(tmp_path, rows, model).enforce("stranger", "docs", "read") is True

    errors = _errors(tmp_path, OWNER_ROW + rows, model)

    assert [(error.file, error.line) for error in errors] == [("model.conf", 14)]
    assert _policy(tmp_path, rows).decide("stranger", "read", "docs").reason is Reason.UNKNOWN_ROLE


def _calls(ask: Any) -> int:
    """How many functions, built-in ones included, `ask` calls; the least of three: collecting garbage may add."""
    return min(_calls_once(ask) for _ in range(3))


def _calls_once(ask: Any) -> int:
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        ask()
    finally:
        sys.setprofile(None)
    return calls


def test_decision_does_the_same_work_for_few_and_many_rules(tmp_path: Path) -> None:
    """Casbin goes through every rule for each question; a decision makes as many calls over 3,000 rules as over 30."""
    rows = "p, A, docs{0}, read, allow\np, A, logs{0}/x*, read, deny\np, A, tmp/{0:04}*, read, deny\n"
    texts = ["".join(rows.format(i) for i in range(n)) for n in (10, 1000)]
    few, many = (_policy(tmp_path / str(len(text)), text) for text in texts)
    slow = [_calls(lambda e=e: e.enforce("A", "docs7", "read")) for e in (_casbin(tmp_path, text) for text in texts)]
    questions = [("A", "read", "docs7/a/b"), ("A", "read", "logs7/xyz"), ("A", "write", "docs7"), ("A", "read", "zzz")]
    questions += [("A", "read", "tmp/0007-a"), ("A", "read", "tmp/zzz")]

    work = [[_calls(lambda p=p, q=q: p.decide(*q)) for q in questions] for p in (few, many)]

    assert slow[1] > 50 * slow[0]
    assert work[0] == work[1]
    assert max(work[0]) < 40


def test_decision_is_a_value_of_its_own_policy(tmp_path: Path) -> None:
    """A decision names the version that made it, and gives its reasons after another policy is in force."""
    old = _policy(tmp_path, "p, A, docs, read, allow\n")
    decision = old.decide("A", "read", "docs")
    new = _policy(tmp_path, "p, A, docs, read, deny\n")

    later: Decision = new.decide("A", "read", "docs")

    assert decision.policy_version != later.policy_version
    assert (str(decision.rule), str(later.rule)) == ("p, A, docs, read, allow", "p, A, docs, read, deny")


def test_casbin_answers_alike_over_indented_comments(tmp_path: Path) -> None:
    """An indented comment, even one with a single bracket, changes neither the parser's nor Casbin's result."""
    folder = write_folder(tmp_path, f"{OWNER_ROW}  # see the handbook)\np, A, docs, read, allow\n")

    result = build(folder, None)

    assert result.errors == ()
    assert result.comparisons > 0
