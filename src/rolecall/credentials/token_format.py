"""Text format of credentials and mailed secrets: `<prefix>_<22 base62 id>_<43 base62 secret><6 base62 CRC32>`.

With the prefix and the checksum, secret scanners find one in a repository, and a server refuses a mistyped one without
a database access. Only the SHA-256 of the text is stored.
"""

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass, field

from rolecall.domain import CredentialKind, LinkKind
from rolecall.errors import InvalidField

__all__ = [
    "MintedCredential",
    "PresentedCredential",
    "contains_credential",
    "format_credential",
    "is_id",
    "mint",
    "new_id",
    "parse",
    "parse_link",
    "redact",
    "require_no_credential",
]

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_BYTES, _ID_LENGTH = 16, 22
_SECRET_BYTES, _SECRET_LENGTH = 32, 43
_CHECKSUM_LENGTH = 6
_ID_SHAPE = re.compile(rf"[0-9A-Za-z]{{{_ID_LENGTH}}}")
_REST = rf"_([0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}"
_SHAPE = re.compile(rf"({'|'.join(CredentialKind)}){_REST}")
_LINK_SHAPE = re.compile(rf"({'|'.join(LinkKind)}){_REST}")
# Minimum characters of a secret that is redacted: a truncated or mistyped one discloses enough of it.
_MIN_SECRET_LENGTH = 16
_CREDENTIAL_LIKE = re.compile(
    rf"(?:{'|'.join([*CredentialKind, *LinkKind])})_[0-9A-Za-z]{{{_ID_LENGTH}}}_[0-9A-Za-z]{{{_MIN_SECRET_LENGTH},}}"
)


@dataclass(frozen=True, slots=True)
class PresentedCredential:
    """Well-formed credential that a caller presented; whether it is live, the database says."""

    kind: CredentialKind
    id: str
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class MintedCredential:
    """New credential. `text` is shown once and stored nowhere."""

    kind: CredentialKind
    id: str
    text: str = field(repr=False)
    digest: bytes = field(repr=False)

    @property
    def last_four(self) -> str:
        """Last four characters of the text, by which its holder distinguishes it from others."""
        return self.text[-4:]


def mint(kind: CredentialKind, identifier: str | None = None) -> MintedCredential:
    """Generate a credential with a secret of 256 random bits; with `identifier`, a new secret for that credential."""
    identifier = identifier or new_id()
    text = format_credential(kind, identifier, secrets.token_bytes(_SECRET_BYTES))
    return MintedCredential(kind, identifier, text, hashlib.sha256(text.encode()).digest())


def format_credential(kind: CredentialKind | LinkKind, identifier: str, secret: bytes) -> str:
    """Format a credential with these 32 secret bytes."""
    body = f"{kind}_{identifier}_{_base62(secret, _SECRET_LENGTH)}"
    return body + _checksum(body)


def new_id() -> str:
    """Generate a random id of 128 bits in 22 letters and digits, which nobody can guess."""
    return _base62(secrets.token_bytes(_ID_BYTES), _ID_LENGTH)


def parse(text: str) -> PresentedCredential | None:
    """Parse the credential in `text`; None where its shape or checksum is wrong."""
    match = _SHAPE.fullmatch(text)
    if match is None or not _has_valid_checksum(text):
        return None
    return PresentedCredential(CredentialKind(match[1]), match[2], hashlib.sha256(text.encode()).digest())


def parse_link(text: str) -> tuple[LinkKind, str] | None:
    """Parse the mailed secret in `text` into its kind and target id; None where its shape or checksum is wrong."""
    match = _LINK_SHAPE.fullmatch(text)
    return (LinkKind(match[1]), match[2]) if match and _has_valid_checksum(text) else None


def contains_credential(text: str) -> bool:
    """Whether `text` contains a credential, or a part that looks like one: then it must not be logged or repeated."""
    return _CREDENTIAL_LIKE.search(text) is not None


def redact(text: str) -> str:
    """Replace each credential that `contains_credential` finds in the text."""
    return _CREDENTIAL_LIKE.sub("(a credential)", text)


def require_no_credential(text: str, field: str) -> None:
    """Raise `InvalidField` where a credential stands in a field that is logged, stored, or repeated."""
    if contains_credential(text):
        message = (
            f"{field} holds what looks like a token or another secret: delete that if it is one, and name no secrets."
        )
        raise InvalidField(message, field=field)


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id that `new_id` makes."""
    return _ID_SHAPE.fullmatch(text) is not None


def _has_valid_checksum(text: str) -> bool:
    return text[-_CHECKSUM_LENGTH:] == _checksum(text[:-_CHECKSUM_LENGTH])


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()).to_bytes(4, "big"), _CHECKSUM_LENGTH)


def _base62(raw: bytes, length: int) -> str:
    number = int.from_bytes(raw, "big")
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
