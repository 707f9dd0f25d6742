"""Filters for queries by SQLAlchemy: a plan of `Client.plan_resources` as a WHERE clause, on SQLite and PostgreSQL.

plan = client.plan_resources("user:ann@acme.io", "view", "documents")
session.scalars(filter(select(Document), Document.id, plan, prefix="documents/"))
"""

from typing import Any, Protocol, Self, TypeVar

from sqlalchemy import ColumnElement, Enum, Integer, String, Text, and_, cast, false, func, literal, or_, true
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from rolecall.domain import PlanKind, ResourcePlan

__all__ = ["condition", "filter"]

# Maximum characters of a resource in a Check.
MAX_RESOURCE = 1024
# What makes a resource malformed, between slashes before and after it: a Check of it is refused.
_MALFORMED = ("%//%", "%/./%", "%/../%", "%*%", "%/ %", "% /%")
_LAST_CHARACTER = "\U0010ffff"


class _Filterable(Protocol):
    def where(self, *conditions: ColumnElement[bool]) -> Self: ...


Statement = TypeVar("Statement", bound=_Filterable)
Column = ColumnElement[Any] | InstrumentedAttribute[Any]


class _ByteOrder(FunctionElement[str]):
    """Text that is compared byte by byte, whatever the collation of its column is."""

    type = Text()
    inherit_cache = True


def filter(statement: Statement, column: Column, plan: ResourcePlan, *, prefix: str = "") -> Statement:  # noqa: A001
    """Return the statement restricted to the rows on whose resources the plan's subject may. Raises as `condition`."""
    return statement.where(condition(column, plan, prefix=prefix))


def condition(column: Column, plan: ResourcePlan, *, prefix: str = "") -> ColumnElement[bool]:
    """Return the condition that the plan covers the resource of a row, for a column of text or of integers.

    The resource of a row is `prefix` and the column's value, as in `documents/` and `42`; without a prefix, the column
    holds whole resources. No row without a value, or whose resource a Check would refuse as malformed, meets the
    condition; only control and other invisible characters aren't looked for. Raises `ValueError` if the prefix is not
    beneath the plan's type, `TypeError` for a column of another type.
    """
    if prefix and not prefix.startswith(f"{plan.resource_type}/"):
        raise ValueError(f"The prefix `{prefix}` doesn't begin with the plan's type: write `{plan.resource_type}/`.")
    text = _text(column)
    include = (f"{plan.resource_type}/*",) if plan.kind is PlanKind.ALWAYS else plan.include
    if plan.kind is PlanKind.NEVER or not include:
        return false()
    allowed = and_(_is_well_formed(text, prefix), _is_covered(text, include, prefix))
    return and_(allowed, ~_is_covered(text, plan.exclude, prefix)) if plan.exclude else allowed


def _text(column: Column) -> ColumnElement[str]:
    if isinstance(column.type, Integer):
        return cast(column, Text)
    # An enumeration is stored by its names, which aren't its values.
    if isinstance(column.type, String) and not isinstance(column.type, Enum):
        return column  # type: ignore[return-value]
    raise TypeError(f"A column of the type {column.type!r} can't be compared with resources: cast it to text.")


def _is_well_formed(text: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    enclosed = literal(f"/{prefix}", Text()).concat(text).concat("/")
    return and_(func.length(text) <= MAX_RESOURCE - len(prefix), *(enclosed.not_like(each) for each in _MALFORMED))


def _is_covered(text: ColumnElement[str], patterns: tuple[str, ...], prefix: str) -> ColumnElement[bool]:
    """Return the condition that one of the patterns covers `prefix` and the text."""
    in_byte_order = _ByteOrder(text)
    exact: list[str] = []
    beginnings: list[str] = []
    for pattern in patterns:
        is_open = pattern.endswith("*")
        begin = pattern[:-1] if is_open else f"{pattern}/"
        if prefix.startswith(begin):
            return true()
        if begin.startswith(prefix):
            beginnings.append(begin.removeprefix(prefix))
            if not is_open:
                exact.append(pattern.removeprefix(prefix))
    ranges = [_begins_with(in_byte_order, begin) for begin in beginnings]
    return or_(in_byte_order.in_(exact), *ranges) if exact else or_(false(), *ranges)


def _begins_with(text: ColumnElement[str], begin: str) -> ColumnElement[bool]:
    """Return the condition as a range, which an index serves; LIKE ignores case on SQLite."""
    kept = begin.rstrip(_LAST_CHARACTER)
    if not kept:
        return text >= begin
    last = ord(kept[-1]) + 1
    # No text holds the code points from 0xD800 to 0xDFFF.
    return and_(text >= begin, text < kept[:-1] + chr(0xE000 if last == 0xD800 else last))


@compiles(_ByteOrder, "sqlite")
def _on_sqlite(element: _ByteOrder, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} COLLATE BINARY)"


@compiles(_ByteOrder, "postgresql")
def _on_postgresql(element: _ByteOrder, compiler: SQLCompiler, **options: Any) -> str:
    # The cast makes text of types that ignore case or trailing spaces, as citext and char.
    return f'(CAST({compiler.process(element.clauses, **options)} AS TEXT) COLLATE "C")'


@compiles(_ByteOrder)
def _elsewhere(_element: _ByteOrder, compiler: SQLCompiler, **_options: Any) -> str:
    raise CompileError(f"Plans filter queries of SQLite and PostgreSQL, not of {compiler.dialect.name}.")
