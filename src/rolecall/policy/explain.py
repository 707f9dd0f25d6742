"""Explanations of decisions: which rule decided, and what would have to be different for another decision."""

from collections.abc import Collection, Sequence

from rolecall.domain import Effect, Explanation, Reason
from rolecall.domain.spelling import nearest
from rolecall.policy.expressions import Values
from rolecall.policy.index import Decision
from rolecall.policy.parsed import POLICY_FILE, Rule

__all__ = ["explain", "explain_without_rules", "join_names"]

# Maximum role names in a message; further ones are counted.
MAX_NAMED = 10


def explain(decision: Decision, values: Values | None = None) -> Explanation:
    """Explain by the rule that decided; for a denial also by the nearest miss and the roles that would pass.

    `values` are those that the decision's conditions were evaluated with.
    """
    role = decision.role
    wanted = f"`{decision.action}` on `{decision.resource}`"
    rule = decision.rule
    if rule is not None and decision.reason is Reason.GRANTED:
        chain = decision.role_chain
        through = f" through {' -> '.join(chain)}" if len(chain) > 1 else ""
        held = f", as the condition `{rule.condition}` holds" if rule.condition else ""
        summary = f"{role} may {wanted}{through}: {POLICY_FILE}:{rule.line} allows it{held}."
        return Explanation(summary, str(rule), POLICY_FILE, rule.line, chain, condition=rule.condition)
    passing, who = _passing(decision)
    if rule is not None:
        why, missing = _state(decision, rule.condition, values or {})
        summary = f"{role} may not {wanted}: {POLICY_FILE}:{rule.line} denies it{why}, and deny beats allow.{who}"
        return Explanation(
            summary,
            str(rule),
            POLICY_FILE,
            rule.line,
            decision.role_chain,
            roles_that_pass=passing,
            condition=rule.condition,
            missing_values=missing,
        )
    if unmet := _unmet_rule(decision):
        why, missing = _state(decision, unmet.condition, values or {})
        others = who if passing else ""
        summary = f"{role} may not {wanted}: {POLICY_FILE}:{unmet.line} doesn't allow it{why}.{others}"
        return Explanation(
            summary,
            nearest_miss=str(unmet),
            nearest_miss_line=unmet.line,
            roles_that_pass=passing,
            condition=unmet.condition,
            missing_values=missing,
        )
    near = _nearest_rule(decision)
    name = _nearest_name(decision)
    summary = f"{role} may not {wanted}: {_deny_reason(decision, name)}.{who}"
    miss, line = (str(near), near.line) if near else (name, 0)
    return Explanation(summary, nearest_miss=miss, nearest_miss_line=line, roles_that_pass=passing)


def explain_without_rules(decision: Decision) -> Explanation:
    """Explain by the roles that would pass, for a caller who may not see the policy: no rule, place or other name."""
    wanted = f"`{decision.action}` on `{decision.resource}`"
    if decision:
        return Explanation(f"{decision.role} may {wanted}.")
    passing, who = _passing(decision)
    return Explanation(f"{decision.role} may not {wanted}.{who}", roles_that_pass=passing)


def join_names(roles: Sequence[str], between: str = ", ") -> str:
    """Join the first ten names, and the number of further ones; `none` for no name."""
    more = f" and {len(roles) - MAX_NAMED} more" if len(roles) > MAX_NAMED else ""
    return between.join(roles[:MAX_NAMED]) + more or "none"


def _state(decision: Decision, condition: str, values: Values) -> tuple[str, tuple[str, ...]]:
    """Return a clause about a condition, empty without one, and the values that it lacks."""
    if not condition:
        return "", ()
    holds = decision.evaluate(condition)
    if holds is not None:
        return f", as the condition `{condition}` {'holds' if holds else 'does not hold'}", ()
    known = decision.policy.conditions[condition]
    missing = known.missing(values)
    why = f"the question lacks {', '.join(missing)}" if missing else known.problem(values) or "no value is known"
    return f", as the condition `{condition}` can't be evaluated ({why})", missing


def _unmet_rule(decision: Decision) -> Rule | None:
    """Return the rule that would allow it if its condition held: of the nearest role, then the most specific one."""
    if decision.reason is not Reason.CONDITION_NOT_MET:
        return None
    policy = decision.policy
    chains = {
        rule: policy.chain(decision.role, rule.role)
        for rule in policy.matching_rules(decision.action, decision.resource)
        if rule.condition and rule.effect is Effect.ALLOW
    }
    held = [rule for rule, chain in chains.items() if chain]
    return min(held, key=lambda rule: (len(chains[rule]), -len(rule.resource), rule.line))


def _passing(decision: Decision) -> tuple[tuple[str, ...], str]:
    """Return the roles that would pass, and a sentence about them."""
    passing = decision.policy.roles_that_may(decision.action, decision.resource, decision.evaluate)
    return passing, f" Roles that may: {join_names(passing)}." if passing else " No role may."


def _deny_reason(decision: Decision, name: str) -> str:
    """Return the reason of a default deny, with the most similar known name if the given one may be mistyped."""
    hint = f" (perhaps `{name}`)" if name else ""
    kind = decision.resource.partition("/")[0]
    match decision.reason:
        case Reason.UNKNOWN_ROLE:
            return f"the policy has no role `{decision.role}`{hint}"
        case Reason.UNKNOWN_RESOURCE:
            return f"the policy names no resource type `{kind}`{hint}"
        case Reason.UNKNOWN_ACTION:
            return f"the policy names no action `{decision.action}`{hint}"
        case _:
            return "no rule allows it"


def _nearest_name(decision: Decision) -> str:
    """Return the policy's name that is most similar to the unknown one; empty if no name is similar."""
    policy = decision.policy
    names: Collection[str]
    match decision.reason:
        case Reason.UNKNOWN_ROLE:
            word, names = decision.role, policy.roles
        case Reason.UNKNOWN_RESOURCE:
            word, names = decision.resource.partition("/")[0], sorted(policy.resource_types)
        case Reason.UNKNOWN_ACTION:
            word, names = decision.action, sorted(policy.actions)
        case _:
            return ""
    return nearest(word, names)


def _nearest_rule(decision: Decision) -> Rule | None:
    """Return an allow rule that would have matched for another role, else one of this role's on the same resource."""
    policy = decision.policy
    if decision.reason is not Reason.NOT_GRANTED:
        return None
    elsewhere = policy.matching_rules(decision.action, decision.resource)
    own = [rule for rule in policy.rules_on(decision.resource) if policy.chain(decision.role, rule.role)]
    for rules in (elsewhere, own):
        allowing = [rule for rule in rules if rule.effect is Effect.ALLOW]
        if allowing:
            return min(allowing, key=lambda rule: (-len(rule.resource), rule.line))
    return None
