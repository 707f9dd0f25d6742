"""Mail addresses: the form that people wrote, and the key that identifies them."""

from dataclasses import dataclass

from email_validator import EmailNotValidError, validate_email

from rolecall.errors import InvalidField

__all__ = ["Address", "key_of", "mailbox", "parse"]

MAX_LENGTH = 254
# The library names every bad character of an address.
MAX_REASON = 120


@dataclass(frozen=True, slots=True)
class Address:
    """An address as written, and its key: ASCII local part, A-label domain, all in lower case."""

    display: str
    key: str


def parse(text: str, field: str = "email") -> Address:
    """The address in `text`. Raises `InvalidField` for `field` where it is none that we can send mail to."""
    if len(text) > MAX_LENGTH:
        raise InvalidField(f"The address has {len(text)} characters, more than {MAX_LENGTH}.", field=field)
    try:
        result = validate_email(text, check_deliverability=False, allow_smtputf8=False, strict=True)
    except EmailNotValidError as error:
        raise InvalidField(f"The address is not valid: {str(error)[:MAX_REASON]}", field=field) from error
    if "=?" in result.local_part:
        # Mail software takes it for an encoded word, and may read another address in it.
        raise InvalidField("The address holds `=?`, which mail software reads as another one.", field=field)
    # Without SMTPUTF8, every valid address has an ASCII form.
    assert result.ascii_email is not None  # noqa: S101 - for the type checker
    return Address(result.normalized, result.ascii_email.lower())


def mailbox(text: str) -> str:
    """The address as mail servers take it: its domain in A-labels, its local part as written. Raises as `parse`."""
    key = parse(text).key
    return f"{text.rpartition('@')[0]}@{key.rpartition('@')[2]}"


def key_of(text: str, field: str) -> str:
    """The key under which an address is looked up. Cheap for ASCII: what is no address is simply nobody's."""
    if text.isascii():
        return text.lower()
    return parse(text, field).key
