"""The policy as an immutable index: deciding costs a few dictionary look-ups, however many rules there are.

Every role has a bit. A rule sets its role's bit at (resource, action, effect); a role holds the bits of itself and
of all that it inherits from. A decision looks up the resource and its parents, and the longest `prefix*` that
matches with the shorter ones inside it, and holds their bits against the role's.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from rolecall.domain import Effect, Permission, Reason, Role
from rolecall.policy.source import Inheritance, Rule

__all__ = ["OWNERS", "Decision", "Policy"]

# Whoever may do this is an owner (requirements, rule 2).
OWNERS = ("owners", "update")

# action -> (bits of the roles that allow it, bits of those that deny it, the rules' positions)
_Node = dict[str, tuple[int, int, tuple[int, ...]]]


class Decision:
    """What a policy says of (role, action, resource). The reason is there at once, the rule is looked up when asked."""

    __slots__ = ("action", "policy", "reason", "resource", "role")

    def __init__(self, policy: "Policy", role: str, action: str, resource: str, reason: Reason) -> None:
        self.policy = policy
        self.role = role
        self.action = action
        self.resource = resource
        self.reason = reason

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
        rows: list[Rule | Inheritance] = sorted([*self.rules, *inheritances], key=lambda row: row.line)
        self._parents: dict[str, tuple[str, ...]] = {}
        for row in rows:
            parents = self._parents.setdefault(row.role, ())
            if isinstance(row, Inheritance):
                self._parents[row.role] = (*parents, row.parent)
        for role in [parent for parents in self._parents.values() for parent in parents]:
            self._parents.setdefault(role, ())
        self._bits = {role: 1 << i for i, role in enumerate(self._parents)}
        self._held = {role: self._bits_of(self._ancestors(role)) for role in self._parents}
        self._nodes: dict[str, _Node] = {}
        prefixes: dict[str, _Node] = {}
        for position, rule in enumerate(self.rules):
            starred = rule.resource.endswith("*")
            nodes, key = (prefixes, rule.resource[:-1]) if starred else (self._nodes, rule.resource)
            node = nodes.setdefault(key, {})
            allow, deny, positions = node.get(rule.action, (0, 0, ()))
            bit = self._bits[rule.role]
            if rule.effect is Effect.ALLOW:
                allow |= bit
            else:
                deny |= bit
            node[rule.action] = (allow, deny, (*positions, position))
        self._prefixes = sorted(prefixes)
        self._prefix_nodes = [prefixes[prefix] for prefix in self._prefixes]
        self._shorter = _enclosing(self._prefixes)
        self.actions = frozenset(rule.action for rule in self.rules) - {"*"}
        self.resource_types = frozenset(r.resource.split("/")[0] for r in self.rules if r.resource.rstrip("*"))

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
        held = self._held.get(role)
        if held is None:
            return Decision(self, role, action, resource, Reason.UNKNOWN_ROLE)
        granted = False
        nodes = self._nodes
        path = resource
        while True:
            node = nodes.get(path)
            if node is not None:
                entry = node.get(action)
                if entry is not None:
                    if entry[1] & held:
                        return Decision(self, role, action, resource, Reason.FORBIDDEN)
                    if entry[0] & held:
                        granted = True
                entry = node.get("*")
                if entry is not None:
                    if entry[1] & held:
                        return Decision(self, role, action, resource, Reason.FORBIDDEN)
                    if entry[0] & held:
                        granted = True
            cut = path.rfind("/")
            if cut < 0:
                break
            path = path[:cut]
        prefixes = self._prefixes
        at = bisect_right(prefixes, resource) - 1
        while at >= 0:
            if resource.startswith(prefixes[at]):
                node = self._prefix_nodes[at]
                for key in (action, "*"):
                    entry = node.get(key)
                    if entry is not None:
                        if entry[1] & held:
                            return Decision(self, role, action, resource, Reason.FORBIDDEN)
                        if entry[0] & held:
                            granted = True
            at = self._shorter[at]
        if granted:
            return Decision(self, role, action, resource, Reason.GRANTED)
        return Decision(self, role, action, resource, self._default_deny(action, resource))

    def roles_that_may(self, action: str, resource: str) -> tuple[str, ...]:
        """The roles that are allowed it, in file order."""
        return tuple(r for r in self._parents if self.decide(r, action, resource).reason is Reason.GRANTED)

    def permissions_of(self, role: str) -> list[Permission]:
        """All rules that `role` holds, own and inherited, each once, in a fixed order. Empty for an unknown role."""
        held = self._ancestors(role)
        found = {Permission(rule.resource, rule.action, rule.effect) for rule in self.rules if rule.role in held}
        return sorted(found, key=lambda permission: (permission.resource, permission.action, permission.effect))

    def describe_roles(self) -> list[Role]:
        """Every role with what its own rows say, in file order."""
        own: dict[str, list[Permission]] = {role: [] for role in self._parents}
        for rule in self.rules:
            own[rule.role].append(Permission(rule.resource, rule.action, rule.effect))
        owners = set(self.owner_roles)
        return [Role(r, parents, tuple(own[r]), r in owners) for r, parents in self._parents.items()]

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

    def matching_rules(self, action: str, resource: str) -> list[Rule]:
        """Every rule on `resource` and `action`, whatever its role and effect."""
        entries = (node.get(key) for node in self._matching_nodes(resource) for key in {action, "*"})
        return [self.rules[position] for entry in entries if entry for position in entry[2]]

    def rules_on(self, resource: str) -> list[Rule]:
        """Every rule on `resource`, whatever its action, role and effect."""
        entries = (entry for node in self._matching_nodes(resource) for entry in node.values())
        return [self.rules[position] for entry in entries for position in entry[2]]

    def same_rule_of_ancestor(self, rule: Rule) -> Rule | None:
        """A rule of the same resource, action and effect that `rule.role` inherits; None where there is none."""
        starred = rule.resource.endswith("*")
        if starred:
            node = self._prefix_nodes[bisect_right(self._prefixes, rule.resource[:-1]) - 1]
        else:
            node = self._nodes[rule.resource]
        allow, deny, positions = node[rule.action]
        above = self._held[rule.role] & ~self._bits[rule.role]
        if not (allow if rule.effect is Effect.ALLOW else deny) & above:
            return None
        others = (self.rules[position] for position in positions)
        return next(o for o in others if o.effect is rule.effect and self._bits[o.role] & above)

    def _default_deny(self, action: str, resource: str) -> Reason:
        """Why nothing matched, as precisely as the policy's words allow."""
        kind = resource.split("/", 1)[0]
        if kind not in self.resource_types:
            named = any(len(self._prefixes[at]) > 0 for at in self._matching_prefixes(resource))
            if not named:
                return Reason.UNKNOWN_RESOURCE
        return Reason.NOT_GRANTED if action in self.actions else Reason.UNKNOWN_ACTION

    def _matching_nodes(self, resource: str) -> Iterator[_Node]:
        """The nodes of the resource, its parents, and the prefixes of it."""
        path = resource
        while path:
            if path in self._nodes:
                yield self._nodes[path]
            path = path.rpartition("/")[0]
        for at in self._matching_prefixes(resource):
            yield self._prefix_nodes[at]

    def _matching_prefixes(self, resource: str) -> Iterator[int]:
        """The positions of the prefixes that `resource` begins with, the longest first."""
        at = bisect_right(self._prefixes, resource) - 1
        while at >= 0:
            if resource.startswith(self._prefixes[at]):
                yield at
            at = self._shorter[at]

    def _ancestors(self, role: str) -> set[str]:
        """The role and all that it inherits from."""
        found: set[str] = set()
        todo = [role] if role in self._parents else []
        while todo:
            current = todo.pop()
            if current not in found:
                found.add(current)
                todo.extend(self._parents[current])
        return found

    def _bits_of(self, roles: Iterable[str]) -> int:
        return sum(self._bits[role] for role in roles)


def _enclosing(prefixes: list[str]) -> list[int]:
    """For each of the sorted prefixes, the position of the longest other one that it begins with; -1 for none."""
    result: list[int] = []
    for i, prefix in enumerate(prefixes):
        at = i - 1
        while at >= 0 and not prefix.startswith(prefixes[at]):
            at = result[at]
        result.append(at)
    return result
