"""Fields that the messages of several services share, to and from domain values. What comes in is validated here."""

import re
import unicodedata
import uuid
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from rolecall import credentials
from rolecall.domain import CredentialKind, Effect, Member, Page, Permission, Restriction, Token, TokenState, now
from rolecall.errors import InvalidField
from rolecall.organizations import OrganizationView
from rolecall.policy import pattern_problem
from rolecall.sessions import Entrance
from rolecall.v1 import organization_pb2, session_pb2, shared_pb2, token_pb2

__all__ = [
    "KINDS",
    "credential_id",
    "duration",
    "is_id",
    "member",
    "moment",
    "name",
    "organization",
    "page",
    "permission",
    "request_id",
    "require_no_credential",
    "restriction",
    "role",
    "secret",
    "session",
    "slug",
    "text",
    "timestamp",
    "token",
    "user_id",
]

MAX_NAME = 64
MAX_PERMISSIONS = 100
# So that a page of a thousand tokens, or of entries about them, fits into a message.
MAX_RESTRICTION_BYTES = 2048
MAX_ID = 64
MAX_ROLE = 64
# As long as an address may be.
MAX_TEXT = 254
# What Unicode calls Default_Ignorable_Code_Point, for which nothing is drawn, and two blanks, of Braille and of music.
# Python takes some for printable, such as the joiner of graphemes, the fillers of Hangul, the selectors of variations.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
# Letters, digits, punctuation, symbols. Marks combine with one of them.
_VISIBLE = "LNPS"
# What a Timestamp and a Duration may hold: the years 1 to 9999, 10,000 years.
_SECONDS = range(-62_135_596_800, 253_402_300_800)
_DURATION_SECONDS = 315_576_000_000

KINDS = {
    CredentialKind.PERSONAL: shared_pb2.CREDENTIAL_KIND_PERSONAL_TOKEN,
    CredentialKind.ORGANIZATION: shared_pb2.CREDENTIAL_KIND_ORGANIZATION_TOKEN,
    CredentialKind.SESSION: shared_pb2.CREDENTIAL_KIND_SESSION,
}
_EFFECTS = {Effect.ALLOW: shared_pb2.EFFECT_ALLOW, Effect.DENY: shared_pb2.EFFECT_DENY}
_STATES = {state: token_pb2.TokenState.Value(f"TOKEN_STATE_{state.name}") for state in TokenState}


class _Paged(Protocol):
    page_size: int
    page_token: str


class _Searched(Protocol):
    text: str


def page(message: _Paged) -> Page:
    """Which part of a list is wanted; its bounds are checked where the list is known."""
    return Page(message.page_size, message.page_token)


def require_no_credential(text: str, field: str) -> None:
    """Raise `InvalidField` where a credential stands in a field that is logged, stored, or repeated."""
    if credentials.holds_one(text):
        message = (
            f"{field} holds what looks like a token or another secret: delete that if it is one, and name no secrets."
        )
        raise InvalidField(message, field=field)


def name(text: str, field: str) -> str:
    """A name to show: something is to be seen of it, and all that it holds. Raises `InvalidField` for `field`."""
    if not text or text.isspace():
        raise InvalidField(f"{field} is empty: give 1 to {MAX_NAME} characters.", field=field)
    if len(text) > MAX_NAME:
        raise InvalidField(f"{field} has {len(text)} characters, more than {MAX_NAME}: shorten it.", field=field)
    if not text.isprintable() or _INVISIBLE.search(text):
        raise InvalidField(f"{field} holds a control character or an invisible one: remove it.", field=field)
    if text != text.strip():
        raise InvalidField(f"{field} has a blank at an end: remove it.", field=field)
    require_no_credential(text, field)
    if not any(unicodedata.category(character)[0] in _VISIBLE for character in text):
        raise InvalidField(f"{field} shows nothing: give it a letter, a digit or another sign.", field=field)
    return text


def is_id(text: str) -> bool:
    """Whether it may be an id: any other wrong one is simply not found."""
    return 0 < len(text) <= MAX_ID and text.isalnum() and text.isascii()


def slug(text: str) -> str:
    """An organization's name, as a stranger gives it; empty for none. Raises `InvalidField`."""
    if len(text) > MAX_NAME or not text.isprintable():
        raise InvalidField("organization is no organization's name: correct it.", field="organization")
    return text


def secret(text: str) -> str:
    """A mailed secret. Raises `InvalidField` where there is none; whether it is right is seen later."""
    if not text:
        raise InvalidField("secret is not set: give it as the mail holds it.", field="secret")
    return text


