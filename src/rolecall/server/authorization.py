"""AuthorizationService."""

from rolecall.authorizer import Authorizer
from rolecall.decision_log import DecisionLog
from rolecall.domain import ItemError, Question
from rolecall.errors import InvalidField
from rolecall.server import convert, fields
from rolecall.server.calls import Call
from rolecall.v1 import authorization_pb2 as pb

__all__ = ["AuthorizationService"]


class AuthorizationService:
    """Answers "may this subject do this action on this resource?"."""

    def __init__(self, authorizer: Authorizer, decisions: DecisionLog) -> None:
        self._authorizer = authorizer
        self._decisions = decisions

    def Check(self, request: pb.CheckRequest, call: Call) -> pb.CheckResponse:
        """Decide one question."""
        question = convert.question(request)
        revision = convert.at_least_revision(request.at_least_revision)
        caller = call.caller_in(request.organization)
        result = self._authorizer.check(caller, question, at_least_revision=revision, explained=request.explain)
        self._decisions.note(caller.organization, question, result, call.request_id)
        return convert.check_response(result)

    def BatchCheck(self, request: pb.BatchCheckRequest, call: Call) -> pb.BatchCheckResponse:
        """Decide many questions on one snapshot; a malformed one denies itself only."""
        convert.batch_size(len(request.checks))
        revision = convert.at_least_revision(request.at_least_revision)
        asked = [_question_or_error(item) for item in request.checks]
        questions = [item for item in asked if isinstance(item, Question)]
        caller = call.caller_in(request.organization)
        answer = self._authorizer.batch_check(caller, questions, at_least_revision=revision)
        for question, result in zip(questions, answer.results, strict=True):
            self._decisions.note(caller.organization, question, result, call.request_id)
        return convert.batch_response(asked, answer)

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


def _question_or_error(item: pb.BatchCheckItem) -> Question | ItemError:
    try:
        return convert.question(item)
    except InvalidField as error:
        return ItemError(error.field, error.message)
