"""Request messages to domain values. Every field is validated here; a bad one raises `InvalidField`."""

import re
import uuid
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from rolecall.credentials import token_format
from rolecall.credentials.token_format import require_no_credential
from rolecall.domain import (
    NOTHING_GIVEN,
    ORGANIZATION,
    Address,
    Effect,
    ItemError,
    Page,
    Permission,
    Principal,
    PrincipalKind,
    Question,
    Restriction,
    Subject,
    SubjectKind,
)
from rolecall.errors import BatchSize, InvalidField
from rolecall.formats import display_names, email_address, external_ids, slugs
from rolecall.formats.networks import parse_address
from rolecall.policy import (
    MODEL_FILE,
    POLICY_FILE,
    TEST_FILE,
    PolicyFiles,
    pattern_problem,
    request_problem,
    value_problem,
)
from rolecall.services.principals import NamedPrincipal
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import policy_pb2, shared_pb2

__all__ = [
    "action",
    "at_least_revision",
    "batch_size",
    "credential_id",
    "display_name",
    "duration",
    "external_id",
    "is_id",
    "mask_paths",
    "member",
    "note",
    "page",
    "policy_files",
    "principal",
    "question",
    "questions",
    "request_id",
    "resource",
    "resource_type",
    "restriction",
    "role",
    "scope",
    "secret",
    "slug",
    "subject",
    "subject_of",
    "text",
    "timestamp",
    "user_id",
]

MAX_SUBJECT = 330
MAX_BATCH = 1000
# The longest form of an IPv6 address, and the name of a link-local one's interface.
MAX_ADDRESS = 64
# Sizes of the caches of parsed texts: subjects, of at most 330 characters, and pairs of action and resource, of at most
# 1,280.
CACHED_SUBJECTS = 32_768
CACHED_PAIRS = 8192
_ADDRESS_SHAPE = re.compile(r"[^\s@]+@[^\s@]+")
_FORMS = "`user:ann@acme.io`, `user:ID` (a user id or an external id), `token:ID`, `role:NAME`, or a bare address"
_MEMBER_FORMS = "`user:ann@acme.io`, `user:ID` (a user id or an external id), or a bare address"
MAX_PERMISSIONS = 100
# So that a page of a thousand tokens, or of entries about them, fits into a message.
MAX_RESTRICTION_BYTES = 2048
MAX_ID = 64
MAX_NOTE = 500
# Of the values for conditions in one question.
MAX_GIVEN_BYTES = 65_536
MAX_GIVEN_DEPTH = 32
MAX_ROLE = 64
# As long as an address may be.
MAX_TEXT = 254
# What a Timestamp and a Duration may hold: the years 1 to 9999, 10,000 years.
_SECONDS = range(-62_135_596_800, 253_402_300_800)
_DURATION_SECONDS = 315_576_000_000


def question(message: pb.CheckRequest | pb.BatchCheckItem) -> Question:
    """Parse a question. Raises `InvalidField` for the first field at fault."""
    asked = subject_of(message)
    pair = _action_and_resource(message.action, message.resource)
    named = message.scope
    return Question(asked, *pair, scope(named) if named else ORGANIZATION, given(message))


def subject_of(message: pb.CheckRequest | pb.BatchCheckItem | pb.PlanResourcesRequest) -> Subject:
    """Parse the subject that a message names or presents a token of. Raises `InvalidField`."""
    named = message.subject
    return subject(named) if named else _presented(message)


