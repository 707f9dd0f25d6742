"""Between the messages of AuthorizationService and domain values. What comes in is validated here, field by field."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from rolecall import addresses, credentials
from rolecall.authorizer import BatchAnswer, PermissionsAnswer, SubjectsAnswer
from rolecall.domain import (
    CheckResult,
    Effect,
    Explanation,
    ItemError,
    Question,
    Reason,
    Subject,
    SubjectKind,
)
from rolecall.errors import BatchSize, InvalidField
from rolecall.policy import asked_problem
from rolecall.server import fields
from rolecall.v1 import authorization_pb2 as pb

__all__ = [
    "action",
    "at_least_revision",
    "batch_response",
    "batch_size",
    "check_response",
    "permissions_response",
    "question",
    "questions",
    "resource",
    "subject",
    "subjects_response",
]

MAX_SUBJECT = 330
MAX_BATCH = 1000
# So many texts that were found good are remembered: subjects, who may be many, of at most 330 characters, and words of
# at most 1,280.
MAX_SUBJECTS = 32_768
MAX_WORDS = 8192
MAX_ANSWERS = 4096

_ADDRESS_SHAPE = re.compile(r"[^\s@]+@[^\s@]+")
_FORMS = "`user:ann@acme.io`, `user:ID`, `token:ID`, `role:NAME`, or a bare address"

_DECISIONS = {Effect.ALLOW: pb.DECISION_ALLOW, Effect.DENY: pb.DECISION_DENY}
_REASONS = {reason: pb.Reason.Value(f"REASON_{reason.name}") for reason in Reason}


def _part(result: pb.BatchCheckResult) -> bytes:
    return pb.BatchCheckResponse(results=[result]).SerializeToString()


# A reason's answer in a batch, serialized.
_RESULTS = {
    reason: _part(pb.BatchCheckResult(decision=_DECISIONS[CheckResult(reason).decision], reason=number))
    for reason, number in _REASONS.items()
}


def question(message: pb.CheckRequest | pb.BatchCheckItem) -> Question:
    """The question that `message` asks. Raises `InvalidField` for the first field at fault."""
    named = message.subject
    asked = subject(named) if named or not message.subject_token else _presented(message.subject_token)
    words = _words(message.action, message.resource)
    return Question(asked, *words)


def questions(
    messages: Iterable[pb.BatchCheckItem], require_patience: Callable[[], None]
) -> tuple[list[Question], dict[int, ItemError]]:
    """The questions that are well-formed, and by their places what is wrong with the others.

    `require_patience` is called before what takes long: addresses beyond ASCII.
    """
    found: list[Question] = []
    wrong: dict[int, ItemError] = {}
    # As `question`, without its call: this is where a batch takes its time.
    new = tuple.__new__
    for place, message in enumerate(messages):
        try:
            named = message.subject
            if not named.isascii():
                require_patience()
            asked = subject(named) if named or not message.subject_token else _presented(message.subject_token)
            action_, resource_ = _words(message.action, message.resource)
            found.append(new(Question, (asked, action_, resource_)))
        except InvalidField as error:
            wrong[place] = ItemError(error.field, error.message)
    return found, wrong


@lru_cache(MAX_SUBJECTS)
def subject(text: str) -> Subject:
    """Who `text` names. Raises `InvalidField`."""
    if not text:
        raise InvalidField(f"subject is not set: say who is asked about, as {_FORMS}.", field="subject")
    if len(text) > MAX_SUBJECT:
        raise InvalidField(f"subject has {len(text)} characters, more than {MAX_SUBJECT}: shorten it.", field="subject")
    if "*" in text or not text.isprintable():
        raise InvalidField(f"subject holds a `*` or an invisible character: write {_FORMS}.", field="subject")
    if credentials.holds_one(text):
        message = "subject holds a whole token: pass that as subject_token, or name it by its id, as in `token:ID`."
        raise InvalidField(message, field="subject")
    form, colon, value = text.partition(":")
    if not colon:
        form, value = "user", text
        if "@" not in text:
            raise InvalidField(f"subject `{text}` has no known form: write {_FORMS}.", field="subject")
    if form not in ("user", "token", "role") or not value:
        raise InvalidField(f"subject `{text}` has no known form: write {_FORMS}.", field="subject")
    if form == "user" and "@" in value:
        if not _ADDRESS_SHAPE.fullmatch(value):
            raise InvalidField(f"subject `{text}` is no address: write {_FORMS}.", field="subject")
        return Subject(SubjectKind.EMAIL, addresses.key_of(value, "subject"))
    kinds = {"user": SubjectKind.USER_ID, "token": SubjectKind.TOKEN_ID, "role": SubjectKind.ROLE}
    return Subject(kinds[form], value)


def action(text: str) -> str:
    """The action in `text`. Raises `InvalidField`."""
    return _asked("action", text)


def resource(text: str) -> str:
    """The resource in `text`. Raises `InvalidField`."""
    return _asked("resource", text)


def at_least_revision(value: int) -> int:
    """The revision to wait for. Raises `InvalidField`."""
    if value < 0:
        message = f"at_least_revision is {value}: give a revision that an answer gave, or 0 for any."
        raise InvalidField(message, field="at_least_revision")
    return value


def batch_size(size: int) -> None:
    """Raise `BatchSize` where so many questions can't be asked at once."""
    if not 1 <= size <= MAX_BATCH:
        raise BatchSize(
            f"checks has {size} questions; it must have 1 to {MAX_BATCH}: split the batch, or ask something.",
            field="checks",
            size=str(size),
            maximum=str(MAX_BATCH),
        )


