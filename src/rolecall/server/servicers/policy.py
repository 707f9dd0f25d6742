"""PolicyService."""

from rolecall.domain import Role
from rolecall.policy import Finding, Severity
from rolecall.policy.reload import LivePolicy
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.authorization import Authorizer
from rolecall.v1 import policy_pb2 as pb

__all__ = ["PolicyService"]

MAX_FINDINGS = 100
MAX_PERMISSIONS = 1000


class PolicyService:
    """Shows the policy that is in force."""

    def __init__(self, authorizer: Authorizer, live: LivePolicy) -> None:
        self._authorizer = authorizer
        self._live = live

    def GetPolicy(self, request: pb.GetPolicyRequest, call: Call) -> pb.GetPolicyResponse:
        """Describe the policy in force, and why the folder's present state isn't."""
        self._authorizer.require(call.caller_in(request.organization), "view", "policy")
        state = self._live.in_force
        policy = pb.Policy(
            policy_version=state.policy.version,
            load_time=responses.timestamp(state.activation.time),
            role_count=len(state.policy.roles),
            rule_count=len(state.policy.rules),
            warnings=[_finding(finding) for finding in state.warnings[:MAX_FINDINGS]],
        )
        if state.refusal is None:
            return pb.GetPolicyResponse(policy=policy)
        refusal = pb.PolicyRefusal(
            policy_version=state.refusal.version,
            refuse_time=responses.timestamp(state.refusal.since),
            findings=[_finding(finding) for finding in state.refusal.findings[:MAX_FINDINGS]],
            finding_count=len(state.refusal.findings),
        )
        return pb.GetPolicyResponse(policy=policy, refusal=refusal)

    def ListRoles(self, request: pb.ListRolesRequest, call: Call) -> pb.ListRolesResponse:
        """List the roles with what their own rows say."""
        caller = call.caller_in(request.organization)
        answer = self._authorizer.list_roles(caller, requests.page(request))
        messages = []
        left = MAX_PERMISSIONS
        for role in answer.roles:
            messages.append(_role(role, left))
            left -= len(messages[-1].permissions)
        return pb.ListRolesResponse(
            roles=messages, policy_version=answer.policy_version, next_page_token=answer.next_page_token
        )


def _role(role: Role, at_most: int) -> pb.Role:
    return pb.Role(
        name=role.name,
        parents=role.parents,
        permissions=[responses.permission(permission) for permission in role.permissions[:at_most]],
        permission_count=len(role.permissions),
        updates_owners=role.updates_owners,
    )


def _finding(finding: Finding) -> pb.PolicyFinding:
    return pb.PolicyFinding(
        file=finding.file,
        line=finding.line,
        column=finding.column,
        message=finding.message,
        fix=finding.fix,
        blocking=finding.severity is Severity.ERROR,
    )