def questions(
    messages: Iterable[pb.BatchCheckItem],
    default_scope: str = ORGANIZATION,
    default_given: Mapping[str, Any] | None = NOTHING_GIVEN,
    *,
    ascii_only: bool = False,
) -> tuple[list[Question], dict[int, ItemError]] | None:
    """The well-formed questions, and the errors of the others by their places.

    `default_scope` and `default_given`: of those without their own. With None for the latter, values for conditions are
    left out: looking for them takes a third as long as all the rest.
    With `ascii_only`, None where a subject is beyond ASCII: its address takes long to parse.
    Equals `question` for each, written out as batches spend their time here.
    """
    found: list[Question] = []
    wrong: dict[int, ItemError] = {}
    new = tuple.__new__
    for place, message in enumerate(messages):
        try:
            named = message.subject
            if ascii_only and not named.isascii():
                return None
            asked = subject(named) if named else _presented(message)
            action_, resource_ = _action_and_resource(message.action, message.resource)
            scoped = message.scope
            scope_ = scope(scoped) if scoped else default_scope
            given_ = NOTHING_GIVEN if default_given is None else given(message, default_given)
            found.append(new(Question, (asked, action_, resource_, scope_, given_)))
        except InvalidField as error:
            wrong[place] = ItemError(error.field, error.message)
    return found, wrong


def given(
    message: pb.CheckRequest | pb.BatchCheckItem | pb.BatchCheckRequest, default: Mapping[str, Any] = NOTHING_GIVEN
) -> Mapping[str, Any]:
    """The values for conditions that a request gives, else those of `default`. Raises `InvalidField`."""
    has = message.HasField
    names = [
        name for name in ("context", "resource_properties", "action_properties", "subject_properties") if has(name)
    ]
    if not names:
        return default
    found = dict(default)
    size = 0
    for name in names:
        struct: Struct = getattr(message, name)
        size += struct.ByteSize()
        if size > MAX_GIVEN_BYTES:
            more = " and the fields before it have" if size > struct.ByteSize() else " has"
            raise InvalidField(
                f"{name}{more} {size} bytes, more than {MAX_GIVEN_BYTES}: give only what conditions need.", field=name
            )
        found[name.replace("_", ".")] = _object(struct, name, MAX_GIVEN_DEPTH)
    return found


def _object(struct: Struct, field: str, levels: int) -> dict[str, Any]:
    _require_level(levels, field)
    return {key: _plain(value, field, levels) for key, value in struct.fields.items()}


def _require_level(levels: int, field: str) -> None:
    if not levels:
        message = f"{field} is nested more than {MAX_GIVEN_DEPTH} levels deep: give only what conditions need."
        raise InvalidField(message, field=field)