def check_response(result: CheckResult) -> bytes:
    """One answer, serialized."""
    plain = _check_response(result.reason, result.role, result.revision, result.policy_version)
    if result.explanation is None:
        return plain
    # A message is the concatenation of its parts.
    return plain + pb.CheckResponse(explanation=_explanation(result.explanation)).SerializeToString()


@lru_cache(MAX_ANSWERS)
def _check_response(reason: Reason, role: str, revision: int, policy_version: str) -> bytes:
    """They are few between two changes."""
    decision = _DECISIONS[CheckResult(reason).decision]
    answer = pb.CheckResponse(
        decision=decision, reason=_REASONS[reason], role=role, revision=revision, policy_version=policy_version
    )
    return answer.SerializeToString()


def batch_response(answer: BatchAnswer, wrong: dict[int, ItemError]) -> bytes:
    """The answers in the order of the questions, serialized; what is malformed, by its place, has denied itself.

    A message is the concatenation of its parts, so those that recur are made once.
    """
    parts = [_RESULTS[reason] for reason in answer.reasons]
    for place in sorted(wrong):
        parts.insert(place, _batch_error(wrong[place]))
    rest = pb.BatchCheckResponse(revision=answer.revision, policy_version=answer.policy_version)
    return b"".join([*parts, rest.SerializeToString()])


def permissions_response(answer: PermissionsAnswer) -> pb.ListPermissionsResponse:
    """A page of permissions as a message."""
    return pb.ListPermissionsResponse(
        role=answer.role,
        permissions=[fields.permission(item) for item in answer.permissions],
        revision=answer.revision,
        policy_version=answer.policy_version,
        next_page_token=answer.next_page_token,
    )


def subjects_response(answer: SubjectsAnswer) -> pb.ListSubjectsResponse:
    """A page of members as a message."""
    return pb.ListSubjectsResponse(
        members=[fields.member(item) for item in answer.members],
        revision=answer.revision,
        policy_version=answer.policy_version,
        next_page_token=answer.next_page_token,
    )


def _presented(text: str) -> Subject:
    """The holder of a presented token. A malformed one is nobody's."""
    token = credentials.parse(text)
    return Subject(SubjectKind.PRESENTED, token.id, token.digest) if token else Subject(SubjectKind.PRESENTED, "")


@lru_cache(MAX_WORDS)
def _words(action_text: str, resource_text: str) -> tuple[str, str]:
    return action(action_text), resource(resource_text)


def _asked(field: str, text: str) -> str:
    if problem := asked_problem(field, text):
        raise InvalidField(problem, field=field)
    fields.require_no_credential(text, field)
    return text


def _batch_error(item: ItemError) -> bytes:
    error = pb.CheckError(field=item.field, message=item.message)
    return _part(pb.BatchCheckResult(decision=pb.DECISION_DENY, error=error))


def _explanation(value: Explanation) -> pb.Explanation:
    return pb.Explanation(
        summary=value.summary,
        rule=value.rule,
        file=value.file,
        line=value.line,
        role_chain=value.role_chain,
        nearest_miss=value.nearest_miss,
        nearest_miss_line=value.nearest_miss_line,
        roles_that_pass=value.roles_that_pass,
    )
