"""Errors: what they say to do."""

import ast
from collections.abc import Iterator

import pytest

from rolecall.errors import InvalidField, RolecallError, combine, error_classes
from support.environment import ROOT

SOURCES = ROOT / "src" / "rolecall"


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ("The policy has no role `x`: choose one of A, B.", "choose one of A, B."),
        ("role: The policy has no role `x`: choose one of A, B.", "choose one of A, B."),
        ("The token `a: b. c` is deleted: create another.", "create another."),
        ("Cancelled. Programs pass --yes.", "Programs pass --yes."),
        ("No such command 'chek'. Did you mean 'check'?", "Did you mean 'check'?"),
        ("postgresql://u@h:1/x isn't there: start it.\nOr: not.", "start it.\nOr: not."),
        ("127.0.0.1:50051 answers nothing.", ""),
        ("", ""),
    ],
)
def test_fix_is_the_end_of_the_message(message: str, fix: str) -> None:
    """Advice follows the first colon or full stop that isn't quoted."""
    assert InvalidField(message, field="role").fix == fix


def test_fix_of_a_batch_is_that_of_its_most_important_error() -> None:
    """The error that combines several names the field before the message, which is not the fix."""
    combined = combine([InvalidField("x is no address: correct it.", field="invitations[3].email")])

    assert combined.fix == "correct it."


def _messages() -> Iterator[tuple[str, str]]:
    """Every message of an error that is written out in the code, with its place and `x` for each placeholder."""

    def text_of(node: ast.expr) -> str | None:
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(text_of(part) or "x" for part in parts)
            case _:
                return None

    kinds = {kind.__name__ for kind in error_classes()}
    for file in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[message, *_]) if name in kinds:
                    text = text_of(message) or ""
                    # One without a blank is put together of two variables.
                    if " " in text:
                        yield f"{file.relative_to(SOURCES)}:{node.lineno}", text


def test_every_error_says_what_to_do() -> None:
    """A message says what is wrong and what to do next, so that the JSON of the command has a fix."""
    messages = list(_messages())

    assert len(messages) > 100
    assert [(place, text) for place, text in messages if not RolecallError(text).fix] == []
