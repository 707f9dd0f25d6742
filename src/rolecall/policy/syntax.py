"""Syntax of roles, resources, actions and names of conditions, in rules and in requests."""

import re

__all__ = [
    "CONDITION",
    "MAX_ACTION",
    "MAX_RESOURCE",
    "NAME",
    "RESOURCE",
    "ROLE",
    "has_dot_segment",
    "pattern_problem",
    "request_problem",
    "value_problem",
    "value_warning",
]

MAX_ACTION = 256
MAX_RESOURCE = 1024
MAX_ROLE = 64
MAX_CONDITION = 64

# A name has no space, comma, quote, bracket, `#`, `*`, `/` or backslash: Casbin splits at those, drops them or keeps
# them silently.
NAME = r"[^\s,\"'`()\[\]{}#*/\\]+"
ROLE = rf"[A-Za-z][A-Za-z0-9_.-]{{0,{MAX_ROLE - 1}}}"
RESOURCE = rf"(?:{NAME}(?:/{NAME})*(?:/?\*)?|\*)"
CONDITION = rf"[a-z][a-z0-9-]{{0,{MAX_CONDITION - 1}}}"

_PATTERNS = {
    "role": re.compile(ROLE),
    "resource": re.compile(RESOURCE),
    "action": re.compile(rf"{NAME}|\*"),
    "condition": re.compile(CONDITION),
}
_LIMITS = {
    "role": MAX_ROLE,
    "resource": MAX_RESOURCE,
    "scope": MAX_RESOURCE,
    "action": MAX_ACTION,
    "condition": MAX_CONDITION,
}
_FORBIDDEN = re.compile(r"[\s,\"'`()\[\]{}#\\]")
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")


def value_problem(kind: str, text: str) -> tuple[str, str] | None:
    """Return the problem of a role, resource, action or condition of a rule, and its fix; None if it is well-formed."""
    if not text:
        return f"The {kind} is empty.", f"Name the {kind}."
    if len(text) > _LIMITS[kind]:
        return f"The {kind} has {len(text)} characters, more than {_LIMITS[kind]}.", "Shorten it."
    if bad := _FORBIDDEN.search(text):
        return (
            f"The {kind} `{text}` holds {bad.group()!r}, which Casbin keeps, splits at or drops.",
            "Write it bare: no quotes, brackets, spaces, backslashes or `#`; a comment needs its own line.",
        )
    if kind == "resource" and has_dot_segment(text):
        return f"The resource `{text}` has a segment `.` or `..`.", "Name the resource without such segments."
    if _PATTERNS[kind].fullmatch(text):
        return None
    if kind == "resource" and (text[0] == "/" or "//" in text or text[-1] == "/"):
        return f"The resource `{text}` has an empty segment.", "Write it as `type/id`, without extra slashes."
    if kind == "role":
        return f"The role `{text}` is not a valid name.", "Start with a letter; then letters, digits, `_`, `.` and `-`."
    if kind == "condition":
        fix = "Start with a lower-case letter; then lower-case letters, digits and `-`."
        return f"The condition `{text}` is not a valid name.", fix
    if "*" in text:
        where = "alone or at the end of a resource" if kind == "resource" else "alone, as the whole action"
        message = f"The {kind} `{text}` has a `*` where Casbin would ignore the text after it, or read it as a letter."
        return message, f"Put `*` {where}, or delete it."
    return f"The action `{text}` holds a slash.", "Name the action in one word."


def pattern_problem(kind: str, text: str) -> str | None:
    """Return why a resource or action is not valid in a rule, and what to do; None if it is valid."""
    if not text.isprintable():
        return f"The {kind} holds a control character or an invisible one: remove it."
    problem = value_problem(kind, text)
    return " ".join(problem) if problem else None


def value_warning(kind: str, text: str) -> tuple[str, str] | None:
    """Return a warning about letters beyond ASCII, and what to do; None if there are no such letters."""
    unusual = next((character for character in text if not character.isascii()), None)
    if unusual is None:
        return None
    message = f"The {kind} `{text}` holds U+{ord(unusual):04X}, which may look like another letter or be invisible."
    return message, "Make sure that requests contain exactly the same characters."


def request_problem(kind: str, text: str) -> str | None:
    """Return why a resource, scope or action is not valid in a request, and what to do; None if it is valid."""
    if not text:
        form = "one word of the policy, as in `view`" if kind == "action" else "`type` or `type/id/...`"
        return f"{kind} is not set: name it as {form}."
    if len(text) > _LIMITS[kind]:
        return f"{kind} has {len(text)} characters, more than {_LIMITS[kind]}: shorten it."
    if "*" in text:
        return f"{kind} holds a `*`: name a single {kind}; only rules have wildcards."
    if not text.isprintable():
        return f"{kind} holds a control character or invisible space: remove it."
    if text[0] == " " or text[-1] == " " or " /" in text or "/ " in text:
        return f"{kind} has a space at an end of a segment: remove it, because some back ends ignore it."
    if kind != "action":
        if "//" in text or text[0] == "/" or text[-1] == "/":
            return f"{kind} has an empty segment: write `type/id`, without extra slashes."
        if "." in text and has_dot_segment(text):
            return f"{kind} has a segment `.` or `..`: write the path without them."
    return None


def has_dot_segment(resource: str) -> bool:
    """Return whether a segment of the path is `.` or `..`."""
    return _DOTS.search(resource) is not None
