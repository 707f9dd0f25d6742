"""AuthorizationService."""

from collections.abc import Callable

from rolecall.authorizer import Authorizer
from rolecall.decision_log import DecisionLog
from rolecall.domain import CheckResult
from rolecall.server import convert, fields
from rolecall.server.calls import Call
from rolecall.v1 import authorization_pb2 as pb

__all__ = ["AuthorizationService"]

# A longer batch would hold up everybody else's calls.
MAX_AT_ONCE = 100


class AuthorizationService:
    """Answers "may this subject do this action on this resource?"."""

    def __init__(self, authorizer: Authorizer, decisions: DecisionLog, require_patience: Callable[[], None]) -> None:
        """`require_patience` is called before what takes long, and raises where that may not be."""
        self._authorizer = authorizer
        self._decisions = decisions
        self._require_patience = require_patience

    def Check(self, request: pb.CheckRequest, call: Call) -> bytes:
        """Decide one question. The answer is serialized."""
        if request.explain:
            self._require_patience()
        question = convert.question(request)
        revision = convert.at_least_revision(request.at_least_revision)
        caller = call.caller_in(request.organization) if request.organization else call.caller
        result = self._authorizer.check(caller, question, at_least_revision=revision, explained=request.explain)
        if self._decisions.mode != "off":
            self._decisions.note(caller.organization, question, result, call.request_id)
        return convert.check_response(result)

    def BatchCheck(self, request: pb.BatchCheckRequest, call: Call) -> bytes:
        """Decide many questions on one snapshot; a malformed one denies itself only. The answer is serialized."""
        convert.batch_size(len(request.checks))
        if len(request.checks) > MAX_AT_ONCE:
            self._require_patience()
        revision = convert.at_least_revision(request.at_least_revision)
        questions, wrong = convert.questions(request.checks, self._require_patience)
        caller = call.caller_in(request.organization)
        answer = self._authorizer.batch_check(caller, questions, at_least_revision=revision)
        if self._decisions.mode != "off":
            for question, reason in zip(questions, answer.reasons, strict=True):
                result = CheckResult(reason, "", answer.revision, answer.policy_version)
                self._decisions.note(caller.organization, question, result, call.request_id)
        return convert.batch_response(answer, wrong)

    def ListPermissions(self, request: pb.ListPermissionsRequest, call: Call) -> pb.ListPermissionsResponse:
        """List the rules that a subject holds."""
        subject = convert.subject(request.subject)
        revision = convert.at_least_revision(request.at_least_revision)
        caller = call.caller_in(request.organization)
        page = fields.page(request)
        answer = self._authorizer.list_permissions(caller, subject, page, at_least_revision=revision)
        return convert.permissions_response(answer)

    def ListSubjects(self, request: pb.ListSubjectsRequest, call: Call) -> pb.ListSubjectsResponse:
        """List the members who may do an action on a resource."""
        action, resource = convert.action(request.action), convert.resource(request.resource)
        revision = convert.at_least_revision(request.at_least_revision)
        caller = call.caller_in(request.organization)
        page = fields.page(request)
        answer = self._authorizer.list_subjects(caller, action, resource, page, at_least_revision=revision)
        return convert.subjects_response(answer)
