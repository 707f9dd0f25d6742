"""PolicyService."""

from rolecall.authorizer import Authorizer
from rolecall.domain import Page
from rolecall.live_policy import LivePolicy
from rolecall.pages import Pages
from rolecall.policy import Finding, Severity
from rolecall.server import convert
from rolecall.server.calls import Call
from rolecall.v1 import policy_pb2 as pb

__all__ = ["PolicyService"]

MAX_FINDINGS = 100
MAX_PERMISSIONS = 1000


class PolicyService:
    """Shows the policy that is in force."""

    def __init__(self, authorizer: Authorizer, live: LivePolicy, pages: Pages) -> None:
        self._authorizer = authorizer
        self._live = live
        self._pages = pages

    def GetPolicy(self, request: pb.GetPolicyRequest, call: Call) -> pb.GetPolicyResponse:
        """Describe the policy in force, and why the folder's present state isn't."""
        self._authorizer.require(call.caller_in(request.organization), "view", "policy")
        state = self._live.in_force
        policy = pb.Policy(
            policy_version=state.policy.version,
            load_time=convert.timestamp(state.since),
            role_count=len(state.policy.roles),
            rule_count=len(state.policy.rules),
            warnings=[_finding(finding) for finding in state.warnings[:MAX_FINDINGS]],
        )
        if state.refusal is None:
            return pb.GetPolicyResponse(policy=policy)
        refusal = pb.PolicyRefusal(
            policy_version=state.refusal.version,
            refuse_time=convert.timestamp(state.refusal.since),
            findings=[_finding(finding) for finding in state.refusal.findings[:MAX_FINDINGS]],
            finding_count=len(state.refusal.findings),
        )
        return pb.GetPolicyResponse(policy=policy, refusal=refusal)

    def ListRoles(self, request: pb.ListRolesRequest, call: Call) -> pb.ListRolesResponse:
        """List the roles with what their own rows say."""
        page = Page(request.page_size, request.page_token)
        size = self._pages.size(page)
        caller = call.caller_in(request.organization)
        self._authorizer.require(caller, "view", "policy")
        policy = self._live.in_force.policy
        scope = ("ListRoles", caller.organization, policy.version)
        position = self._pages.position(scope, page)
        start = int(position[0]) if position else 0
        roles = policy.describe_roles()
        left = MAX_PERMISSIONS
        messages = []
        for role in roles[start : start + size]:
            shown = role.permissions[:left]
            left -= len(shown)
            messages.append(
                pb.Role(
                    name=role.name,
                    parents=role.parents,
                    permissions=[convert.permission(permission) for permission in shown],
                    permission_count=len(role.permissions),
                    updates_owners=role.updates_owners,
                )
            )
        more = start + size < len(roles)
        token = self._pages.token(scope, [str(start + size)]) if more else ""
        return pb.ListRolesResponse(roles=messages, policy_version=policy.version, next_page_token=token)


def _finding(finding: Finding) -> pb.PolicyFinding:
    return pb.PolicyFinding(
        file=finding.file,
        line=finding.line,
        column=finding.column,
        message=finding.message,
        fix=finding.fix,
        blocking=finding.severity is Severity.ERROR,
    )
