"""Page tokens: the position after which a list continues, signed, and bound to the list and its filters."""

import base64
import binascii
import hmac
import json

from rolecall.credentials.server_key import ServerKey
from rolecall.domain import Page
from rolecall.errors import InvalidField, PageToken

__all__ = ["Pagination"]

DEFAULT_SIZE = 50
MAX_SIZE = 1000
_SIGNATURE_BYTES = 16


class Pagination:
    """Makes and reads page tokens with the server's key."""

    def __init__(self, key: ServerKey) -> None:
        self._key = key.derive("pages")

    def size(self, page: Page) -> int:
        """Return how many entries the page may hold: the requested number, at most 1,000. Raises `InvalidField`."""
        if page.size < 0:
            raise InvalidField(
                f"page_size is {page.size}: give 1 to {MAX_SIZE}, or 0 for {DEFAULT_SIZE}.", field="page_size"
            )
        return min(page.size or DEFAULT_SIZE, MAX_SIZE)

    def token(self, scope: tuple[str, ...], position: list[str]) -> str:
        """Make the token for the page after `position`. `scope`: the list, its organization and its filters."""
        body = json.dumps(position, ensure_ascii=False).encode()
        return _encode(self._sign(scope, body) + body)

    def position(self, scope: tuple[str, ...], page: Page) -> list[str] | None:
        """Return the position after which to continue; None for the first page. Raises `PageToken`."""
        if not page.token:
            return None
        raw = _decode(page.token)
        signature, body = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(scope, body)):
            raise PageToken(
                "The page_token is not one of this list, its filters, and the policy as it is now:"
                " ask for the first page again, without a page_token.",
                field="page_token",
            )
        position: list[str] = json.loads(body)
        return position

    def _sign(self, scope: tuple[str, ...], body: bytes) -> bytes:
        message = json.dumps(scope).encode() + b"\0" + body
        return hmac.digest(self._key, message, "sha256")[:_SIGNATURE_BYTES]


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Decode `text`; empty where it is not the canonical encoding of its bytes."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""
    return raw if _encode(raw) == text else b""
