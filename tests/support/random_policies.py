"""Random policies and restrictions, and what their patterns cover."""

from dataclasses import dataclass

from hypothesis import strategies as st

from rolecall.domain import Effect, Permission, Restriction
from rolecall.policy import Policy, Rule
from rolecall.policy.parsed import Inheritance

__all__ = ["ROLES", "RandomPolicy", "matches", "pairs", "random_policies", "restrictions"]

ALLOW, DENY = Effect.ALLOW, Effect.DENY
ROLES = ("low", "middle", "other", "high")

_paths = st.lists(st.sampled_from(["a", "ab", "b", "a-b"]), min_size=1, max_size=3).map("/".join)
patterns = st.one_of(_paths, _paths.map(lambda path: f"{path}*"), _paths.map(lambda path: f"{path}/*"), st.just("*"))
actions = st.sampled_from(["view", "edit", "*"])
pairs = st.tuples(patterns, actions)
restrictions = st.one_of(
    st.none(),
    st.lists(pairs, min_size=1, max_size=4, unique=True).map(
        lambda pairs: Restriction(tuple(Permission(resource, action, ALLOW) for resource, action in pairs))
    ),
)


@dataclass(frozen=True)
class RandomPolicy:
    """A small policy, as rows and compiled."""

    rules: tuple[Rule, ...]
    inheritances: tuple[Inheritance, ...]

    @property
    def policy(self) -> Policy:
        """The policy that the rows make."""
        return Policy(self.rules, self.inheritances, "random")

    def held_by(self, role: str) -> list[Rule]:
        """The rules of a role, inherited ones too."""
        parents = [inheritance.parent for inheritance in self.inheritances if inheritance.role == role]
        own = [rule for rule in self.rules if rule.role == role]
        return own + [rule for parent in parents for rule in self.held_by(parent)]


@st.composite
def random_policies(draw: st.DrawFn) -> RandomPolicy:
    """A policy in which every role has a rule, and inherits from earlier ones only."""
    keys = st.tuples(st.sampled_from(ROLES), patterns, actions)
    effects = st.sampled_from([ALLOW, ALLOW, ALLOW, DENY])
    rows = draw(st.dictionaries(keys, effects, max_size=10))
    missing = {(role, "idle", "idle"): ALLOW for role in ROLES}
    below = [(child, parent) for i, parent in enumerate(ROLES) for child in ROLES[i + 1 :]]
    links = draw(st.lists(st.sampled_from(below), max_size=4, unique=True))
    return RandomPolicy(
        tuple(Rule(*key, effect, line) for line, (key, effect) in enumerate((missing | rows).items())),
        tuple(Inheritance(child, parent, 100 + line) for line, (child, parent) in enumerate(links)),
    )


def matches(pattern: str, resource: str) -> bool:
    """The result of the model's matcher for a rule's resource."""
    return resource.startswith(pattern[:-1]) if pattern[-1] == "*" else f"{resource}/".startswith(f"{pattern}/")
