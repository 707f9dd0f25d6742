"""Immutable index of a policy: a decision costs a few dictionary look-ups, for any number of rules.

Every role has two bits, one for allow rules and one for deny rules, and further ones for its rules with conditions. A
rule sets one of its role's bits at a resource and action; a role holds its own bits and those of all roles that it
inherits from.
"""

import weakref
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeVar

from rolecall.domain import Effect, Permission, Reason, Role
from rolecall.policy.expressions import Condition, Values
from rolecall.policy.parsed import Inheritance, Rule

__all__ = [
    "OWNERS",
    "Conditional",
    "Decision",
    "Entry",
    "Evaluate",
    "Policy",
    "RoleReasons",
    "Table",
    "build_table",
    "mask_for",
    "permission_order",
    "share_masks",
]

# A role that may do this makes its members owners (docs/concepts.md, rule 2).
OWNERS = ("owners", "update")

# Rules on the action `*` are copied into the table of every action, unless that makes more additional rows than
# MAX_ANY_ACTION_SHARE per rule of the policy plus MIN_ANY_ACTION_ROWS.
MAX_ANY_ACTION_SHARE = 2
MIN_ANY_ACTION_ROWS = 10_000
# Maximum cached reasons; action and resource of a request have at most 1,280 characters together.
MAX_CACHED_DECISIONS = 8192


# A role, or several.
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Evaluate = Callable[[str], bool | None]
"""Function from the name of a condition to whether it holds; None where it can't be evaluated."""


def _unknown(_: str) -> None:
    """Evaluate no condition, as where nothing is known of the question's values."""


class Conditional(NamedTuple):
    """Reason that depends on conditions: of deny rules, and of allow rules where no rule without a condition allows.

    `otherwise` is the reason if none of these rules counts. A condition that can't be evaluated fails closed: an allow
    rule doesn't count, a deny rule does. No `Conditional` is GRANTED, so code that knows no values denies.
    """

    denies: tuple[str, ...]
    allows: tuple[str, ...]
    otherwise: Reason

    def reason(self, evaluate: Evaluate) -> Reason:
        """Return the reason for one question."""
        for name in self.denies:
            if evaluate(name) is not False:
                return Reason.FORBIDDEN
        for name in self.allows:
            if evaluate(name):
                return Reason.GRANTED
        return self.otherwise


class RoleReasons(NamedTuple):
    """Reasons that each of several roles gives, where one of them depends on conditions and none is FORBIDDEN."""

    reasons: tuple[Reason | Conditional, ...]

    def decide(self, evaluate: Evaluate) -> tuple[Reason, int]:
        """Return the reason for one question, and the index of the role that decided.

        Where nothing allows or denies, that is the first with a condition that isn't met, else the first of all.
        """
        reasons = [each.reason(evaluate) if isinstance(each, Conditional) else each for each in self.reasons]
        for reason in (Reason.FORBIDDEN, Reason.GRANTED, Reason.CONDITION_NOT_MET):
            if reason in reasons:
                return reason, reasons.index(reason)
        return reasons[0], 0

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that the reason depends on, in order."""
        conditional = [each for each in self.reasons if isinstance(each, Conditional)]
        names = {name for each in conditional for name in each.denies}
        always = Reason.GRANTED in self.reasons or any(each.otherwise is Reason.GRANTED for each in conditional)
        if not always:
            names.update(name for each in conditional for name in each.allows)
        return tuple(sorted(names))


class Decision:
    """Decision of a policy on (role, action, resource). The reason is known at once, the rule looked up on access."""

    __slots__ = ("action", "evaluate", "policy", "reason", "resource", "role")

    def __init__(
        self, policy: "Policy", role: str, action: str, resource: str, reason: Reason, evaluate: Evaluate = _unknown
    ) -> None:
        self.policy = policy
        self.role = role
        self.action = action
        self.resource = resource
        self.reason = reason
        self.evaluate = evaluate

    def __bool__(self) -> bool:
        """Return whether the decision is ALLOW: `if policy.decide(...)` must not pass because an object is truthy."""
        return self.reason is Reason.GRANTED

    @property
    def decision(self) -> Effect:
        """ALLOW or DENY."""
        return Effect.ALLOW if self.reason is Reason.GRANTED else Effect.DENY

    @property
    def rule(self) -> Rule | None:
        """The rule that decided: of the nearest role, then the most specific resource; None on a default deny."""
        if self.reason not in (Reason.GRANTED, Reason.FORBIDDEN):
            return None
        wanted = Effect.ALLOW if self.reason is Reason.GRANTED else Effect.DENY
        matching = [
            rule
            for rule in self.policy.matching_rules(self.action, self.resource)
            if rule.effect is wanted and self.counts(rule)
        ]
        chains = {rule.role: self.policy.chain(self.role, rule.role) for rule in matching}
        held = [rule for rule in matching if chains[rule.role]]
        return min(held, key=lambda rule: (len(chains[rule.role]), -len(rule.resource), rule.line))

    def counts(self, rule: Rule) -> bool:
        """Whether the rule's condition lets it count in this decision."""
        if not rule.condition:
            return True
        holds = self.evaluate(rule.condition)
        return bool(holds) if rule.effect is Effect.ALLOW else holds is not False

    @property
    def role_chain(self) -> tuple[str, ...]:
        """The chain of inheritance from the decision's role to the rule's role; empty without a rule."""
        rule = self.rule
        return self.policy.chain(self.role, rule.role) if rule else ()

    @property
    def policy_version(self) -> str:
        """The version of the policy that decided."""
        return self.policy.version


