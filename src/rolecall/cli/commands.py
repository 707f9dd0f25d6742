"""Groups of commands: what holds for every command and every option of the command line."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["Commands"]

F = TypeVar("F", bound=Callable[..., Any])


def _require_options_once(command: Any, context: Any, arguments: list[str]) -> None:
    """Raise `BadParameter` for an option that is given more than once, unless it takes a list.

    The last value would win silently.
    """
    if context.resilient_parsing:
        # A shell completes a line that is not yet complete.
        return
    _, _, given = command.make_parser(context).parse_args(args=list(arguments))
    for parameter, count in Counter(given).items():
        if count > 1 and not parameter.multiple:
            raise typer.BadParameter(f"It is given {count} times: give it once.", ctx=context, param=parameter)


class _Command(TyperCommand):
    """Command whose options are given at most once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the command."""
        _require_options_once(self, ctx, args)
        return super().parse_args(ctx, args)


class _Group(TyperGroup):
    """Group whose own options are given at most once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the name of a command."""
        _require_options_once(self, ctx, args)
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """Group of commands."""

    def __init__(self, text: str, *, name: str | None = None, completion: bool = False) -> None:
        super().__init__(
            name=name,
            cls=_Group,
            help=text,
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            add_completion=completion,
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Register a function as a command; its name is the function's unless given."""
        return super().command(name, cls=_Command, **options)
