"""The policy as an immutable index: deciding costs a few dictionary look-ups, however many rules there are.

Every role has two bits, one for what it is allowed and one for what it is denied. A rule sets one of its role's bits
at a resource and action; a role holds the bits of itself and of all that it inherits from.
"""

import weakref
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache

from rolecall.domain import Effect, Permission, Reason, Role
from rolecall.policy.masks import build_table, covering, share_masks
from rolecall.policy.source import Inheritance, Rule

__all__ = ["OWNERS", "Decision", "Policy"]

# Whoever may do this is an owner (requirements, rule 2).
OWNERS = ("owners", "update")

# Rules on the action `*` go into the table of every action where that makes no more than so many rows more a rule.
MAX_STARRED_SHARE = 2
MIN_STARRED_ROWS = 10_000
# So many decisions are remembered; what is asked about has at most 1,280 characters.
MAX_REMEMBERED = 8192


class Decision:
    """What a policy says of (role, action, resource). The reason is there at once, the rule is looked up when asked."""

    __slots__ = ("action", "policy", "reason", "resource", "role")

    def __init__(self, policy: "Policy", role: str, action: str, resource: str, reason: Reason) -> None:
        self.policy = policy
        self.role = role
        self.action = action
        self.resource = resource
        self.reason = reason

    def __bool__(self) -> bool:
        """Whether it is allowed: `if policy.decide(...)` must not pass because an object is truthy."""
        return self.reason is Reason.GRANTED

    @property
    def decision(self) -> Effect:
        """ALLOW or DENY."""
        return Effect.ALLOW if self.reason is Reason.GRANTED else Effect.DENY

    @property
    def rule(self) -> Rule | None:
        """The rule that decided, of the nearest role, the most specific resource; None on a default deny."""
        if self.reason not in (Reason.GRANTED, Reason.FORBIDDEN):
            return None
        wanted = Effect.ALLOW if self.reason is Reason.GRANTED else Effect.DENY
        matching = [rule for rule in self.policy.matching_rules(self.action, self.resource) if rule.effect is wanted]
        chains = {rule.role: self.policy.chain(self.role, rule.role) for rule in matching}
        held = [rule for rule in matching if chains[rule.role]]
        return min(held, key=lambda rule: (len(chains[rule.role]), -len(rule.resource), rule.line))

    @property
    def role_chain(self) -> tuple[str, ...]:
        """The roles from the one asked about to the one that the rule is written for; empty without a rule."""
        rule = self.rule
        return self.policy.chain(self.role, rule.role) if rule else ()

    @property
    def policy_version(self) -> str:
        """Which policy decided."""
        return self.policy.version