class Policy:
    """One immutable snapshot of a policy folder. Threads may share it without a lock."""

    def __init__(
        self,
        rules: Iterable[Rule],
        inheritances: Iterable[Inheritance],
        version: str,
        conditions: Mapping[str, Condition] | None = None,
    ) -> None:
        """Index `rules`. They must have passed `lint.check_roles` and `lint.check_conditions`."""
        self.version = version
        self.rules = tuple(rules)
        self.conditions = dict(conditions or {})
        self._parents = _parents(self.rules, inheritances)
        bits = {role: 1 << i for i, role in enumerate(self._parents)}
        shift = len(bits)
        # The bits above the roles' own are those of rules with conditions: allow and deny rules of each condition.
        self._shift = 2 * shift
        conditional = dict.fromkeys((rule.role, rule.condition, rule.effect) for rule in self.rules if rule.condition)
        conditional_bits = {key: 1 << (self._shift + i) for i, key in enumerate(conditional)}
        self._conditional = [(condition, effect) for _, condition, effect in conditional]
        by_role: dict[str, int] = {}
        for (role, _, _), bit in conditional_bits.items():
            by_role[role] = by_role.get(role, 0) | bit
        # Of each role the bits of its allow rules, and those that stop a decision from being simple: of its deny rules
        # and of its rules with conditions.
        self._held: dict[str, tuple[int, int]] = {}
        for role in self._parents:
            ancestors = self.ancestors(role)
            held = sum(bits[ancestor] for ancestor in ancestors)
            self._held[role] = (held, held << shift | sum(by_role.get(ancestor, 0) for ancestor in ancestors))
        by_action: dict[str, list[tuple[str, int]]] = {"*": []}
        positions: dict[str, list[int]] = {}
        for position, rule in enumerate(self.rules):
            if rule.condition:
                bit = conditional_bits[rule.role, rule.condition, rule.effect]
            else:
                bit = bits[rule.role] if rule.effect is Effect.ALLOW else bits[rule.role] << shift
            by_action.setdefault(rule.action, []).append((rule.resource, bit))
            positions.setdefault(rule.resource, []).append(position)
        self._positions = {pattern: tuple(found) for pattern, found in positions.items()}
        any_action = by_action.pop("*")
        merge = len(any_action) * len(by_action) <= MAX_ANY_ACTION_SHARE * len(self.rules) + MIN_ANY_ACTION_ROWS
        if merge:
            by_action = {action: [*own, *any_action] for action, own in by_action.items()}
        self._merged = merge
        self._any_action = build_table(any_action)
        self._tables = {action: build_table(own) for action, own in by_action.items()}
        self.actions = frozenset(by_action)
        types = {pattern.partition("/")[0] for pattern in positions} - {"*"}
        self.resource_types = frozenset(name for name in types if not name.endswith("*"))
        self._types = build_table([(name, 1) for name in types])
        self.share_masks()

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role, in the order in which the file first names it."""
        return tuple(self._parents)

    @property
    def owner_roles(self) -> tuple[str, ...]:
        """The roles that may `owners update`, in file order."""
        return self.roles_that_may(OWNERS[1], OWNERS[0])

    @property
    def founder_role(self) -> str:
        """The role that an organization's founder gets: the first owner role with a rule of its own; empty for none.

        A name that only inherits may be a person's, by mistake.
        """
        own = {rule.role for rule in self.rules}
        return next((role for role in self.owner_roles if role in own), "")

    def decide(self, role: str, action: str, resource: str, evaluate: Evaluate = _unknown) -> Decision:
        """Decide whether `role` may do `action` on `resource`. Deny rules beat allow rules; the default is a denial.

        Without `evaluate` no value is known: rules with conditions allow nothing, and deny.
        """
        reason = self._reason(role, action, resource)
        if isinstance(reason, Conditional):
            reason = reason.reason(evaluate)
        return Decision(self, role, action, resource, reason, evaluate)

    def evaluator(self, values: Values) -> Evaluate:
        """Return the function that evaluates the policy's conditions for these values."""
        conditions = self.conditions
        return lambda name: conditions[name].holds(values)

    @cached_property
    def reason(self) -> Callable[[str, str, str], Reason | Conditional]:
        """The function from (role, action, resource) to the reason of the decision, with an LRU cache."""
        return _cached(self, Policy._reason)

    @cached_property
    def reason_of_roles(self) -> Callable[[tuple[str, ...], str, str], tuple[Reason | RoleReasons, int]]:
        """The function from (roles, action, resource) to the reason, and the index of the role that decided.

        A deny rule of any role beats every allow rule, as Casbin decides on a subject with several `g` rows. Of several
        roles with the same effect the first decides; without any rule that matches, the first of all. Has an LRU cache.
        """
        return _cached(self, Policy._reason_of_roles)

    def decide_for_roles(
        self, roles: tuple[str, ...], action: str, resource: str, evaluate: Evaluate = _unknown
    ) -> tuple[Reason, int]:
        """Return what `reason_of_roles` does, with the conditions evaluated. Without `evaluate` as in `decide`."""
        reason, index = self.reason_of_roles(roles, action, resource)
        return reason.decide(evaluate) if isinstance(reason, RoleReasons) else (reason, index)

    def _reason_of_roles(self, roles: tuple[str, ...], action: str, resource: str) -> tuple[Reason | RoleReasons, int]:
        reasons = tuple(self.reason(role, action, resource) for role in roles)
        if Reason.FORBIDDEN in reasons:
            return Reason.FORBIDDEN, reasons.index(Reason.FORBIDDEN)
        if any(isinstance(reason, Conditional) for reason in reasons):
            return RoleReasons(reasons), 0
        return RoleReasons(reasons).decide(_unknown)

    def _reason(self, role: str, action: str, resource: str) -> Reason | Conditional:
        held = self._held.get(role)
        if held is None:
            return Reason.UNKNOWN_ROLE
        table = self._tables.get(action)
        if table is None:
            mask = mask_for(self._any_action, resource, resource)
        else:
            mask = mask_for(table, resource, resource)
            if not self._merged:
                mask |= mask_for(self._any_action, resource, resource)
        if stop := mask & held[1]:
            return self._stopped(stop, mask & held[0], action, resource)
        return Reason.GRANTED if mask & held[0] else self._default_deny(action, resource)

    def _stopped(self, stop: int, allow: int, action: str, resource: str) -> Reason | Conditional:
        """Return the reason where deny rules, or rules with conditions, match."""
        conditional = stop >> self._shift
        if stop != conditional << self._shift:
            return Reason.FORBIDDEN
        found: dict[Effect, dict[str, None]] = {Effect.ALLOW: {}, Effect.DENY: {}}
        while conditional:
            lowest = conditional & -conditional
            condition, effect = self._conditional[lowest.bit_length() - 1]
            found[effect][condition] = None
            conditional -= lowest
        denies, allows = tuple(found[Effect.DENY]), tuple(found[Effect.ALLOW])
        if allow:
            return Conditional(denies, (), Reason.GRANTED) if denies else Reason.GRANTED
        otherwise = Reason.CONDITION_NOT_MET if allows else self._default_deny(action, resource)
        return Conditional(denies, allows, otherwise)

    def share_masks(self) -> None:
        """Replace equal masks by one object, which stays in the processor's cache. Unpickling undoes this."""
        share_masks([self._any_action, *self._tables.values()])

    def mentions(self, resource: str, action: str) -> bool:
        """Return whether rules name the resource pattern's type and the action; a rule on `*` names every action."""
        if mask_for(self._any_action, resource, resource):
            return True
        kind, slash, _ = resource.partition("/")
        known = kind in self.resource_types or bool(mask_for(self._types, kind, kind))
        if not slash and kind.endswith("*"):
            known = any(name.startswith(kind[:-1]) for name in self.resource_types)
        return known and (action == "*" or action in self.actions)

    def roles_ruled_on(self, resource: str, action: str) -> set[str]:
        """Return the roles that have or inherit a rule, of either effect, that covers `action` on `resource`."""
        ruled = {rule.role for rule in self.matching_rules(action, resource)}
        return {role for role in self._parents if not ruled.isdisjoint(self.ancestors(role))}

    def resources_of(self, resource_type: str) -> list[str]:
        """Return the resources of a type that rules name without a wildcard, and the type itself if they do."""
        beneath = f"{resource_type}/"
        paths = (path for path in self._positions if path == resource_type or path.startswith(beneath))
        return [path for path in paths if not path.endswith("*")]

    def roles_that_may(self, action: str, resource: str, evaluate: Evaluate = _unknown) -> tuple[str, ...]:
        """Return the roles that may do `action` on `resource`, in file order. Without `evaluate` as in `decide`."""
        return tuple(r for r in self._parents if self.decide(r, action, resource, evaluate))

    def permissions_of(self, role: str) -> list[Permission]:
        """Return all permissions of `role`, own and inherited, each once, in a fixed order; [] for an unknown one."""
        held = self.ancestors(role)
        found = {_permission(rule) for rule in self.rules if rule.role in held}
        return sorted(found, key=permission_order)

    def describe_roles(self) -> list[Role]:
        """Return every role with the permissions and parents of its own rows, in file order."""
        own: dict[str, list[Permission]] = {role: [] for role in self._parents}
        for rule in self.rules:
            own[rule.role].append(_permission(rule))
        owners = set(self.owner_roles)
        return [Role(r, parents, tuple(own[r]), r in owners) for r, parents in self._parents.items()]

    def ancestors(self, role: str) -> set[str]:
        """Return the role and all roles that it inherits from; empty for an unknown role."""
        found: set[str] = set()
        todo = [role] if role in self._parents else []
        while todo:
            current = todo.pop()
            if current not in found:
                found.add(current)
                todo.extend(self._parents[current])
        return found

    def chain(self, role: str, ancestor: str) -> tuple[str, ...]:
        """Return the shortest chain of inheritance from `role` to `ancestor`, both included; empty without a chain."""
        paths: list[tuple[str, ...]] = [(role,)] if role in self._parents else []
        seen: set[str] = set()
        for path in paths:
            if path[-1] == ancestor:
                return path
            if path[-1] not in seen:
                seen.add(path[-1])
                paths.extend((*path, parent) for parent in self._parents[path[-1]])
        return ()

    def rules_on(self, resource: str) -> list[Rule]:
        """Return every rule that covers `resource`, of any action, role and effect."""
        parents = [resource[:i] for i, character in enumerate(resource) if character == "/"]
        prefixes = [f"{resource[:i]}*" for i in range(len(resource) + 1)]
        found = (self._positions.get(pattern, ()) for pattern in (*parents, resource, *prefixes))
        return [self.rules[position] for positions in found for position in positions]

    def matching_rules(self, action: str, resource: str) -> list[Rule]:
        """Return every rule that covers `resource` and `action`, of any role and effect."""
        return [rule for rule in self.rules_on(resource) if rule.action in (action, "*")]

    def _default_deny(self, action: str, resource: str) -> Reason:
        """Return the reason of a default deny: an unknown resource type, an unknown action, or no rule."""
        kind = resource.partition("/")[0]
        if kind not in self.resource_types and not mask_for(self._types, kind, kind):
            return Reason.UNKNOWN_RESOURCE
        return Reason.NOT_GRANTED if action in self.actions else Reason.UNKNOWN_ACTION


