"""Conditions of rules: what conditions.yaml may say, where it is wrong, and what its expressions are worth."""

import pickle
import random
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.domain import NEVER, NOTHING_ASSIGNED, ORGANIZATION, Effect, Permission, Reason
from rolecall.policy import (
    CONDITIONS_FILE,
    Build,
    Conditional,
    Policy,
    PolicyFiles,
    Severity,
    build,
    build_in_subprocess,
    explain,
    held_at,
    is_within,
    plan_resources,
)
from rolecall.policy.conditions import MAX_CONDITIONS, MAX_CONDITIONS_BYTES
from rolecall.policy.expressions import MAX_EXPRESSION, MAX_LOOPED, MAX_NESTING, VARIABLES, Condition, ExpressionError
from rolecall.policy.model import CONDITIONAL_MODEL
from support.policy_folders import CASES, HEADER, MODEL, OWNER_ROW, SHIPPED, write_folder
from support.policy_folders import CONDITIONAL_MODEL as MODEL_FILE_WITH_CONDITIONS

OFFICE = "office:\n  expression: context.ip == '192.0.2.7'\n"
RULES = f"{OWNER_ROW}p, A, docs, view, allow, office\n"
NOON = datetime(2026, 1, 30, 12, tzinfo=UTC)


def _build(folder: Path, conditions: str | bytes | None = OFFICE, rules: str = RULES, cases: str = CASES) -> Build:
    return build(write_folder(folder, rules, cases, MODEL_FILE_WITH_CONDITIONS, conditions), 0.0)


def _policy(folder: Path, conditions: str = OFFICE, rules: str = RULES) -> Policy:
    result = _build(folder, conditions, rules)
    assert result.policy is not None, result.errors
    return result.policy


def _places(result: Build) -> list[tuple[str, int, int]]:
    return [(finding.file, finding.line, finding.column) for finding in result.errors]


def test_both_models_are_served_and_are_the_shipped_ones() -> None:
    """The texts of the two models in the code are those in the repository, up to comments and spacing."""
    text = [line for line in MODEL_FILE_WITH_CONDITIONS.split("\n") if line and not line.startswith("#")]

    assert "\n".join(text) == CONDITIONAL_MODEL


def test_a_rule_ends_in_a_condition_or_not(tmp_path: Path) -> None:
    """With the model with conditions the last value is optional, and may be an empty cell."""
    rules = f"{RULES}p, A, docs, edit, allow\np, A, docs, print, allow, \n"

    policy = _policy(tmp_path, rules=rules)

    assert [rule.condition for rule in policy.rules] == ["", "office", "", ""]
    assert str(policy.rules[1]) == "p, A, docs, view, allow, office"
    assert policy.reason("A", "view", "docs") == Conditional((), ("office",), Reason.CONDITION_NOT_MET)
    assert policy.reason("A", "edit", "docs") is Reason.GRANTED


def test_a_condition_needs_the_model_with_conditions(tmp_path: Path) -> None:
    """With the plain model a sixth value is an error at its column, and says what to do."""
    result = build(write_folder(tmp_path, RULES, CASES, MODEL, OFFICE), 0.0)

    assert result.policy is None
    assert _places(result) == [("policy.csv", 2, 26)]
    assert "a condition at the end needs the model with conditions" in result.errors[0].fix


@pytest.mark.parametrize("missing", ["cond", ", ctx", ' && (p.cond == "" || condition(p.cond, r.ctx))'])
def test_half_a_model_with_conditions_is_refused(tmp_path: Path, missing: str) -> None:
    """A model that resembles the one with conditions must be it exactly."""
    model = CONDITIONAL_MODEL.replace(missing, "", 1)

    result = build(write_folder(tmp_path, RULES, CASES, model, OFFICE), 0.0)

    assert result.policy is None
    assert "model.conf" in {finding.file for finding in result.errors}


