"""External ids: names of members in an identity provider or another database. None has the form of a user id."""

import re

from rolecall.credentials.token_format import is_id, require_no_credential
from rolecall.errors import InvalidField

__all__ = ["parse"]

# Maximum characters, as OpenID Connect allows for `sub`.
MAX_LENGTH = 255
# Visible ASCII. With an `@`, a subject would be an address; `*` is in no subject, as it stands for all in policies.
_SHAPE = re.compile(r"[!-)+-?A-~]+")


def parse(text: str, field: str) -> str:
    """Validate an external id. Raises `InvalidField` for `field`."""
    if not text:
        raise InvalidField(f"{field} is empty: give 1 to {MAX_LENGTH} characters.", field=field)
    if len(text) > MAX_LENGTH:
        raise InvalidField(f"{field} has {len(text)} characters, more than {MAX_LENGTH}: shorten it.", field=field)
    if not _SHAPE.fullmatch(text):
        raise InvalidField(
            f"{field} is no external id: write visible ASCII characters, none of them a blank, `@` or `*`.", field=field
        )
    if is_id(text):
        raise InvalidField(
            f"{field} has the form of a user id, 22 letters and digits: put a prefix before it, as in `idp:{text}`.",
            field=field,
        )
    require_no_credential(text, field)
    return text