def permission_order(permission: Permission) -> tuple[str, str, str, str]:
    """Return the sort key of permissions."""
    return permission.resource, permission.action, permission.effect, permission.condition


def _permission(rule: Rule) -> Permission:
    return Permission(rule.resource, rule.action, rule.effect, rule.condition)


def _cached(policy: Policy, method: Callable[[Policy, K, str, str], V]) -> Callable[[K, str, str], V]:
    """Return a method of the policy with an LRU cache."""
    # A strong reference to the policy would be a cycle, which keeps an old policy until garbage collection.
    reference = weakref.ref(policy)

    def decide(role: K, action: str, resource: str) -> V:
        this = reference()
        assert this is not None  # noqa: S101 - the caller holds the policy
        return method(this, role, action, resource)

    return lru_cache(MAX_CACHED_DECISIONS)(decide)


def _parents(rules: Iterable[Rule], inheritances: Iterable[Inheritance]) -> dict[str, tuple[str, ...]]:
    """Map each role to its direct parents, in the order in which the file first names the roles."""
    rows: list[Rule | Inheritance] = sorted([*rules, *inheritances], key=lambda row: row.line)
    parents: dict[str, tuple[str, ...]] = {}
    for row in rows:
        parents.setdefault(row.role, ())
        if isinstance(row, Inheritance):
            parents.setdefault(row.parent, ())
            parents[row.role] += (row.parent,)
    return parents