BAD_FILES = [
    ("office", (1, 1), "has no keys"),
    ("- office", (1, 1), "has no keys"),
    ("office: true", (1, 9), "has no keys"),
    ("office:", (1, 8), "has no keys"),
    ("office: {}", (1, 1), "has no expression"),
    ("office:\n  description: x", (1, 1), "has no expression"),
    ("office:\n  expression:", (2, 14), "is no text"),
    ("office:\n  expression: ''", (2, 15), "is no text"),
    ("office:\n  expression: [a]", (2, 15), "a value that is itself a list"),
    ("office:\n  expression: {a: b}", (2, 15), "a value that is itself a list"),
    ("office:\n  expression: 'true'\n  when: now", (3, 3), "`when` is not a key"),
    ("Office:\n  expression: 'true'", (1, 1), "`Office` is not a valid name"),
    ("1st:\n  expression: 'true'", (1, 1), "`1st` is not a valid name"),
    ("a_b:\n  expression: 'true'", (1, 1), "`a_b` is not a valid name"),
    (f"{'a' * 65}:\n  expression: 'true'", (1, 1), "65 characters"),
    ("office:\n  expression: 'true'\noffice:\n  expression: 'false'", (3, 1), "stands in line 1 already"),
    ("office:\n  expression: 'true'\n  expression: 'false'", (3, 3), "stands in line 2 already"),
    ("office: &a\n  expression: 'true'\nother: *a", (1, 9), "an anchor or an alias"),
    ("office:\n  expression: 'true'\n---\nother:\n  expression: 'true'", (3, 1), "a second document"),
    ("? [a, b]\n: x", (1, 3), "The key is not a text"),
    ("office:\n\texpression: 'true'", (2, 1), "This is no YAML"),
    ("office:\n  expression: 'true", (2, 20), "This is no YAML"),
    ("office: {", (1, 10), "This is no YAML"),
    ("office:\n  expression: !!python/object:os.system 'true'\n  x: !!x y", (3, 3), "`x` is not a key"),
    ("\x01", (0, 0), "This is no YAML"),
    ("", (0, 0), "The file is empty"),
    ("office:\n  expression: 'true'\n  description: " + "x" * 1001, (3, 16), "1001 characters"),
]


@pytest.mark.parametrize(("text", "place", "message"), BAD_FILES, ids=[repr(row[0][:50]) for row in BAD_FILES])
def test_a_malformed_file_is_an_error_at_its_place(
    tmp_path: Path, text: str, place: tuple[int, int], message: str
) -> None:
    """A file of anything but names with expressions and descriptions is refused, with line, column and fix."""
    result = _build(tmp_path, text, OWNER_ROW)

    errors = [finding for finding in result.errors if finding.file == CONDITIONS_FILE]
    assert result.policy is None
    assert (errors[0].line, errors[0].column) == place
    assert message in errors[0].message
    assert errors[0].fix


BAD_EXPRESSIONS = [
    ("  expression: context.ip ==", (2, 28), "Syntax error"),
    ("  expression: contxt.ip == 'x'", (2, 21), "Undeclared reference to 'contxt.ip'"),
    ("  expression: subject.name == 'x'", (2, 22), "Undeclared reference to 'subject.name'"),
    ("  expression: subject == 'x'", (2, 15), "Undeclared reference to 'subject'"),
    ("  expression: 'context.a == 1 && foo'", (2, 34), "Undeclared reference to 'foo'"),
    ('  expression: "context.a == \\"x\\" && foo"', (2, 38), "Undeclared reference to 'foo'"),
    ("  expression: |\n    context.a == 1 &&\n    foo", (4, 5), "Undeclared reference to 'foo'"),
    ("  expression: >-\n    context.a == 1\n    && foo", (4, 8), "Undeclared reference to 'foo'"),
    ("  expression: context.a == 1\n    && foo", (3, 8), "Undeclared reference to 'foo'"),
    ("  expression: context.ä == 'ä' && foo", (2, 23), "Syntax error"),
    ("  expression: subject.id == 1", (2, 26), "no matching overload"),
    ("  expression: subject.id", (2, 15), "of the type string, not bool"),
    ("  expression: context.a", (2, 15), "of the type dyn, not bool"),
    ("  expression: time", (2, 15), "of the type timestamp, not bool"),
    ("  expression: 1", (2, 15), "of the type int, not bool"),
    (f"  expression: {'(' * 33}true{')' * 33}", (2, 15), "nested more than 32 deep"),
    (f"  expression: {'+'.join(['1'] * 40)} == 1", (2, 15), "nested more than 32 deep"),
    (f"  expression: true || {'a' * 10_000} == 1", (2, 15), "more than 4096"),
    ("  expression: context.l.all(a, context.m.all(b, a == b))", (2, 15), "a loop (`all`"),
    ("  expression: context.l.filter(a, context.m.exists(b, a == b)).size() == 1", (2, 15), "a loop (`all`"),
    ("  expression: '[1].map(a, [2].map(b, a + b)).size() == 1'", (2, 16), "a loop (`all`"),
    ("  expression: in_network(context.ip)", (2, 25), "Undeclared reference to 'in_network'"),
    ("  expression: context.a.b() == 1", (2, 26), "Undeclared reference to 'b'"),
]


