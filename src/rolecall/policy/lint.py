"""Checks of a policy as a whole: undefined roles, cycles, duplicates, redundant grants, and failing test cases."""

from collections.abc import Iterable
from difflib import get_close_matches

from rolecall.domain import Effect, Reason
from rolecall.policy.expressions import values_of
from rolecall.policy.index import OWNERS, Policy
from rolecall.policy.parsed import (
    CONDITIONS_FILE,
    POLICY_FILE,
    TEST_FILE,
    Inheritance,
    ParsedPolicy,
    Rule,
    Severity,
)
from rolecall.policy.restrictions import covering_patterns
from rolecall.policy.syntax import request_problem

__all__ = ["MAX_CHAIN", "MAX_CONDITIONAL", "check_conditions", "check_grants", "check_roles", "check_test_cases"]

# Maximum links of inheritance that Casbin follows; with one more it silently denies.
MAX_CHAIN = 9

# Maximum combinations of a role, a condition and an effect: each is a bit of the index's masks.
MAX_CONDITIONAL = 4096

# Minimum similarity, by difflib's ratio, of two names of which one is reported as mistyped.
MIN_SIMILARITY = 0.8
# Maximum pairs of names that are compared, at about 10 µs each.
MAX_PAIRS = 20_000


def check_roles(parsed: ParsedPolicy) -> None:
    """Add findings about roles and inheritance. Without such findings the policy can be indexed."""
    defined = {rule.role for rule in parsed.rules} | {row.role for row in parsed.inheritances}
    parents: dict[str, list[str]] = {}
    lines: dict[tuple[str, str], int] = {}
    for row in parsed.inheritances:
        if row.parent not in defined:
            message = f"The role `{row.parent}` is inherited from, but not defined."
            parsed.add(POLICY_FILE, row.line, 1, message, f"Give `{row.parent}` a rule, or correct its name.")
        if (row.role, row.parent) in lines:
            first = lines[row.role, row.parent]
            message = f"`{row.role}` already inherits from `{row.parent}` in line {first}."
            parsed.add(POLICY_FILE, row.line, 1, message, "Delete one of the two rows.")
            continue
        lines[row.role, row.parent] = row.line
        parents.setdefault(row.role, []).append(row.parent)
    _check_case(defined, parsed)
    _check_leaves(parents, parsed)
    heights: dict[str, int] = {}
    for role in parents:
        cycle = _find_cycle(role, parents, heights)
        if cycle:
            line = lines[cycle[0], cycle[1]]
            message = f"The roles inherit in a cycle: {' -> '.join(cycle)}."
            parsed.add(POLICY_FILE, line, 1, message, "Delete one of these `g` rows.")
            return
    for role, height in heights.items():
        if height > MAX_CHAIN:
            line = min(line for (child, _), line in lines.items() if child == role)
            message = f"`{role}` inherits through {height} links; Casbin silently stops after {MAX_CHAIN}."
            parsed.add(POLICY_FILE, line, 1, message, "Shorten the chain of `g` rows.")