def session(value: Entrance) -> session_pb2.Session:
    """A new session as a message."""
    return session_pb2.Session(secret=value.session.text, expire_time=timestamp(value.expire_time))


def credential_id(text: str) -> str:
    """A credential's id. Raises `InvalidField` where it is none by far."""
    if not is_id(text):
        # Not repeated: it may be the whole token.
        raise InvalidField(
            "id is no token's id: give the 22 letters and digits between a token's two underscores.", field="id"
        )
    return text


def role(text: str) -> str:
    """A role's name; whether the policy has it is seen later. Raises `InvalidField`."""
    if not text:
        raise InvalidField("role is not set: name a role of the policy.", field="role")
    if "\0" in text:
        raise InvalidField("role holds a NUL: name a role of the policy.", field="role")
    if len(text) > MAX_ROLE:
        raise InvalidField(f"role has {len(text)} characters, more than any role: see ListRoles.", field="role")
    return text


def user_id(text: str) -> str:
    """A person's id; empty for none. Raises `InvalidField` where it is none by far."""
    if text and not is_id(text):
        raise InvalidField("user_id is no user's id: give it as WhoAmI or ListMembers shows it.", field="user_id")
    return text


def text(message: _Searched) -> str:
    """What a list is searched for; empty for anything. Raises `InvalidField`."""
    if len(message.text) > MAX_TEXT or "\0" in message.text:
        raise InvalidField(f"text has more than {MAX_TEXT} characters, or a NUL: shorten it.", field="text")
    return message.text


def request_id(text: str) -> str:
    """What tells a repeated request from a new one; empty where it isn't to be told. Raises `InvalidField`."""
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
    """What a token is cut down to, in the policy's patterns. Raises `InvalidField`."""
    if not 1 <= len(message.permissions) <= MAX_PERMISSIONS:
        raise InvalidField(
            f"restriction has {len(message.permissions)} permissions; it must have 1 to {MAX_PERMISSIONS}:"
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
    found = (Permission(item.resource, item.action, Effect.ALLOW) for item in message.permissions)
    return tuple(dict.fromkeys(found))


def timestamp(microseconds: int) -> Timestamp:
    """A time as a message."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def moment(message: Timestamp, field: str) -> int:
    """A time in microseconds. Raises `InvalidField` for `field`."""
    if message.seconds not in _SECONDS or not 0 <= message.nanos < 1_000_000_000:
        raise InvalidField(
            f"{field} is no moment of the years 1 to 9999: write it as 2027-01-31T12:00:00Z.", field=field
        )
    return message.seconds * 1_000_000 + message.nanos // 1000


def duration(message: Duration, field: str) -> int:
    """A span in microseconds. Raises `InvalidField` for `field`."""
    mixed = message.seconds * message.nanos < 0
    if abs(message.seconds) > _DURATION_SECONDS or abs(message.nanos) >= 1_000_000_000 or mixed:
        raise InvalidField(f"{field} is no span of time: write it in seconds, as 3600s.", field=field)
    return message.seconds * 1_000_000 + message.nanos // 1000


def permission(value: Permission) -> shared_pb2.Permission:
    """A rule as a message."""
    return shared_pb2.Permission(resource=value.resource, action=value.action, effect=_EFFECTS[value.effect])


def member(value: Member) -> shared_pb2.Member:
    """A member as a message."""
    return shared_pb2.Member(
        user_id=value.user_id,
        email=value.email,
        display_name=value.display_name,
        role=value.role,
        etag=value.etag,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
    )


def organization(value: OrganizationView) -> organization_pb2.Organization:
    """An organization as a message."""
    return organization_pb2.Organization(
        id=value.organization.id,
        display_name=value.organization.display_name,
        create_time=timestamp(value.organization.create_time),
        revision=value.organization.revision,
        etag=value.organization.etag,
        warnings=value.warnings,
    )


def token(value: Token) -> token_pb2.Token:
    """A token as a message, in the state that it is in now."""
    restriction_ = None
    if value.restriction is not None:
        restriction_ = shared_pb2.Restriction(permissions=[permission(item) for item in value.restriction])
    used = value.last_used_time
    return token_pb2.Token(
        id=value.id,
        kind=KINDS[value.kind],
        name=value.name,
        user_id=value.user_id,
        created_by=value.created_by,
        role=value.role,
        restriction=restriction_,
        prefix=value.kind.value,
        last_four=value.last_four,
        create_time=timestamp(value.create_time),
        expire_time=timestamp(value.expire_time),
        last_used_time=None if used is None else timestamp(used),
        state=_STATES[value.state(now())],
        etag=value.etag,
    )