@pytest.mark.parametrize(
    ("text", "place", "message"), BAD_EXPRESSIONS, ids=[repr(row[0][14:60]) for row in BAD_EXPRESSIONS]
)
def test_a_wrong_expression_is_an_error_at_its_place(
    tmp_path: Path, text: str, place: tuple[int, int], message: str
) -> None:
    """An expression is type-checked, and bounded in length and nesting; the place is that in the file."""
    result = _build(tmp_path, f"office:\n{text}\n")

    assert result.policy is None
    assert {finding.file for finding in result.errors} == {CONDITIONS_FILE}
    assert (result.errors[0].line, result.errors[0].column) == place
    assert message in result.errors[0].message


def test_a_file_of_every_form_is_read(tmp_path: Path) -> None:
    """Comments, quotes, blocks, CRLF and a byte order mark are read, and names keep their descriptions."""
    text = (
        "\ufeff# Conditions\r\noffice:\r\n  expression: context.ip == '192.0.2.7'  # quoted\r\n"
        '  description: "In the office: yes"\r\nfolded:\r\n'
        "  expression: >-\r\n    context.a == 1\r\n    || context.b == 2\r\n"
    )
    rules = f"{RULES}p, A, docs, edit, allow, folded\n"

    policy = _policy(tmp_path, text, rules)

    assert policy.conditions["office"].description == "In the office: yes"
    assert policy.conditions["folded"].expression == "context.a == 1 || context.b == 2"
    assert policy.conditions["folded"].holds({"context": {"b": 2}}) is True


def test_a_policy_without_conditions_needs_no_file(tmp_path: Path) -> None:
    """The file is optional, with either model; one with comments alone defines nothing."""
    assert _build(tmp_path / "none", None, OWNER_ROW).policy is not None
    assert _build(tmp_path / "comment", "# none yet\n", OWNER_ROW).policy is not None


def test_size_and_number_are_bounded(tmp_path: Path) -> None:
    """1,000 conditions are served, one more isn't; nor is a file above 256 KiB."""
    many = "".join(f"c{number}:\n  expression: 'true'\n" for number in range(MAX_CONDITIONS + 1))
    allowed = "".join(f"c{number}:\n  expression: 'true'\n" for number in range(MAX_CONDITIONS))
    large = OFFICE + "#" * MAX_CONDITIONS_BYTES

    assert _build(tmp_path / "allowed", allowed, OWNER_ROW).policy is not None
    assert "1001 conditions" in _build(tmp_path / "many", many, OWNER_ROW).errors[0].message
    assert "larger than 262144 bytes" in _build(tmp_path / "large", large).errors[0].message


def test_deep_yaml_is_refused_quickly(tmp_path: Path) -> None:
    """A document that is nested 100,000 deep is an error like any other."""
    began = time.monotonic()
    result = _build(tmp_path, f"office: {'[' * 100_000}", OWNER_ROW)

    assert "itself a list" in result.errors[0].message
    assert time.monotonic() - began < 5


def test_undefined_and_unused_conditions_are_found(tmp_path: Path) -> None:
    """An undefined condition is an error at its place, with a similar name; an unused one is a warning."""
    rules = f"{OWNER_ROW}p, A, docs, view, allow, offce\n"

    result = _build(tmp_path, OFFICE, rules)

    assert _places(result) == [("policy.csv", 2, 26)]
    assert "`offce` is not defined" in result.errors[0].message
    assert "`office`" in result.errors[0].fix
    warning = next(finding for finding in result.findings if finding.severity is Severity.WARNING)
    assert (warning.file, warning.line) == (CONDITIONS_FILE, 1)
    assert "No rule has the condition `office`" in warning.message


@pytest.mark.parametrize("name", ["Office", "of fice", "office!", "x" * 65, "office, x"])
def test_a_malformed_name_in_a_rule_is_an_error(tmp_path: Path, name: str) -> None:
    """A name in a rule has the form of a name, and no second one behind it."""
    assert _build(tmp_path, OFFICE, f"{OWNER_ROW}p, A, docs, view, allow, {name}\n").policy is None


