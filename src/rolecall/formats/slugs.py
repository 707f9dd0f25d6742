"""Slugs: ids that people choose, of organizations and teams."""

import re

from rolecall.errors import InvalidField

__all__ = ["parse"]

_SHAPE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def parse(text: str, field: str, what: str) -> str:
    """Validate a slug; `what` says of what, as in `a team's id`. Raises `InvalidField` for `field`."""
    if not _SHAPE.fullmatch(text):
        shown = f"`{text[:64]}`" if text.isprintable() else "The text"
        raise InvalidField(
            f"{shown} is not valid as {what}: use 1 to 63 lower-case letters, digits and inner hyphens.", field=field
        )
    return text
