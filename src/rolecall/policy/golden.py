"""Hold a policy against policy_test.csv: the admin's own statement of what each role may and may not do."""

from rolecall.domain import Reason
from rolecall.policy.compiled import Policy
from rolecall.policy.source import TEST_FILE, Source
from rolecall.policy.words import asked_problem

__all__ = ["check_cases"]


def check_cases(source: Source, policy: Policy) -> None:
    """Add a finding for every expectation that the policy doesn't meet, or that names what can't be asked."""
    for case in source.cases:
        decision = policy.decide(case.role, case.action, case.resource)
        question = f"`{case.role}` `{case.resource} {case.action}`"
        if decision.reason is Reason.UNKNOWN_ROLE:
            fix = "Correct the name, or drop the test with the role."
            source.add(TEST_FILE, case.line, 1, f"The policy has no role `{case.role}`.", fix)
        elif problem := asked_problem("resource", case.resource) or asked_problem("action", case.action):
            source.add(TEST_FILE, case.line, 1, f"This can't be asked: {problem} ({question})", "Correct the row.")
        elif decision.decision is not case.expected:
            rule = decision.rule
            why = f"by line {rule.line}, `{rule}`" if rule else f"because {decision.reason.value}"
            message = f"{question} should be {case.expected}, but is {decision.decision} {why}."
            source.add(TEST_FILE, case.line, 1, message, "Correct policy.csv, or this expectation.")