class Policy:
    """One snapshot of a policy folder. Never changes, so any thread may use it without a lock."""

    def __init__(self, rules: Iterable[Rule], inheritances: Iterable[Inheritance], version: str) -> None:
        """Index `rules`. They must have passed `lint.check_roles`."""
        self.version = version
        self.rules = tuple(rules)
        self._parents = _parents(self.rules, inheritances)
        bits = {role: 1 << i for i, role in enumerate(self._parents)}
        shift = len(bits)
        self._held: dict[str, tuple[int, int]] = {}
        for role in self._parents:
            held = sum(bits[ancestor] for ancestor in self.ancestors(role))
            self._held[role] = (held, held << shift)
        by_action: dict[str, list[tuple[str, int]]] = {"*": []}
        positions: dict[str, list[int]] = {}
        for position, rule in enumerate(self.rules):
            bit = bits[rule.role] if rule.effect is Effect.ALLOW else bits[rule.role] << shift
            by_action.setdefault(rule.action, []).append((rule.resource, bit))
            positions.setdefault(rule.resource, []).append(position)
        self._positions = {pattern: tuple(found) for pattern, found in positions.items()}
        starred = by_action.pop("*")
        merge = len(starred) * len(by_action) <= MAX_STARRED_SHARE * len(self.rules) + MIN_STARRED_ROWS
        if merge:
            by_action = {action: [*own, *starred] for action, own in by_action.items()}
        self._merged = merge
        self._starred = build_table(starred)
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
        """The roles that may `owners update`, in file order. The first is what an organization's founder gets."""
        return self.roles_that_may(OWNERS[1], OWNERS[0])

    def decide(self, role: str, action: str, resource: str) -> Decision:
        """May `role` do `action` on `resource`? A deny rule beats any allow rule; what no rule allows is denied."""
        return Decision(self, role, action, resource, self._reason(role, action, resource))

    @cached_property
    def reason(self) -> Callable[[str, str, str], Reason]:
        """The reason alone of (role, action, resource), remembered while it is asked for often."""
        # Going in a circle, it would keep an old policy until the garbage is collected.
        this = weakref.ref(self)

        def reason(role: str, action: str, resource: str) -> Reason:
            policy = this()
            assert policy is not None  # noqa: S101 - whoever asks has it
            return policy._reason(role, action, resource)  # noqa: SLF001 - it is its own

        return lru_cache(MAX_REMEMBERED)(reason)

    def _reason(self, role: str, action: str, resource: str) -> Reason:
        held = self._held.get(role)
        if held is None:
            return Reason.UNKNOWN_ROLE
        table = self._tables.get(action)
        if table is None:
            mask = covering(self._starred, resource, resource)
        else:
            mask = covering(table, resource, resource)
            if not self._merged:
                mask |= covering(self._starred, resource, resource)
        if mask & held[1]:
            return Reason.FORBIDDEN
        return Reason.GRANTED if mask & held[0] else self._default_deny(action, resource)

    def share_masks(self) -> None:
        """Make equal masks one object, which stays in the processor's cache. Unpickling undoes it."""
        share_masks([self._starred, *self._tables.values()])

    def speaks_of(self, resource: str, action: str) -> bool:
        """Whether rules name the type of the resource pattern, and the action; one on every action names them all."""
        if covering(self._starred, resource, resource):
            return True
        kind, slash, _ = resource.partition("/")
        known = kind in self.resource_types or bool(covering(self._types, kind, kind))
        if not slash and kind.endswith("*"):
            known = any(name.startswith(kind[:-1]) for name in self.resource_types)
        return known and (action == "*" or action in self.actions)

    def roles_that_may(self, action: str, resource: str) -> tuple[str, ...]:
        """The roles that are allowed it, in file order."""
        return tuple(r for r in self._parents if self.decide(r, action, resource).reason is Reason.GRANTED)

    def permissions_of(self, role: str) -> list[Permission]:
        """All rules that `role` holds, own and inherited, each once, in a fixed order. Empty for an unknown role."""
        held = self.ancestors(role)
        found = {Permission(rule.resource, rule.action, rule.effect) for rule in self.rules if rule.role in held}
        return sorted(found, key=lambda permission: (permission.resource, permission.action, permission.effect))

    def describe_roles(self) -> list[Role]:
        """Every role with what its own rows say, in file order."""
        own: dict[str, list[Permission]] = {role: [] for role in self._parents}
        for rule in self.rules:
            own[rule.role].append(Permission(rule.resource, rule.action, rule.effect))
        owners = set(self.owner_roles)
        return [Role(r, parents, tuple(own[r]), r in owners) for r, parents in self._parents.items()]

    def ancestors(self, role: str) -> set[str]:
        """The role and all that it inherits from; empty for an unknown one."""
        found: set[str] = set()
        todo = [role] if role in self._parents else []
        while todo:
            current = todo.pop()
            if current not in found:
                found.add(current)
                todo.extend(self._parents[current])
        return found

    def chain(self, role: str, ancestor: str) -> tuple[str, ...]:
        """The shortest way of inheritance from `role` to `ancestor`, both included; empty where there is none."""
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
        """Every rule that covers `resource`, whatever its action, role and effect."""
        parents = [resource[:i] for i, character in enumerate(resource) if character == "/"]
        prefixes = [f"{resource[:i]}*" for i in range(len(resource) + 1)]
        found = (self._positions.get(pattern, ()) for pattern in (*parents, resource, *prefixes))
        return [self.rules[position] for positions in found for position in positions]

    def matching_rules(self, action: str, resource: str) -> list[Rule]:
        """Every rule that covers `resource` and `action`, whatever its role and effect."""
        return [rule for rule in self.rules_on(resource) if rule.action in (action, "*")]

    def _default_deny(self, action: str, resource: str) -> Reason:
        """Why nothing matched, as precisely as the policy's words allow."""
        kind = resource.partition("/")[0]
        if kind not in self.resource_types and not covering(self._types, kind, kind):
            return Reason.UNKNOWN_RESOURCE
        return Reason.NOT_GRANTED if action in self.actions else Reason.UNKNOWN_ACTION


def _parents(rules: Iterable[Rule], inheritances: Iterable[Inheritance]) -> dict[str, tuple[str, ...]]:
    """The roles that each role inherits from directly, in the order in which the file first names them."""
    rows: list[Rule | Inheritance] = sorted([*rules, *inheritances], key=lambda row: row.line)
    parents: dict[str, tuple[str, ...]] = {}
    for row in rows:
        parents.setdefault(row.role, ())
        if isinstance(row, Inheritance):
            parents.setdefault(row.parent, ())
            parents[row.role] += (row.parent,)
    return parents
