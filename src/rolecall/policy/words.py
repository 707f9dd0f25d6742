"""Which words may stand in a rule, and which may be asked about."""

import re

__all__ = [
    "MAX_ACTION",
    "MAX_RESOURCE",
    "RESOURCE",
    "ROLE",
    "WORD",
    "asked_problem",
    "has_dot_segment",
    "pattern_problem",
    "word_problem",
    "word_warning",
]

MAX_ACTION = 256
MAX_RESOURCE = 1024
MAX_ROLE = 64

# A word holds no space, comma, quote, bracket, `#`, `*`, `/` or backslash: Casbin splits at those, swallows or keeps
# them silently.
WORD = r"[^\s,\"'`()\[\]{}#*/\\]+"
ROLE = rf"[A-Za-z][A-Za-z0-9_.-]{{0,{MAX_ROLE - 1}}}"
RESOURCE = rf"(?:{WORD}(?:/{WORD})*(?:/?\*)?|\*)"

_PATTERNS = {"role": re.compile(ROLE), "resource": re.compile(RESOURCE), "action": re.compile(rf"{WORD}|\*")}
_LIMITS = {"role": MAX_ROLE, "resource": MAX_RESOURCE, "action": MAX_ACTION}
_FORBIDDEN = re.compile(r"[\s,\"'`()\[\]{}#\\]")
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")


def word_problem(kind: str, text: str) -> tuple[str, str] | None:
    """What is wrong with a role, resource or action of a rule, and its fix; None where nothing is."""
    if not text:
        return f"The {kind} is empty.", f"Name the {kind}."
    if len(text) > _LIMITS[kind]:
        return f"The {kind} has {len(text)} characters, more than {_LIMITS[kind]}.", "Shorten it."
    if bad := _FORBIDDEN.search(text):
        return (
            f"The {kind} `{text}` holds {bad.group()!r}, which Casbin keeps, splits at or swallows.",
            "Write it bare: no quotes, brackets, spaces, backslashes or `#`; a comment needs its own line.",
        )
    if kind == "resource" and has_dot_segment(text):
        return f"The resource `{text}` has a segment `.` or `..`.", "Name the resource without such segments."
    if _PATTERNS[kind].fullmatch(text):
        return None
    if kind == "resource" and (text[0] == "/" or "//" in text or text[-1] == "/"):
        return f"The resource `{text}` has an empty segment.", "Write it as `type/id`, without stray slashes."
    if kind == "role":
        return f"The role `{text}` is no name.", "Start with a letter; then letters, digits, `_`, `.` and `-`."
    if "*" in text:
        where = "alone or at the end of a resource" if kind == "resource" else "alone, as the whole action"
        message = f"The {kind} `{text}` has a `*` where Casbin would ignore what follows it, or take it for a letter."
        return message, f"Let `*` stand {where}, or drop it."
    return f"The action `{text}` holds a slash.", "Name the action in one word."


def pattern_problem(kind: str, text: str) -> str | None:
    """Why the resource or action can't stand in a rule, and what to do; None where it can."""
    if not text.isprintable():
        return f"The {kind} holds a control character or an invisible one: remove it."
    problem = word_problem(kind, text)
    return " ".join(problem) if problem else None


def word_warning(kind: str, text: str) -> tuple[str, str] | None:
    """What is odd about a word, and what to do; None where nothing is."""
    strange = next((character for character in text if not character.isascii()), None)
    if strange is None:
        return None
    message = f"The {kind} `{text}` holds U+{ord(strange):04X}, which may look like another letter or like none."
    return message, "Make sure that those who ask send the very same characters."


def asked_problem(kind: str, text: str) -> str | None:
    """Why a resource or action can't be asked about, and what to do; None where it can."""
    if not text:
        form = "`type` or `type/id/...`" if kind == "resource" else "one word of the policy, as in `view`"
        return f"{kind} is not set: name it as {form}."
    if len(text) > _LIMITS[kind]:
        return f"{kind} has {len(text)} characters, more than {_LIMITS[kind]}: shorten it."
    if "*" in text:
        return f"{kind} holds a `*`: ask about one at a time; only rules have wildcards."
    if not text.isprintable():
        return f"{kind} holds a control character or invisible space: remove it."
    if text[0] == " " or text[-1] == " " or " /" in text or "/ " in text:
        return f"{kind} has a blank at an end: leave it out, as a back end may."
    if kind == "resource":
        if "//" in text or text[0] == "/" or text[-1] == "/":
            return "resource has an empty segment: write `type/id`, without stray slashes."
        if "." in text and has_dot_segment(text):
            return "resource has a segment `.` or `..`: write the path without them."
    return None


def has_dot_segment(resource: str) -> bool:
    """Whether a segment of the path is `.` or `..`."""
    return _DOTS.search(resource) is not None