@pytest.mark.parametrize(
    "rule", ["owners, update", "owners, *", "owners*, update", "own*, *", "*, update", "*, *", "owners, update, deny"]
)
def test_owners_depend_on_no_condition(tmp_path: Path, rule: str) -> None:
    """A rule that covers `owners update` has no condition, whatever its effect and however wide it is."""
    effect = "" if rule.endswith("deny") else ", allow"

    result = _build(tmp_path, OFFICE, f"{RULES}p, B, {rule}{effect}, office\n")

    assert [finding.line for finding in result.errors] == [3]
    assert "which makes owners" in result.errors[0].message


@pytest.mark.parametrize("rule", ["owners, view", "owners/x, update", "ownersx, update", "members, update"])
def test_other_rules_on_owners_may_have_one(tmp_path: Path, rule: str) -> None:
    """Only what makes owners is refused."""
    assert _build(tmp_path, OFFICE, f"{RULES}p, B, {rule}, allow, office\n").policy is not None


def test_rules_may_differ_by_their_conditions_alone(tmp_path: Path) -> None:
    """One permission under two conditions is no duplicate, twice under one is; a condition in vain is warned of."""
    two = f"{OFFICE}mfa:\n  expression: subject.properties.mfa == true\n"
    twice = _build(tmp_path / "twice", OFFICE, f"{RULES}p, A, docs, view, deny, office\n")
    vain = _build(tmp_path / "vain", OFFICE, f"{RULES}g, A, B\np, B, docs, view, allow\n")

    assert _build(tmp_path / "two", two, f"{RULES}p, A, docs, view, allow, mfa\n").findings == ()
    assert [finding.line for finding in twice.errors] == [3]
    assert "The condition has no effect: `B`" in vain.findings[0].message
    assert vain.policy is not None


def test_too_many_combinations_are_refused(tmp_path: Path) -> None:
    """Each role and condition is a bit of every mask, so their number is bounded."""
    conditions = "".join(f"c{number}:\n  expression: 'true'\n" for number in range(900))
    rows = (f"p, R{role}, docs, a{number}, allow, c{number}\n" for role in range(5) for number in range(900))

    result = _build(tmp_path, conditions, OWNER_ROW + "".join(rows))

    assert [finding.message.split(",")[0] for finding in result.errors] == [
        "The rules have 4500 combinations of a role"
    ]


def test_the_version_depends_on_the_conditions(tmp_path: Path) -> None:
    """Another expression is another version; a policy without conditions keeps the version that it had."""
    one, other = PolicyFiles("m", "p", "t", "a"), PolicyFiles("m", "p", "t", "b")

    assert len({one.version, other.version, PolicyFiles("m", "p", "t").version}) == 3
    assert PolicyFiles("m", "p", "").version == PolicyFiles("m", "p", "t").version
    assert one.differing(other) == [CONDITIONS_FILE]
    assert build(SHIPPED, 0.0).version == PolicyFiles(*build(SHIPPED, 0.0).files[:3]).version


def test_conditions_arrive_from_the_child_process(tmp_path: Path) -> None:
    """A policy that a child process built evaluates its conditions as one that was built here."""
    folder = write_folder(tmp_path, RULES, CASES, conditions=OFFICE)

    policy = build_in_subprocess(folder, 0.1).policy

    assert policy is not None
    assert policy.conditions == _policy(tmp_path / "here").conditions
    assert policy.conditions["office"].holds({"context": {"ip": "192.0.2.7"}}) is True


VALUES = {
    "context": {
        "ip": "192.0.2.7",
        "flag": True,
        "number": 3.0,
        "none": None,
        "list": [1.0, 2.0],
        "nested": {"list": [{"a": 1.0}]},
    },
    "subject.id": "u1",
    "subject.email": "ann@acme.io",
    "subject.roles": ["A", "B"],
    "subject.kind": "user",
    "subject.properties": {"mfa": True},
    "resource.type": "docs",
    "resource.id": "a/b",
    "resource.path": "docs/a/b",
    "resource.properties": {"owner": "u1"},
    "action.name": "view",
    "action.properties": {},
    "scope": "projects/billing",
    "time": NOON,
}