def _plain(value: Value, field: str, levels: int) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _object(value.struct_value, field, levels - 1)
    if kind == "list_value":
        _require_level(levels - 1, field)
        return [_plain(each, field, levels - 1) for each in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


@lru_cache(CACHED_SUBJECTS)
def subject(text: str) -> Subject:
    """Parse the subject that `text` names. Raises `InvalidField`."""
    if not text:
        raise InvalidField(f"subject is not set: name the subject, as {_FORMS}.", field="subject")
    if len(text) > MAX_SUBJECT:
        raise InvalidField(f"subject has {len(text)} characters, more than {MAX_SUBJECT}: shorten it.", field="subject")
    if "*" in text or not text.isprintable():
        raise InvalidField(f"subject holds a `*` or an invisible character: write {_FORMS}.", field="subject")
    if token_format.contains_credential(text):
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
        return Subject(SubjectKind.EMAIL, email_address.key_of(value, "subject"))
    if form == "token" and not token_format.is_id(value):
        message = f"subject `{text}` is no token: write `token:` and the 22 letters and digits between its underscores."
        raise InvalidField(message, field="subject")
    if form == "role" and value_problem("role", value):
        message = f"subject `{text}` is no role: write `role:` and a letter, then letters, digits, `_`, `.` and `-`."
        raise InvalidField(message, field="subject")
    if form == "user" and not token_format.is_id(value):
        return Subject(SubjectKind.EXTERNAL_ID, external_ids.parse(value, "subject"))
    kinds = {"user": SubjectKind.USER_ID, "token": SubjectKind.TOKEN_ID, "role": SubjectKind.ROLE}
    return Subject(kinds[form], value)


def action(text: str) -> str:
    """The action in `text`. Raises `InvalidField`."""
    return _valid_word("action", text)


def resource(text: str) -> str:
    """The resource in `text`. Raises `InvalidField`."""
    return _valid_word("resource", text)


@lru_cache(CACHED_PAIRS)
def scope(text: str, field: str = "scope") -> str:
    """The scope in `text`, empty for the whole organization. Raises `InvalidField`."""
    if text and (problem := request_problem("scope", text)):
        raise InvalidField(problem, field=field)
    require_no_credential(text, field)
    return text


def principal(text: str, field: str) -> NamedPrincipal:
    """The member, team or organization token that `text` names. Raises `InvalidField`."""
    kind, colon, team_id = text.partition(":")
    if colon and kind == PrincipalKind.TEAM.value:
        return Principal(PrincipalKind.TEAM, slugs.parse(team_id, field, "a team's id"))
    named = _subject_in(text, field, "principal", f"{_MEMBER_FORMS}, `team:ID` or `token:ID`")
    if named.kind is SubjectKind.ROLE:
        raise InvalidField("principal is a role: name a member, a team or a token.", field=field)
    return named


def member(text: str, field: str) -> Subject:
    """The member that `text` names. Raises `InvalidField`."""
    named = _subject_in(text, field, "member", _MEMBER_FORMS)
    if named.kind in (SubjectKind.ROLE, SubjectKind.TOKEN_ID):
        raise InvalidField(f"member `{text}` is none: write {_MEMBER_FORMS}.", field=field)
    return named


def _subject_in(text: str, field: str, name: str, forms: str) -> Subject:
    """The subject in `text`. Raises `InvalidField` for `field`, about what has this name and these forms."""
    try:
        return subject(text)
    except InvalidField as error:
        message = f"{name}{error.message.removeprefix('subject')}".replace(_FORMS, forms)
        raise InvalidField(message, field=field) from None


def note(text: str, field: str) -> str:
    """Validate a note; empty for none. Raises `InvalidField` for `field`."""
    if len(text) > MAX_NOTE:
        raise InvalidField(f"note has {len(text)} characters, more than {MAX_NOTE}: shorten it.", field=field)
    if not text.isprintable():
        raise InvalidField("note holds a control character or an invisible one: remove it.", field=field)
    require_no_credential(text, field)
    return text


def resource_type(text: str) -> str:
    """The type of resources in `text`. Raises `InvalidField`."""
    if not text or "/" in text:
        message = f"resource_type {'holds a slash' if text else 'is not set'}: name only the type, as in `secrets`."
        raise InvalidField(message, field="resource_type")
    if problem := request_problem("resource", text):
        raise InvalidField(f"resource_type{problem.removeprefix('resource')}", field="resource_type")
    require_no_credential(text, "resource_type")
    return text


def at_least_revision(value: int) -> int:
    """The revision to wait for. Raises `InvalidField`."""
    if value < 0:
        message = f"at_least_revision is {value}: give a revision that an answer gave, or 0 for any."
        raise InvalidField(message, field="at_least_revision")
    return value


def batch_size(size: int) -> None:
    """Raise `BatchSize` unless a batch may have `size` questions."""
    if not 1 <= size <= MAX_BATCH:
        raise BatchSize(
            f"checks has {size} questions; it must have 1 to {MAX_BATCH}: split the batch, or ask something.",
            field="checks",
            size=str(size),
            maximum=str(MAX_BATCH),
        )


def _presented(message: pb.CheckRequest | pb.BatchCheckItem | pb.PlanResourcesRequest) -> Subject:
    """The subject of a presented token. A malformed one matches no token, and so does an empty one."""
    if message.WhichOneof("about") != "subject_token":
        return subject("")
    address = _address(message.subject_address)
    token = token_format.parse(message.subject_token)
    if token is None:
        return Subject(SubjectKind.PRESENTED, "")
    return Subject(SubjectKind.PRESENTED, token.id, token.digest, address)


def _address(text: str) -> Address | None:
    """The IP address in `text`; None for none. Raises `InvalidField`."""
    if not text:
        return None
    address = parse_address(text) if len(text) <= MAX_ADDRESS else None
    if address is None:
        message = "subject_address is no IP address: write it as `192.0.2.7` or `2001:db8::7`, without a port."
        raise InvalidField(message, field="subject_address")
    return address


@lru_cache(CACHED_PAIRS)
def _action_and_resource(action_text: str, resource_text: str) -> tuple[str, str]:
    return action(action_text), resource(resource_text)


def _valid_word(field: str, text: str) -> str:
    if problem := request_problem(field, text):
        raise InvalidField(problem, field=field)
    require_no_credential(text, field)
    return text


class _Paged(Protocol):
    page_size: int
    page_token: str


class _Searched(Protocol):
    text: str


def page(message: _Paged) -> Page:
    """Convert the page; its bounds are validated where the list is known."""
    return Page(message.page_size, message.page_token)


def policy_files(message: policy_pb2.ValidatePolicyRequest) -> PolicyFiles:
    """Return the texts of a policy folder. Raises `InvalidField` where one is empty."""
    files = PolicyFiles.cleaned(message.model, message.policy, message.tests, message.conditions)
    # Conditions are optional.
    for field, name, text in zip(files._fields, (MODEL_FILE, POLICY_FILE, TEST_FILE), files, strict=False):
        if not text.strip():
            raise InvalidField(f"{field} is empty: give the text of {name}.", field=field)
    return files


def is_id(text: str) -> bool:
    """Whether `text` has the shape of an id. A wrong id of that shape is not found later."""
    return 0 < len(text) <= MAX_ID and text.isalnum() and text.isascii()


def slug(text: str) -> str:
    """Validate an organization's id from an unauthenticated client; empty for none. Raises `InvalidField`."""
    if len(text) > MAX_ID or not text.isprintable():
        raise InvalidField("organization is not the id of an organization: correct it.", field="organization")
    return text


def secret(text: str) -> str:
    """Return a mailed secret. Raises `InvalidField` where it is empty; whether it is valid, the service decides."""
    if not text:
        raise InvalidField("secret is not set: copy it from the mail.", field="secret")
    return text


def credential_id(text: str) -> str:
    """Validate the shape of a credential's id. Raises `InvalidField`."""
    if not is_id(text):
        # Not repeated: it may be the whole token.
        raise InvalidField(
            "id is no token's id: give the 22 letters and digits between a token's two underscores.", field="id"
        )
    return text


def role(text: str, field: str = "role") -> str:
    """Validate the shape of a role's name; whether the policy has it, the service decides. Raises `InvalidField`."""
    if not text:
        raise InvalidField(f"{field} is not set: name a role of the policy.", field=field)
    if "\0" in text:
        raise InvalidField(f"{field} holds a NUL: name a role of the policy.", field=field)
    if len(text) > MAX_ROLE:
        raise InvalidField(f"{field} has {len(text)} characters, more than any role: see ListRoles.", field=field)
    return text


def user_id(text: str) -> str:
    """Validate the shape of a user's id; empty for none. Raises `InvalidField`."""
    if text and not is_id(text):
        raise InvalidField("user_id is no user's id: give it as WhoAmI or ListMembers shows it.", field="user_id")
    return text


def external_id(text: str, field: str = "external_id") -> str:
    """Validate an external id; empty for none. Raises `InvalidField` for `field`."""
    return external_ids.parse(text, field) if text else ""


def display_name(text: str, field: str = "display_name") -> str:
    """Validate a display name; empty for none. Raises `InvalidField` for `field`."""
    return display_names.parse(text, field) if text else ""


def text(message: _Searched) -> str:
    """Return the search text of a list; empty matches everything. Raises `InvalidField`."""
    if len(message.text) > MAX_TEXT or "\0" in message.text:
        raise InvalidField(f"text has more than {MAX_TEXT} characters, or a NUL: shorten it.", field="text")
    return message.text


def mask_paths(mask: FieldMask, mutable: tuple[str, ...]) -> tuple[str, ...]:
    """Return the mutable fields that an update mask names, of which `*` stands for all; empty without a mask.

    Raises `InvalidField` for any other path.
    """
    if any(path not in mutable and path != "*" for path in mask.paths):
        named = ", ".join(f"`{field}`" for field in mutable)
        raise InvalidField(
            f"update_mask names a field that is unknown or can't be changed: give {named} or `*`, or leave the mask"
            " out.",
            field="update_mask",
        )
    return mutable if "*" in mask.paths else tuple(field for field in mutable if field in mask.paths)


def request_id(text: str) -> str:
    """Return the idempotency key of a request; empty for none. Raises `InvalidField`."""
    if not text:
        return ""
    try:
        # One spelling only, so that the same UUID is the same request.
        found = str(uuid.UUID(text))
    except ValueError:
        found = ""
    if found != text.lower() or len(text) != len(found):
        raise InvalidField(
            "request_id is no UUID: make one, as 6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11, or leave it out.",
            field="request_id",
        )
    return found


def restriction(message: shared_pb2.Restriction) -> Restriction:
    """Return a token's restriction, in the policy's patterns. Raises `InvalidField`."""
    scope_ = scope(message.scope, "restriction.scope")
    if scope_ and not message.permissions:
        return Restriction(None, scope_)
    if not 1 <= len(message.permissions) <= MAX_PERMISSIONS:
        raise InvalidField(
            f"restriction has {len(message.permissions)} permissions; it must have 1 to {MAX_PERMISSIONS}, or a scope:"
            " leave the whole field out for a token that is not restricted.",
            field="restriction.permissions",
        )
    if message.ByteSize() > MAX_RESTRICTION_BYTES:
        raise InvalidField(
            f"restriction has {message.ByteSize()} bytes, more than {MAX_RESTRICTION_BYTES}: use fewer or wider ones.",
            field="restriction.permissions",
        )
    for number, item in enumerate(message.permissions):
        field = f"restriction.permissions[{number}]"
        for kind, text in (("resource", item.resource), ("action", item.action)):
            if problem := pattern_problem(kind, text):
                raise InvalidField(problem, field=f"{field}.{kind}")
            require_no_credential(text, f"{field}.{kind}")
        if item.effect not in (shared_pb2.EFFECT_UNSPECIFIED, shared_pb2.EFFECT_ALLOW):
            raise InvalidField("A restriction lists what is allowed: leave the effect out.", field=f"{field}.effect")
        if item.condition:
            raise InvalidField(
                "A restriction has no conditions: leave it out, as those of the policy's rules count all the same.",
                field=f"{field}.condition",
            )
    found = (Permission(item.resource, item.action, Effect.ALLOW) for item in message.permissions)
    return Restriction(tuple(dict.fromkeys(found)), scope_)


def timestamp(message: Timestamp, field: str) -> int:
    """Return a time in microseconds since 1970. Raises `InvalidField` for `field`."""
    if message.seconds not in _SECONDS or not 0 <= message.nanos < 1_000_000_000:
        raise InvalidField(
            f"{field} is not a time in the years 1 to 9999: write it as 2027-01-31T12:00:00Z.", field=field
        )
    return message.seconds * 1_000_000 + message.nanos // 1000


def duration(message: Duration, field: str) -> int:
    """Return a duration in microseconds. Raises `InvalidField` for `field`."""
    mixed = message.seconds * message.nanos < 0
    if abs(message.seconds) > _DURATION_SECONDS or abs(message.nanos) >= 1_000_000_000 or mixed:
        raise InvalidField(f"{field} is not a valid duration: write it in seconds, as 3600s.", field=field)
    return message.seconds * 1_000_000 + message.nanos // 1000
