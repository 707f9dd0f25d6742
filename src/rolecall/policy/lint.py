"""What is wrong with a policy as a whole: undefined roles, circles, duplicates, grants that say nothing new."""

from collections.abc import Iterable
from difflib import get_close_matches

from rolecall.domain import Effect
from rolecall.policy.compiled import OWNERS, Policy
from rolecall.policy.source import POLICY_FILE, Inheritance, Rule, Severity, Source

__all__ = ["MAX_CHAIN", "check_grants", "check_roles"]

# Casbin stops looking after this many links of inheritance: one more, and it denies silently.
MAX_CHAIN = 9

# How alike two words must be, by difflib's ratio, for one to be taken for a mistyped other; and how many pairs are
# looked at, at about 10 µs each.
LOOKS_LIKE = 0.8
MAX_COMPARED = 20_000


def check_roles(source: Source) -> None:
    """Add findings about roles and inheritance. Without them the policy can be compiled."""
    defined = {rule.role for rule in source.rules} | {row.role for row in source.inheritances}
    parents: dict[str, list[str]] = {}
    lines: dict[tuple[str, str], int] = {}
    for row in source.inheritances:
        if row.parent not in defined:
            message = f"The role `{row.parent}` is inherited from, but nobody defines it."
            source.add(POLICY_FILE, row.line, 1, message, f"Give `{row.parent}` a rule, or correct its name.")
        if (row.role, row.parent) in lines:
            first = lines[row.role, row.parent]
            message = f"`{row.role}` inherits from `{row.parent}` already in line {first}."
            source.add(POLICY_FILE, row.line, 1, message, "Delete one of the two rows.")
            continue
        lines[row.role, row.parent] = row.line
        parents.setdefault(row.role, []).append(row.parent)
    _check_case(defined, source)
    heights: dict[str, int] = {}
    for role in parents:
        cycle = _measure(role, parents, heights)
        if cycle:
            line = lines[cycle[0], cycle[1]]
            message = f"The roles inherit in a circle: {' -> '.join(cycle)}."
            source.add(POLICY_FILE, line, 1, message, "Delete one of these `g` rows.")
            return
    for role, height in heights.items():
        if height > MAX_CHAIN:
            line = min(line for (child, _), line in lines.items() if child == role)
            message = f"`{role}` inherits through {height} links; Casbin silently stops after {MAX_CHAIN}."
            source.add(POLICY_FILE, line, 1, message, "Shorten the chain of `g` rows.")


def check_grants(source: Source, policy: Policy) -> None:
    """Add findings about rules that stand twice or say nothing new, and about a policy that nobody could own."""
    first: dict[tuple[str, str, str], int] = {}
    alike: dict[tuple[str, str, Effect], dict[str, Rule]] = {}
    for rule in source.rules:
        alike.setdefault((rule.resource, rule.action, rule.effect), {})[rule.role] = rule
    above = {role: policy.ancestors(role) - {role} for role in policy.roles}
    for rule in source.rules:
        key = (rule.role, rule.resource, rule.action)
        line = first.setdefault(key, rule.line)
        if line != rule.line:
            fix = "Delete one of the two rows; where their effects differ, deny wins."
            message = f"`{rule.role}` has a rule on `{rule.resource} {rule.action}` already in line {line}."
            source.add(POLICY_FILE, rule.line, 1, message, fix)
            continue
        holders = alike[rule.resource, rule.action, rule.effect]
        for role in sorted(above[rule.role] & holders.keys()):
            message = f"`{rule.role}` inherits this from `{role}` in line {holders[role].line}."
            fix = "Delete the row: once, at the lowest role, is enough."
            source.add(POLICY_FILE, rule.line, 1, message, fix, Severity.WARNING)
    _check_spelling(source)
    if not policy.owner_roles:
        resource, action = OWNERS
        message = f"No role may `{resource} {action}`, so no organization could have an owner."
        fix = f"Add the row `p, ROLE, {resource}, {action}, allow`, with your top role for ROLE."
        source.add(POLICY_FILE, 0, 0, message, fix)


def _check_spelling(source: Source) -> None:
    """Warn of a word that stands but once and looks like one that stands often: probably it is mistyped."""
    places: dict[str, dict[str, list[int]]] = {"role": {}, "resource type": {}, "action": {}}
    for rule in source.rules:
        words = (rule.role, rule.resource.partition("/")[0], rule.action)
        for found, word in zip(places.values(), words, strict=True):
            found.setdefault(word, []).append(rule.line)
    for row in source.inheritances:
        for role in (row.role, row.parent):
            places["role"].setdefault(role, []).append(row.line)
    for kind, found in places.items():
        often = [word for word, lines in found.items() if len(lines) > 1]
        rare = {word: lines[0] for word, lines in found.items() if len(lines) == 1}
        if len(often) * len(rare) > MAX_COMPARED:
            continue
        for word, line in rare.items():
            if close := get_close_matches(word, often, n=1, cutoff=LOOKS_LIKE):
                message = f"The {kind} `{word}` stands only here, and looks like `{close[0]}`."
                source.add(POLICY_FILE, line, 1, message, "Correct it if it is mistyped.", Severity.WARNING)


def _check_case(defined: Iterable[str], source: Source) -> None:
    """Warn of roles that only case tells apart."""
    spellings: dict[str, str] = {}
    for role in sorted(defined):
        other = spellings.setdefault(role.lower(), role)
        if other != role:
            rows: list[Rule | Inheritance] = [*source.rules, *source.inheritances]
            line = next(row.line for row in rows if row.role == role)
            message = f"The roles `{other}` and `{role}` differ only in case."
            source.add(POLICY_FILE, line, 1, message, "Use one spelling.", Severity.WARNING)


def _measure(start: str, parents: dict[str, list[str]], heights: dict[str, int]) -> list[str]:
    """Note how many links of inheritance are above each role from `start` up; the circle where there is one."""
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