@pytest.mark.parametrize(
    ("expression", "holds", "missing"),
    [
        ("context.ip == '192.0.2.7'", True, ()),
        ("context.ip == '192.0.2.8'", False, ()),
        ("context.gone == 'x'", None, ("context.gone",)),
        ("context['gone'] == 'x'", None, ("context.gone",)),
        ("has(context.gone) && context.gone == 'x'", False, ()),
        ("context.gone == 'x' || context.flag == true", True, ("context.gone",)),
        ("context.gone == 'x' && context.flag == false", False, ("context.gone",)),
        ("context.nested.gone.deeper == 1", None, ("context.nested.gone",)),
        ("context.gone == 1 && resource.properties.away == 2", None, ("context.gone", "resource.properties.away")),
        ("context.ip.deeper == 1", None, ()),
        ("context.number > 2", True, ()),
        ("context.number == 3", True, ()),
        ("context.number + 1 == 4", None, ()),
        ("context.none == null", True, ()),
        ("context.none == 1", False, ()),
        ("context.list.exists(each, each == 2)", True, ()),
        ("context.list.map(each, each * 2.0).all(each, each > 1.0)", True, ()),
        ("context.nested.list[0].a == 1", True, ()),
        ("context.list[7] == 1", None, ()),
        ("1 / 0 == 1", None, ()),
        ("resource.properties.owner == subject.id", True, ()),
        ("subject.email.endsWith('@acme.io') && 'B' in subject.roles && subject.kind == 'user'", True, ()),
        ("resource.type + '/' + resource.id == resource.path", True, ()),
        ("scope.startsWith('projects/') && action.name == 'view'", True, ()),
        ("subject.properties.mfa == true", True, ()),
        ("time > timestamp('2026-01-30T11:00:00Z') && time.getHours('Europe/Berlin') == 13", True, ()),
        ("time.getDayOfWeek() == 5", True, ()),
        ("time - timestamp('2026-01-30T00:00:00Z') == duration('12h')", True, ()),
        ("in_network(context.ip, '192.0.2.0/24')", True, ()),
        ("in_network(context.ip, '198.51.100.0/24')", False, ()),
        ("in_network('::ffff:192.0.2.7', '192.0.2.0/24')", True, ()),
        ("in_network(context.ip, '2001:db8::/32')", False, ()),
        ("in_network('office', '192.0.2.0/24')", None, ()),
        ("in_network(context.ip, '192.0.2.0/99')", None, ()),
        ("in_network(context.number, '192.0.2.0/24')", None, ()),
        ("context.ip.matches('^192[.]0[.]')", True, ()),
        ("context.ip.matches('(')", None, ()),
        ("type(context.flag) == bool", True, ()),
        ("true", True, ()),
    ],
)
def test_expressions_are_evaluated_with_the_values(
    expression: str, holds: bool | None, missing: tuple[str, ...]
) -> None:
    """An expression holds, doesn't, or can't be evaluated; what it names and lacks is listed."""
    condition = pickle.loads(pickle.dumps(Condition("c", expression)))

    assert condition.holds(VALUES) is holds
    assert condition.missing(VALUES) == missing
    assert bool(condition.problem(VALUES)) is (holds is None)


def test_each_variable_may_be_missing() -> None:
    """A value that the question doesn't have is named in full, and maps count as empty."""
    for name, kind in VARIABLES.items():
        whole = {
            "map": f"{name}.x == 1",
            "string": f"{name} == 'x'",
            "timestamp": f"{name} > timestamp('2026-01-01T00:00:00Z')",
            "list<string>": f"'x' in {name}",
        }
        condition = Condition("c", whole[kind])

        assert condition.holds({}) is None
        assert condition.missing({}) == (f"{name}.x" if kind == "map" else name,)


@pytest.mark.parametrize(
    "context", [{"v": float("nan")}, {"v": 10**30}, {"v": object()}, {"v": "\ud800"}, {1: 2}, "text", None, [1]]
)
def test_values_beyond_json_fail_closed(context: object) -> None:
    """An evaluation ends whatever the values are, and not with True."""
    assert Condition("c", "context.v == context.v && context.v != 'x'").holds({"context": context}) is not True


def test_nesting_is_bounded_by_the_parser() -> None:
    """Expressions of 31 levels compile, deeper ones don't: the library's limit is the documented one."""
    assert MAX_NESTING == 32
    Condition("c", f"{'(' * 31}true{')' * 31}")
    for deep in ("(" * 33 + "true" + ")" * 33, f"{'[' * 33}{']' * 33} == []", "context" + ".a" * 33 + " == 1"):
        with pytest.raises(ExpressionError):
            Condition("c", deep)


