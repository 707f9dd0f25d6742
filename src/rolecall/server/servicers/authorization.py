"""AuthorizationService."""

from rolecall.audit.decision_log import DecisionLog
from rolecall.domain import Caller, CheckResult, Question
from rolecall.identity.batch_loader import Miss
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.authorization import Authorizer, BatchAnswer
from rolecall.v1 import authorization_pb2 as pb

__all__ = ["AuthorizationService"]

# Longest batch that the polling thread answers; a longer one would delay all other calls.
MAX_POLLED_BATCH = 100


class AuthorizationService:
    """Answers "may this subject do this action on this resource?".

    `Check` and `BatchCheck` may block. `check_cached` and `batch_check_cached` never do: they return the serialized
    answer, a miss, or None for a request that takes too long for the thread that polls. A polled batch isn't
    searched for values of conditions where the policy has none: that takes a tenth of the time of a decision.
    """

    def __init__(self, authorizer: Authorizer, decisions: DecisionLog) -> None:
        self._authorizer = authorizer
        self._decisions = decisions

    def Check(self, request: pb.CheckRequest, call: Call) -> bytes:
        """Decide one question. The answer is serialized."""
        return _wait(self._check(request, call))

    def check_cached(self, request: pb.CheckRequest, call: Call) -> bytes | Miss[bytes] | None:
        """Decide one question from the cache; None where it is to be explained, or an address needs IDNA."""
        if request.explain or not request.subject.isascii():
            return None
        return self._check(request, call)

    def BatchCheck(self, request: pb.BatchCheckRequest, call: Call) -> bytes:
        """Decide many questions on one snapshot; a malformed one denies itself only. The answer is serialized."""
        answer = self._batch_check(request, call)
        assert answer is not None  # noqa: S101 - for the type checker: only `ascii_only` gives None
        return _wait(answer)

    def batch_check_cached(self, request: pb.BatchCheckRequest, call: Call) -> bytes | Miss[bytes] | None:
        """Decide many questions from the cache; None for a long batch, or where an address needs IDNA."""
        if len(request.checks) > MAX_POLLED_BATCH:
            return None
        return self._batch_check(request, call, ascii_only=True)

    def _check(self, request: pb.CheckRequest, call: Call) -> bytes | Miss[bytes]:
        question = requests.question(request)
        revision = requests.at_least_revision(request.at_least_revision)
        caller = call.caller_in(request.organization) if request.organization else call.caller
        result = self._authorizer.check_cached(caller, question, at_least_revision=revision, explained=request.explain)
        if isinstance(result, Miss):
            return result.then(lambda loaded: self._check_response(caller, question, loaded, call))
        return self._check_response(caller, question, result, call)

    def _check_response(self, caller: Caller, question: Question, result: CheckResult, call: Call) -> bytes:
        if self._decisions.mode != "off":
            self._decisions.note(caller.organization, question, result, call.call_id)
        return responses.check_response(result)

    def _batch_check(
        self, request: pb.BatchCheckRequest, call: Call, *, ascii_only: bool = False
    ) -> bytes | Miss[bytes] | None:
        requests.batch_size(len(request.checks))
        revision = requests.at_least_revision(request.at_least_revision)
        may_be_large = request.ByteSize() > requests.MAX_GIVEN_BYTES
        with_given = not ascii_only or self._authorizer.has_conditions or may_be_large
        given = requests.given(request) if with_given else None
        parsed = requests.questions(request.checks, requests.scope(request.scope), given, ascii_only=ascii_only)
        if parsed is None:
            return None
        questions, malformed = parsed
        caller = call.caller_in(request.organization)

        def respond(answer: BatchAnswer) -> bytes:
            if self._decisions.mode != "off":
                for question, reason in zip(questions, answer.reasons, strict=True):
                    result = CheckResult(reason, "", answer.revision, answer.policy_version)
                    self._decisions.note(caller.organization, question, result, call.call_id)
            return responses.batch_response(answer, malformed)

        answer = self._authorizer.batch_check_cached(caller, questions, at_least_revision=revision)
        return answer.then(respond) if isinstance(answer, Miss) else respond(answer)

    def ListPermissions(self, request: pb.ListPermissionsRequest, call: Call) -> pb.ListPermissionsResponse:
        """List the rules that a subject holds."""
        subject = requests.subject(request.subject)
        revision = requests.at_least_revision(request.at_least_revision)
        caller = call.caller_in(request.organization)
        page = requests.page(request)
        scope = requests.scope(request.scope)
        answer = self._authorizer.list_permissions(caller, subject, page, scope=scope, at_least_revision=revision)
        return responses.permissions_response(answer)

    def PlanResources(self, request: pb.PlanResourcesRequest, call: Call) -> pb.PlanResourcesResponse:
        """Say on which resources of a type a subject may do an action."""
        subject = requests.subject_of(request)
        action, resource_type = requests.action(request.action), requests.resource_type(request.resource_type)
        revision = requests.at_least_revision(request.at_least_revision)
        caller = call.caller_in(request.organization)
        scope = requests.scope(request.scope)
        plan = self._authorizer.plan_resources(
            caller, subject, action, resource_type, scope=scope, at_least_revision=revision
        )
        return responses.plan_response(plan)

    def ListSubjects(self, request: pb.ListSubjectsRequest, call: Call) -> pb.ListSubjectsResponse:
        """List the members who may do an action on a resource."""
        action, resource = requests.action(request.action), requests.resource(request.resource)
        revision = requests.at_least_revision(request.at_least_revision)
        caller = call.caller_in(request.organization)
        page = requests.page(request)
        scope = requests.scope(request.scope)
        answer = self._authorizer.list_subjects(caller, action, resource, page, scope=scope, at_least_revision=revision)
        return responses.subjects_response(answer)

    def ListResources(self, request: pb.ListResourcesRequest, call: Call) -> pb.ListResourcesResponse:
        """List the named resources of a type on which a subject may do an action."""
        subject = requests.subject(request.subject)
        action, resource_type = requests.action(request.action), requests.resource_type(request.resource_type)
        revision = requests.at_least_revision(request.at_least_revision)
        caller = call.caller_in(request.organization)
        page = requests.page(request)
        answer = self._authorizer.list_resources(
            caller, subject, action, resource_type, page, at_least_revision=revision
        )
        return responses.resources_response(answer)


def _wait(answer: bytes | Miss[bytes]) -> bytes:
    return answer.wait() if isinstance(answer, Miss) else answer
