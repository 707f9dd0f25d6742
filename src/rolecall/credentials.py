"""Credentials and mailed secrets as text: `<prefix>_<22 base62 id>_<43 base62 secret><6 base62 CRC32>`.

The prefix and the checksum let secret scanners find one in a repository, and let a server turn away a mistyped one
without asking the database. Only the SHA-256 of the text is ever stored.
"""

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass, field

from rolecall.domain import CredentialKind, LinkKind

__all__ = ["Minted", "Presented", "holds_one", "is_id", "mint", "new_id", "parse", "parse_link", "redacted", "text_of"]

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_BYTES, _ID_LENGTH = 16, 22
_SECRET_BYTES, _SECRET_LENGTH = 32, 43
_CHECKSUM_LENGTH = 6
_ID_SHAPE = re.compile(rf"[0-9A-Za-z]{{{_ID_LENGTH}}}")
_REST = rf"_([0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}"
_SHAPE = re.compile(rf"({'|'.join(CredentialKind)}){_REST}")
_LINK_SHAPE = re.compile(rf"({'|'.join(LinkKind)}){_REST}")
# Cut off or misspelt, it is a secret still.
_LEAST_OF_SECRET = 16
_ALIKE = re.compile(
    rf"(?:{'|'.join([*CredentialKind, *LinkKind])})_[0-9A-Za-z]{{{_ID_LENGTH}}}_[0-9A-Za-z]{{{_LEAST_OF_SECRET},}}"
)


@dataclass(frozen=True, slots=True)
class Presented:
    """A well-formed credential that somebody presented; whether it is live, only the database knows."""

    kind: CredentialKind
    id: str
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Minted:
    """A new credential. `text` is shown once and stored nowhere."""

    kind: CredentialKind
    id: str
    text: str = field(repr=False)
    digest: bytes = field(repr=False)

    @property
    def last_four(self) -> str:
        """The end of the text, by which its holder can tell it from others."""
        return self.text[-4:]


def mint(kind: CredentialKind, identifier: str | None = None) -> Minted:
    """A new credential of 256 random bits; with `identifier`, a new secret of that one."""
    identifier = identifier or new_id()
    text = text_of(kind, identifier, secrets.token_bytes(_SECRET_BYTES))
    return Minted(kind, identifier, text, hashlib.sha256(text.encode()).digest())


def text_of(kind: CredentialKind | LinkKind, identifier: str, secret: bytes) -> str:
    """The text of these 32 secret bytes."""
    body = f"{kind}_{identifier}_{_base62(secret, _SECRET_LENGTH)}"
    return body + _checksum(body)


def new_id() -> str:
    """A random id of 128 bits in 22 letters and digits, which nobody can guess."""
    return _base62(secrets.token_bytes(_ID_BYTES), _ID_LENGTH)


def parse(text: str) -> Presented | None:
    """The credential in `text`; None where its shape or checksum is wrong."""
    match = _SHAPE.fullmatch(text)
    if match is None or not _is_typed_right(text):
        return None
    return Presented(CredentialKind(match[1]), match[2], hashlib.sha256(text.encode()).digest())


def parse_link(text: str) -> tuple[LinkKind, str] | None:
    """What the mailed secret in `text` is for, and the id of that; None where its shape or checksum is wrong."""
    match = _LINK_SHAPE.fullmatch(text)
    return (LinkKind(match[1]), match[2]) if match and _is_typed_right(text) else None


def holds_one(text: str) -> bool:
    """Whether a credential, or what looks like one, stands anywhere in `text`: then it must not be repeated."""
    return _ALIKE.search(text) is not None


def redacted(text: str) -> str:
    """The text without what `holds_one` finds in it."""
    return _ALIKE.sub("(a credential)", text)


def is_id(text: str) -> bool:
    """Whether `text` could be a credential's id."""
    return _ID_SHAPE.fullmatch(text) is not None


def _is_typed_right(text: str) -> bool:
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
