"""Display names of organizations, people and tokens."""

import re
import unicodedata

from rolecall.credentials.token_format import require_no_credential
from rolecall.errors import InvalidField

__all__ = ["MAX_LENGTH", "parse"]

# Maximum characters of a display name.
MAX_LENGTH = 64
# What Unicode calls Default_Ignorable_Code_Point, for which nothing is drawn, and two blanks, of Braille and of music.
# Python takes some for printable, such as the joiner of graphemes, the fillers of Hangul, the selectors of variations.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
# Letters, digits, punctuation, symbols. Marks combine with one of them.
_VISIBLE = "LNPS"


def parse(text: str, field: str) -> str:
    """Validate a display name: it has a visible character and no invisible one. Raises `InvalidField` for `field`."""
    if not text or text.isspace():
        raise InvalidField(f"{field} is empty: give 1 to {MAX_LENGTH} characters.", field=field)
    if len(text) > MAX_LENGTH:
        raise InvalidField(f"{field} has {len(text)} characters, more than {MAX_LENGTH}: shorten it.", field=field)
    if not text.isprintable() or _INVISIBLE.search(text):
        raise InvalidField(f"{field} holds a control character or an invisible one: remove it.", field=field)
    if text != text.strip():
        raise InvalidField(f"{field} has a blank at an end: remove it.", field=field)
    require_no_credential(text, field)
    if not any(unicodedata.category(character)[0] in _VISIBLE for character in text):
        raise InvalidField(f"{field} shows nothing: give it a letter, a digit or another sign.", field=field)
    return text