class _SeveralPrefixes(NamedTuple):
    """Table entry of a path with several rules on `path/prefix*`. The lists run parallel, sorted by prefix."""

    mask: int
    prefixes: list[str]
    # Each mask includes the bits of the shorter prefixes that the prefix begins with, and the path's own.
    masks: list[int]
    # The index of the longest shorter prefix that the prefix begins with; -1 without one.
    shorter: list[int]


class _OnePrefix(NamedTuple):
    """Table entry of a path with one `path/prefix*`, the usual case: flat, because every hop may miss the CPU cache."""

    mask: int
    prefix: str
    below: int


Entry = int | _OnePrefix | _SeveralPrefixes
# The key None makes CPython store the hashes beside the keys (a dict of only strings doesn't): a failed look-up then
# touches no other key, which saves a tenth of the time of a decision among 100,000 rules.
Table = dict[str | None, Entry]


def mask_for(table: Table, resource: str, path: str) -> int:
    """Return the bits of the rules that cover `resource`, searched upwards from `path`, it or a parent of it."""
    entry = table.get(path)
    while entry is None:
        cut = path.rfind("/")
        path = path[:cut] if cut > 0 else ""
        entry = table.get(path)
    if isinstance(entry, int):
        return entry
    if path:
        if len(path) == len(resource):
            return entry[0]
        resource = resource[len(path) + 1 :]
    if isinstance(entry, _OnePrefix):
        return entry[2] if resource.startswith(entry[1]) else entry[0]
    mask, prefixes, masks, shorter = entry
    at = bisect_right(prefixes, resource) - 1
    while at >= 0:
        if resource.startswith(prefixes[at]):
            return masks[at]
        at = shorter[at]
    return mask