def test_length_is_bounded_in_bytes() -> None:
    """4,096 bytes compile, one more doesn't; letters beyond ASCII count with their bytes."""
    padding = MAX_EXPRESSION - len("context.a == ''")

    Condition("c", f"context.a == '{'x' * padding}'")
    for text in ("x" * (padding + 1), "é" * (padding // 2 + 1)):
        with pytest.raises(ExpressionError):
            Condition("c", f"context.a == '{text}'")


LOOPS = [
    "size(" + " + ".join(["context.list"] * 25) + ") > 0",
    "context.list.all(a, a > 0)",
    "context.list.exists(a, a < 0)",
    "context.list.exists_one(a, a == 0)",
    "context.list.map(a, a + 1.0).size() >= 0",
    "context.list.filter(a, a > 0).size() >= 0",
    "context.list.filter(a, a > 0).map(a, context.list + context.list).size() >= 0",
    "context.list.all(a, a in context.list)",
    "context.list.all(a, context.list == context.list)",
    "context.list.map(a, context.text + context.text).size() >= 0",
    "context.list.all(a, context.text.matches('(a|b|c)*d?.*x?'))",
]


@pytest.mark.parametrize("expression", LOOPS)
def test_a_loop_never_takes_long(expression: str) -> None:
    """A loop over values of 4 KiB, or a long sum of them, ends within 0.2 s; over larger ones it isn't run."""
    condition = Condition("c", expression)
    largest = {"context": {"list": [1.0] * (MAX_LOOPED // 10 - 20), "text": "a" * 100}}
    texts = {"context": {"list": [1.0] * 100, "text": "a" * (MAX_LOOPED - 1200)}}
    larger = {"context": {"list": [1.0] * 20_000, "text": "a"}}

    for values in (largest, texts, larger):
        began = time.perf_counter()
        condition.holds(values)
        assert time.perf_counter() - began < 0.2
    assert condition.holds(larger) is None
    assert "more than the 4096" in condition.problem(larger)


@pytest.mark.parametrize(
    "expression",
    [
        "size(" + " + ".join(["context.text"] * 5) + ") > 0",
        "size(" + " + ".join(["context.list"] * 5) + ") > 0",
        "context.list == context.list",
        "-1.0 in context.list",
        "context.text.contains(context.text)",
        "context.text.matches('(x+x+)+y')",
        "'a'.matches(context.text)",
    ],
)
def test_an_expression_without_a_loop_takes_the_largest_values(expression: str) -> None:
    """Without a loop 64 KiB of values take less than 0.5 s."""
    values = {"context": {"list": [1.0] * 6500, "text": "x" * 65_000}}
    condition = Condition("c", expression)
    began = time.perf_counter()

    assert condition.holds(values) is not None
    assert time.perf_counter() - began < 0.5


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60), st.integers(0, 2**32 - 1))
def test_any_text_is_a_condition_or_an_error(text: str, seed: int) -> None:
    """No expression crashes the compiler; one that compiles is true, false or can't be evaluated."""
    chance = random.Random(seed)
    parts = ["context.", "a", "(", ")", " == ", "'x'", " && ", "!", "subject.id", "[", "]", ".all(x, ", "1", text]
    for expression in (text, "".join(chance.choices(parts, k=8))):
        try:
            found, problems = Condition("c", expression).holds(VALUES), None
        except ExpressionError as error:
            found, problems = None, error.problems

        assert found in (True, False, None)
        assert problems is None or problems
        assert all(0 <= problem.offset <= len(expression) for problem in problems or ())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_file_gives_a_policy_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    """No text of conditions.yaml crashes the build."""
    raw = text if isinstance(text, bytes) else text.encode(errors="replace")

    result = build(write_folder(tmp_path_factory.mktemp("any"), OWNER_ROW, CASES, None, raw), 0.0)

    assert (result.policy is None) is bool(result.errors)


# Tests of the policy with a context.

CONTEXT_HEADER = HEADER.replace("note", "note,context")


@pytest.mark.parametrize(
    "row",
    [
        'A,docs,view,allow,in the office,{"context": {"ip": "192.0.2.7"}}',
        'A,docs,view,allow,"in the office, today",{"context": {"ip": "192.0.2.7"}}',
        'A,docs,view,allow,,"{""context"": {""ip"": ""192.0.2.7"", ""x"": ""a, b""}}"',
        'A,docs,view,deny,,{"context": {"ip": "192.0.2.8"}}',
        "A,docs,view,deny,without a context,",
        "A,docs,view,deny,without a cell",
        "A,docs,view,deny",
        'A,docs,edit,allow,,{"time": "2026-01-30T11:00:00+01:00", "subject_email": "ann@acme.io", "scope": "x"}',
        'A,docs,edit,deny,,{"time": "2026-01-30T13:00:00+01:00", "subject_email": "ann@acme.io", "scope": "x"}',
        'A,docs,print,allow,,{"resource_properties": {"owner": "u1"}, "subject_id": "u1", "subject_kind": "user"}',
        'A,docs,print,deny,,{"resource_properties": {"owner": "u1"}, "subject_id": "u2", "subject_kind": "user"}',
    ],
)
def test_an_expectation_may_have_a_context(tmp_path: Path, row: str) -> None:
    """The column after the note is a JSON object with the fields of a question and the server's own values."""
    conditions = (
        f"{OFFICE}early:\n  expression: time < timestamp('2026-01-30T10:30:00Z') && subject.email != '' &&"
        " scope == 'x'\nown:\n  expression: resource.properties.owner == subject.id && subject.kind == 'user' &&"
        " 'A' in subject.roles\n"
    )
    rules = f"{RULES}p, A, docs, edit, allow, early\np, A, docs, print, allow, own\n"

    result = _build(tmp_path, conditions, rules, f"{CONTEXT_HEADER}TOP,owners,update,allow,\n{row}\n")

    assert result.errors == ()
    assert result.tests == 2


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("{", "is no JSON"),
        ("7", "is no JSON object"),
        ('{"contxt": {}}', "has a key `contxt`"),
        ('{"context": "x"}', "`context` is no object"),
        ('{"scope": {}}', "`scope` is no text"),
        ('{"time": "noon"}', "`noon` is no time"),
        ('{"time": "2026-01-30T11:00:00"}', "is no time"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_wrong_context_of_an_expectation_is_an_error(tmp_path: Path, context: str, message: str) -> None:
    """A context that can't be read keeps the policy back, at its column."""
    row = f"A,docs,view,deny,note,{context}\n"

    result = _build(tmp_path, OFFICE, RULES, CONTEXT_HEADER + row)

    assert result.policy is None
    assert _places(result) == [("policy_test.csv", 2, 23)]
    assert message in result.errors[0].message


def test_an_expectation_without_the_column_has_no_context(tmp_path: Path) -> None:
    """Without the column in the header, all after the fourth comma is the note."""
    cases = f'{HEADER}A,docs,view,deny,in the office,{{"context": {{"ip": "192.0.2.7"}}}}\n'

    assert _build(tmp_path, OFFICE, RULES, cases).errors == ()


# What conditional rules mean where permissions are compared.


def _within(folder: Path, rows: str, role: str, holder: str) -> bool:
    conditions = f"{OFFICE}mfa:\n  expression: subject.properties.mfa == true\n"
    policy = _policy(folder, conditions, f"{OWNER_ROW}{rows}")
    return is_within(policy, role, held_at(policy, holder, NOTHING_ASSIGNED, None, ORGANIZATION, NEVER))


@pytest.mark.parametrize(
    ("role", "holder", "within"),
    [
        ("allow", "allow", True),
        ("allow, office", "allow", True),
        ("allow", "allow, office", False),
        ("allow, office", "allow, office", True),
        ("allow, mfa", "allow, office", False),
    ],
)
def test_a_holder_passes_on_what_it_may_under_the_same_condition(
    tmp_path: Path, role: str, holder: str, within: bool
) -> None:
    """A conditional allow covers the same permission under the same condition, and nothing else."""
    assert _within(tmp_path, f"p, R, docs, view, {role}\np, H, docs, view, {holder}\n", "R", "H") is within


@pytest.mark.parametrize(
    ("role", "within"), [("deny", True), ("deny, office", True), ("deny, mfa", False), ("", False)]
)
def test_a_conditional_deny_of_the_holder_must_be_in_the_role(tmp_path: Path, role: str, within: bool) -> None:
    """A role that lacks the holder's conditional deny, or has a weaker one, isn't within the holder."""
    rows = "p, R, docs, view, allow\np, H, docs, view, allow\np, H, docs/a, view, deny, office\n"
    rows += f"p, R, docs/a, view, {role}\n" if role else ""

    assert _within(tmp_path, rows, "R", "H") is within


def test_an_unconditional_deny_of_the_holder_needs_one_in_the_role(tmp_path: Path) -> None:
    """A conditional deny doesn't stand for one without a condition."""
    rows = (
        "p, R, docs, view, allow\np, H, docs, view, allow\np, H, docs/a, view, deny\np, R, docs/a, view, deny, office\n"
    )

    assert not _within(tmp_path, rows, "R", "H")


def test_a_restriction_may_name_what_is_allowed_under_a_condition(tmp_path: Path) -> None:
    """A token may be restricted to a conditional permission, as its condition counts for the token, too."""
    rows = f"{RULES}p, A, docs/a, view, deny\np, A, docs/b, view, deny, office\n"
    policy = _policy(tmp_path, OFFICE, rows)
    held = held_at(policy, "A", NOTHING_ASSIGNED, None, ORGANIZATION, NEVER)

    assert held.covers(Permission("docs", "view", Effect.ALLOW))
    assert held.covers(Permission("docs/b", "view", Effect.ALLOW))
    assert not held.covers(Permission("docs/a", "view", Effect.ALLOW))


def test_permissions_and_roles_name_their_conditions(tmp_path: Path) -> None:
    """Lists of permissions have the conditions; roles that may are those that need none."""
    policy = _policy(tmp_path)

    assert policy.permissions_of("A") == [Permission("docs", "view", Effect.ALLOW, "office")]
    assert policy.describe_roles()[1].permissions == (Permission("docs", "view", Effect.ALLOW, "office"),)
    assert policy.roles_that_may("view", "docs") == ()
    assert policy.roles_that_may("view", "docs", {"office": True}.__getitem__) == ("A",)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("docs", "allow", "office")], ((), (), ("office",))),
        ([("docs/a", "allow", ""), ("docs", "allow", "office")], (("docs/a",), (), ("office",))),
        ([("docs", "allow", ""), ("docs/a", "allow", "office")], (("docs/*",), (), ())),
        ([("docs", "allow", ""), ("docs/a", "deny", "office")], (("docs/*",), ("docs/a",), ("office",))),
        ([("docs", "allow", ""), ("docs/a", "deny", ""), ("docs/a", "deny", "office")], (("docs/*",), ("docs/a",), ())),
        ([("docs/a", "allow", ""), ("docs", "deny", "office")], ((), (), ("office",))),
        ([("docs/a", "allow", "office"), ("docs", "deny", "")], ((), (), ())),
        ([("other", "allow", "office")], ((), (), ())),
    ],
)
def test_a_plan_leaves_out_what_a_condition_decides_and_names_it(
    rows: list[tuple[str, str, str]], expected: tuple[tuple[str, ...], ...]
) -> None:
    """A conditional allow is left out, a conditional deny excludes; both are named where they matter."""
    permissions = [Permission(resource, "view", Effect(effect), name) for resource, effect, name in rows]

    assert plan_resources(permissions, "view", "docs") == expected


