"""Altered credentials with a valid checksum."""

import zlib


def with_checksum(text: str) -> str:
    """Return the text with the checksum that fits the rest."""
    number, digits = zlib.crc32(text[:-6].encode()), []
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits.append("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[digit])
    return text[:-6] + "".join(reversed(digits))


def with_changed_character(text: str, place: int) -> str:
    """Return the text with another character at a place."""
    return text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]