def check_conditions(parsed: ParsedPolicy) -> None:
    """Add findings about undefined and unused conditions, and about those of rules that make owners."""
    resource, action = OWNERS
    owner_patterns = {(pattern, verb) for pattern in covering_patterns(resource) for verb in (action, "*")}
    used: set[str] = set()
    combinations: set[tuple[str, str, Effect]] = set()
    for rule in parsed.rules:
        if not rule.condition:
            continue
        used.add(rule.condition)
        combinations.add((rule.role, rule.condition, rule.effect))
        if rule.condition not in parsed.condition_lines:
            column = _condition_column(rule, parsed)
            close = get_close_matches(rule.condition, parsed.condition_lines, n=1, cutoff=MIN_SIMILARITY)
            fix = f"Write `{close[0]}`, or" if close else "Correct its name, or"
            message = f"The condition `{rule.condition}` is not defined."
            parsed.add(POLICY_FILE, rule.line, column, message, f"{fix} define it in {CONDITIONS_FILE}.")
        if (rule.resource, rule.action) in owner_patterns:
            column = _condition_column(rule, parsed)
            message = f"The rule covers `{resource} {action}`, which makes owners, and has a condition."
            fix = "Delete the condition: who is an owner can't depend on one. Or name narrower resources or actions."
            parsed.add(POLICY_FILE, rule.line, column, message, fix)
    if len(combinations) > MAX_CONDITIONAL:
        message = (
            f"The rules have {len(combinations)} combinations of a role, a condition and an effect, more than"
            f" {MAX_CONDITIONAL}."
        )
        parsed.add(
            POLICY_FILE, 0, 0, message, "Use fewer conditions, or inherit the rules with conditions from one role."
        )
    for name, line in parsed.condition_lines.items():
        if name not in used:
            message = f"No rule has the condition `{name}`."
            parsed.add(CONDITIONS_FILE, line, 1, message, "Delete it, or use it in a rule.", Severity.WARNING)


def _condition_column(rule: Rule, parsed: ParsedPolicy) -> int:
    """Return the column of a rule's condition, its last value."""
    row = parsed.files.policy.split("\n")[rule.line - 1]
    return row.rindex(rule.condition) + 1


def check_grants(parsed: ParsedPolicy, policy: Policy) -> None:
    """Add findings about duplicate and redundant rules, and about a policy without an owner role."""
    first: dict[tuple[str, str, str, str], int] = {}
    same_permission: dict[tuple[str, str, Effect, str], dict[str, Rule]] = {}
    for rule in parsed.rules:
        same_permission.setdefault((rule.resource, rule.action, rule.effect, rule.condition), {})[rule.role] = rule
    above = {role: policy.ancestors(role) - {role} for role in policy.roles}
    for rule in parsed.rules:
        key = (rule.role, rule.resource, rule.action, rule.condition)
        line = first.setdefault(key, rule.line)
        if line != rule.line:
            fix = "Delete one of the two rows; where their effects differ, deny wins."
            message = f"`{rule.role}` has a rule on `{rule.resource} {rule.action}` already, in line {line}."
            parsed.add(POLICY_FILE, rule.line, 1, message, fix)
            continue
        always = same_permission.get((rule.resource, rule.action, rule.effect, ""), {})
        if rule.condition and (without := sorted({rule.role, *above[rule.role]} & always.keys())):
            line = always[without[0]].line
            message = f"The condition has no effect: `{without[0]}` has the same rule without one in line {line}."
            parsed.add(POLICY_FILE, rule.line, 1, message, "Delete one of the two rows.", Severity.WARNING)
        holders = same_permission[rule.resource, rule.action, rule.effect, rule.condition]
        for role in sorted(above[rule.role] & holders.keys()):
            message = f"`{rule.role}` inherits this from `{role}` in line {holders[role].line}."
            fix = "Delete the row: one grant at the lowest role is enough."
            parsed.add(POLICY_FILE, rule.line, 1, message, fix, Severity.WARNING)
    _check_spelling(parsed)
    if not policy.owner_roles:
        resource, action = OWNERS
        message = f"No role may `{resource} {action}`, so no organization could have an owner."
        fix = f"Add the row `p, ROLE, {resource}, {action}, allow`, with your top role for ROLE."
        parsed.add(POLICY_FILE, 0, 0, message, fix)