def share_masks(tables: Iterable[Table]) -> None:
    """Replace equal masks by one object, in all of the tables."""
    shared: dict[int, int] = {}
    for table in tables:
        for path, entry in table.items():
            if isinstance(entry, int):
                table[path] = shared.setdefault(entry, entry)
            elif isinstance(entry, _OnePrefix):
                mask, below = (shared.setdefault(mask, mask) for mask in (entry.mask, entry.below))
                table[path] = _OnePrefix(mask, entry.prefix, below)
            else:
                masks = [shared.setdefault(mask, mask) for mask in entry.masks]
                table[path] = entry._replace(mask=shared.setdefault(entry.mask, entry.mask), masks=masks)


def build_table(rules: Iterable[tuple[str, int]]) -> Table:
    """Build the table of (resource pattern, bit) pairs."""
    exact: dict[str, int] = {"": 0}
    by_path: dict[str, dict[str, int]] = {}
    for pattern, bit in rules:
        if pattern.endswith("*"):
            path, _, prefix = pattern[:-1].rpartition("/")
            prefixes = by_path.setdefault(path, {})
            prefixes[prefix] = prefixes.get(prefix, 0) | bit
        else:
            exact[pattern] = exact.get(pattern, 0) | bit
    table: Table = {None: 0}
    # Parents come before their children.
    for path in sorted(exact.keys() | by_path.keys(), key=len):
        above = mask_for(table, path, path.rpartition("/")[0]) if path else 0
        mask = above | exact.get(path, 0)
        table[path] = _prefix_entry(mask, by_path[path]) if path in by_path else mask
    return table


def _prefix_entry(mask: int, own: dict[str, int]) -> Entry:
    if len(own) == 1:
        ((prefix, bits),) = own.items()
        return _OnePrefix(mask, prefix, mask | bits)
    prefixes = sorted(own)
    masks: list[int] = []
    shorter: list[int] = []
    for i, prefix in enumerate(prefixes):
        at = i - 1
        while at >= 0 and not prefix.startswith(prefixes[at]):
            at = shorter[at]
        masks.append(own[prefix] | (masks[at] if at >= 0 else mask))
        shorter.append(at)
    return _SeveralPrefixes(mask, prefixes, masks, shorter)