def test_an_explanation_says_what_the_condition_needs(tmp_path: Path) -> None:
    """The deciding rule, the condition, whether it holds, and its missing values are named."""
    policy = _policy(tmp_path, rules=f"{RULES}g, B, A\np, A, docs/x, view, deny, office\n")

    def explained(resource: str, ip: str | None) -> tuple[str, str, tuple[str, ...]]:
        values = {"context": {"ip": ip} if ip else {}}
        found = explain(policy.decide("B", "view", resource, policy.evaluator(values)), values)
        return found.summary, found.condition, found.missing_values

    assert explained("docs", "192.0.2.7") == (
        "B may `view` on `docs` through B -> A: policy.csv:2 allows it, as the condition `office` holds.",
        "office",
        (),
    )
    assert explained("docs", "x") == (
        "B may not `view` on `docs`: policy.csv:2 doesn't allow it, as the condition `office` does not hold.",
        "office",
        (),
    )
    summary, *rest = explained("docs", None)
    assert summary.endswith("as the condition `office` can't be evaluated (the question lacks context.ip).")
    assert rest == ["office", ("context.ip",)]
    summary, *rest = explained("docs/x", "192.0.2.7")
    assert "policy.csv:4 denies it, as the condition `office` holds, and deny beats allow." in summary
    assert rest == ["office", ()]
    assert explained("docs/x", None)[1:] == ("office", ("context.ip",))
