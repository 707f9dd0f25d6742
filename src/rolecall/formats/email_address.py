"""Email addresses: the form that people wrote, and the normalized key that identifies them."""

from dataclasses import dataclass

from rolecall.errors import InvalidField

__all__ = ["Address", "key_of", "mailbox", "parse"]

# Maximum characters of an address (RFC 5321), and of the reason in an error: the library lists every bad character.
MAX_LENGTH = 254
MAX_REASON = 120


@dataclass(frozen=True, slots=True)
class Address:
    """Address as written, and its key: ASCII local part, A-label domain, all in lower case."""

    display: str
    key: str


def parse(text: str, field: str = "email") -> Address:
    """Parse the address in `text`. Raises `InvalidField` for `field` where no mail can be sent to it."""
    # Most processes parse no new address, or not soon.
    from email_validator import EmailNotValidError, validate_email  # noqa: PLC0415

    if len(text) > MAX_LENGTH:
        raise InvalidField(f"The address has {len(text)} characters, more than {MAX_LENGTH}: shorten it.", field=field)
    try:
        result = validate_email(text, check_deliverability=False, allow_smtputf8=False, strict=True)
    except EmailNotValidError as error:
        raise InvalidField(f"The address is not valid: {str(error)[:MAX_REASON]}", field=field) from error
    if "=?" in result.local_part:
        # Mail software decodes it as an encoded word (RFC 2047), which may contain another address.
        raise InvalidField(
            "The address contains `=?`, which mail software decodes into another address: remove it.", field=field
        )
    # Without SMTPUTF8, every valid address has an ASCII form.
    assert result.ascii_email is not None  # noqa: S101 - for the type checker
    return Address(result.normalized, result.ascii_email.lower())


def mailbox(text: str) -> str:
    """Return the address for mail servers: domain in A-labels, local part as written. Raises `InvalidField`."""
    key = parse(text).key
    return f"{text.rpartition('@')[0]}@{key.rpartition('@')[2]}"


def key_of(text: str, field: str) -> str:
    """Return the key under which an address is looked up. ASCII is only lowercased: an invalid one finds no member."""
    if text.isascii():
        return text.lower()
    return parse(text, field).key
