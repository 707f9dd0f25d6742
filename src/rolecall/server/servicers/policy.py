"""PolicyService."""

from rolecall.domain import Role
from rolecall.policy import Finding, Severity
from rolecall.policy.reload import Refusal
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.authorization import Authorizer
from rolecall.services.policies import Policies
from rolecall.storage.policies import Activation, ProcessBehind
from rolecall.v1 import policy_pb2 as pb

__all__ = ["PolicyService"]

MAX_FINDINGS = 100
MAX_PERMISSIONS = 1000
MAX_PROCESSES = 100


class PolicyService:
    """Shows the policy that is in force, and validates others."""

    def __init__(self, authorizer: Authorizer, policies: Policies) -> None:
        self._authorizer = authorizer
        self._policies = policies

    def GetPolicy(self, request: pb.GetPolicyRequest, call: Call) -> pb.GetPolicyResponse:
        """Describe the served policy, the one in force, the processes behind it, and why the folder isn't in force."""
        state = self._policies.get(call.caller_in(request.organization))
        served = state.served
        policy = pb.Policy(
            policy_version=served.policy.version,
            load_time=responses.timestamp(served.load_time),
            role_count=len(served.policy.roles),
            rule_count=len(served.policy.rules),
            warnings=[_finding(finding) for finding in served.warnings[:MAX_FINDINGS]],
            activate_time=responses.timestamp(served.activation.time),
            activator=served.activation.activator,
        )
        refusal = _refusal(served.refusal) if served.refusal else None
        ahead = _in_force(state.ahead, state.problem) if state.ahead else None
        behind = [_behind(process) for process in state.behind[:MAX_PROCESSES]]
        return pb.GetPolicyResponse(policy=policy, refusal=refusal, ahead=ahead, process=state.process, behind=behind)

    def ValidatePolicy(self, request: pb.ValidatePolicyRequest, call: Call) -> pb.ValidatePolicyResponse:
        """Say whether the files would be accepted."""
        caller = call.caller_in(request.organization)
        validated = self._policies.validate(caller, requests.policy_files(request))
        return pb.ValidatePolicyResponse(
            accepted=validated.accepted,
            policy_version=validated.build.version,
            findings=[_finding(finding) for finding in validated.findings[:MAX_FINDINGS]],
            finding_count=len(validated.findings),
            test_count=validated.build.tests,
            comparison_count=validated.build.comparisons,
        )

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


def _refusal(refusal: Refusal) -> pb.PolicyRefusal:
    return pb.PolicyRefusal(
        policy_version=refusal.version,
        refuse_time=responses.timestamp(refusal.since),
        findings=[_finding(finding) for finding in refusal.findings[:MAX_FINDINGS]],
        finding_count=len(refusal.findings),
    )


def _in_force(activation: Activation, problem: str) -> pb.PolicyInForce:
    return pb.PolicyInForce(
        policy_version=activation.version,
        activate_time=responses.timestamp(activation.time),
        activator=activation.activator,
        problem=problem,
    )


def _behind(process: ProcessBehind) -> pb.ProcessBehind:
    return pb.ProcessBehind(
        process=process.process,
        policy_version=process.version,
        problem=process.problem,
        try_time=responses.timestamp(process.time),
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