def _check_spelling(parsed: ParsedPolicy) -> None:
    """Warn of a name that is used once and is similar to one that is used more often: it may be mistyped."""
    places: dict[str, dict[str, list[int]]] = {"role": {}, "resource type": {}, "action": {}}
    for rule in parsed.rules:
        names = (rule.role, rule.resource.partition("/")[0], rule.action)
        for found, name in zip(places.values(), names, strict=True):
            found.setdefault(name, []).append(rule.line)
    for row in parsed.inheritances:
        for role in (row.role, row.parent):
            places["role"].setdefault(role, []).append(row.line)
    for kind, found in places.items():
        frequent = [name for name, lines in found.items() if len(lines) > 1]
        rare = {name: lines[0] for name, lines in found.items() if len(lines) == 1}
        if len(frequent) * len(rare) > MAX_PAIRS:
            continue
        for name, line in rare.items():
            if close := get_close_matches(name, frequent, n=1, cutoff=MIN_SIMILARITY):
                message = f"The {kind} `{name}` is used only here, and is similar to `{close[0]}`."
                parsed.add(POLICY_FILE, line, 1, message, "Correct it if it is mistyped.", Severity.WARNING)


def _check_leaves(parents: dict[str, list[str]], parsed: ParsedPolicy) -> None:
    """Warn of a role without a rule from which no other inherits: as in `g, alice, TOP`, it may be a person."""
    used = {rule.role for rule in parsed.rules} | {row.parent for row in parsed.inheritances}
    for row in parsed.inheritances:
        # At its first row only.
        if row.role in used or parents[row.role][0] != row.parent:
            continue
        inherited = " and ".join(f"`{parent}`" for parent in parents[row.role])
        message = f"`{row.role}` has no rule of its own, and no role inherits from it: it may what {inherited} may."
        fix = (
            "If it is a person, delete the row, as people don't stand here:"
            f" `rolecall members set-role ADDRESS {row.parent}`. If it is a role, give it a rule."
        )
        parsed.add(POLICY_FILE, row.line, 1, message, fix, Severity.WARNING)


def _check_case(defined: Iterable[str], parsed: ParsedPolicy) -> None:
    """Warn of roles that differ only in case."""
    spellings: dict[str, str] = {}
    for role in sorted(defined):
        other = spellings.setdefault(role.lower(), role)
        if other != role:
            rows: list[Rule | Inheritance] = [*parsed.rules, *parsed.inheritances]
            line = next(row.line for row in rows if row.role == role)
            message = f"The roles `{other}` and `{role}` differ only in case."
            parsed.add(POLICY_FILE, line, 1, message, "Use one spelling.", Severity.WARNING)


def _find_cycle(start: str, parents: dict[str, list[str]], heights: dict[str, int]) -> list[str]:
    """Set in `heights` the longest chain above `start` and each of its ancestors; return a cycle, or [] without one."""
    path = [start]
    todo = [iter(parents.get(start, ()))]
    while path:
        role = path[-1]
        parent = next((p for p in todo[-1] if p not in heights), None)
        if parent is None:
            heights[role] = max((1 + heights[p] for p in parents.get(role, ())), default=0)
            path.pop()
            todo.pop()
        elif parent in path:
            return [*path[path.index(parent) :], parent]
        else:
            path.append(parent)
            todo.append(iter(parents.get(parent, ())))
    return []


def check_test_cases(parsed: ParsedPolicy, policy: Policy) -> None:
    """Add a finding for every test case that fails, or whose request isn't valid."""
    for case in parsed.cases:
        values = {**values_of(case.action, case.resource), "subject.roles": [case.role], **case.values}
        decision = policy.decide(case.role, case.action, case.resource, policy.evaluator(values))
        request = f"`{case.role}` `{case.resource} {case.action}`"
        if decision.reason is Reason.UNKNOWN_ROLE:
            fix = "Correct the name, or delete the test."
            parsed.add(TEST_FILE, case.line, 1, f"The policy has no role `{case.role}`.", fix)
        elif problem := request_problem("resource", case.resource) or request_problem("action", case.action):
            parsed.add(TEST_FILE, case.line, 1, f"The request isn't valid: {problem} ({request})", "Correct the row.")
        elif decision.decision is not case.expected:
            rule = decision.rule
            why = f"by line {rule.line}, `{rule}`" if rule else f"because {decision.reason.value}"
            message = f"{request} should be {case.expected}, but is {decision.decision} {why}."
            parsed.add(TEST_FILE, case.line, 1, message, "Correct policy.csv, or this expectation.")
