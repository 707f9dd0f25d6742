"""Rows as spreadsheets export them: quoted, padded with empty cells, or separated by something else than commas."""

import re
from typing import NamedTuple

__all__ = ["OtherSeparator", "bare", "find_other_separator", "is_quoted_comment", "plain_rows"]

_PADDED = re.compile(r", *$", re.MULTILINE)
# A quoted comment that is closed in its line; two quotes stand for one.
_QUOTED_COMMENT = re.compile(r' *"#(?:[^"]|"")*"[ ,]*')
_QUOTED = re.compile(r' *"[^"]*" *')
# The first row that isn't a comment, its first value and what follows that.
_FIRST_ROW = re.compile(r'^(?! *"?#)(?![ ,;\t"]*$)[ "]*\w+[ "]*(.?)', re.MULTILINE)

_SEPARATORS = {
    ";": (
        "The values are separated by semicolons, as spreadsheets do it where the comma is the decimal sign.",
        "Export the sheet with the comma as field delimiter, or replace each `;` by `,`.",
    ),
    "\t": (
        "The values are separated by tabs, as in a table that was copied, or saved as `Text (tab delimited)`.",
        "Save the sheet as `CSV UTF-8 (comma delimited)`, or replace each tab by a comma.",
    ),
}


class OtherSeparator(NamedTuple):
    """Another separator than the comma: its line and column in the first row, what it is, and what to do."""

    line: int
    column: int
    message: str
    fix: str


def find_other_separator(text: str) -> OtherSeparator | None:
    """Return the separator of the first row if it isn't the comma; None if it is, or there is no row."""
    first = _FIRST_ROW.search(text)
    if first is None or first[1] not in _SEPARATORS:
        return None
    line = text.count("\n", 0, first.start()) + 1
    return OtherSeparator(line, first.start(1) - first.start() + 1, *_SEPARATORS[first[1]])


def plain_rows(text: str) -> str:
    """Return the text without quotes around plain values, empty cells at the ends of rows, and rows without values.

    Casbin would read those as parts of the rules. All else keeps its line and column: blanks take the place of quotes.
    """
    if '"' not in text and not _PADDED.search(text):
        return text
    return "\n".join(map(_plain_row, text.split("\n")))


def bare(cell: str) -> str:
    """Return the value of a cell without blanks and quotes around it; a value that holds a quote stays as it is."""
    return cell.replace('"', "").strip() if _QUOTED.fullmatch(cell) else cell.strip()


def is_quoted_comment(row: str) -> bool:
    """Whether the row is a comment in a quoted cell, as of one that holds a comma."""
    return _QUOTED_COMMENT.fullmatch(row) is not None


def _plain_row(row: str) -> str:
    if row.lstrip(" ").startswith("#"):
        return row
    if is_quoted_comment(row):
        return row.replace('"', "", 1)
    cells = row.split(",")
    if any('"' in cell and not _QUOTED.fullmatch(cell) for cell in cells):
        return row
    plain = row.replace('"', " ")
    return plain.rstrip(" ,") if plain.rstrip(" ").endswith(",") else plain
