"""Page tokens: where a list goes on, signed, and bound to what was listed."""

import base64
import binascii
import hmac
import json

from rolecall.domain import Page
from rolecall.errors import InvalidField, PageToken
from rolecall.keys import ServerKey

__all__ = ["Pages"]

DEFAULT_SIZE = 50
MAX_SIZE = 1000
_SIGNATURE_BYTES = 16


class Pages:
    """Makes and reads page tokens with the server's key."""

    def __init__(self, key: ServerKey) -> None:
        self._key = key.derive("pages")

    def size(self, page: Page) -> int:
        """How many entries the page may hold. Raises `InvalidField`."""
        if not 0 <= page.size <= MAX_SIZE:
            raise InvalidField(
                f"page_size is {page.size}; it must be 1 to {MAX_SIZE}, or 0 for {DEFAULT_SIZE}.", field="page_size"
            )
        return page.size or DEFAULT_SIZE

    def token(self, scope: tuple[str, ...], position: list[str]) -> str:
        """The token for the page after `position`. `scope`: the list, its organization and its filters."""
        body = json.dumps(position, ensure_ascii=False).encode()
        return _encode(self._sign(scope, body) + body)

    def position(self, scope: tuple[str, ...], page: Page) -> list[str] | None:
        """Where the list goes on; None for the first page. Raises `PageToken` where the token is of another list."""
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
    """The bytes that `text` encodes; none where it is not the one way to encode them."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""
    return raw if _encode(raw) == text else b""
