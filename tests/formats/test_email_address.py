"""Addresses: one key for all the ways in which one mailbox is written, and none for look-alikes."""

import os
import string

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from rolecall.errors import InvalidField
from rolecall.formats.email_address import MAX_LENGTH, Address, key_of, parse

EXAMPLES = 1000 if os.environ.get("CI") == "true" else 100

# RFC 5322's atoms, dotted; labels with what a name server takes, and A-labels in either case.
atoms = st.text(string.ascii_letters + string.digits + "!#$%&'*+/=?^_`{|}~-", min_size=1, max_size=12)
locals_ = st.lists(atoms, min_size=1, max_size=3).map(".".join)
labels = st.one_of(
    st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,8}[A-Za-z0-9])?", fullmatch=True),
    st.sampled_from(["xn--bcher-kva", "XN--BCHER-KVA", "Xn--Fa-Hia", "xn--mnchen-3ya"]),
)
domains = st.tuples(labels, st.sampled_from(["io", "COM", "Example.org", "xn--p1ai"])).map(".".join)
addresses = st.builds("{}@{}".format, locals_, domains)


def _refused(text: str) -> str:
    """Require that `text` is no address; return the message."""
    with pytest.raises(InvalidField) as caught:
        parse(text, "invitee")
    assert caught.value.field == "invitee"
    return caught.value.message


# One key


@pytest.mark.parametrize(
    ("text", "display", "key"),
    [
        ("ann@acme.io", "ann@acme.io", "ann@acme.io"),
        ("Ann.Lee+Work@ACME.io", "Ann.Lee+Work@acme.io", "ann.lee+work@acme.io"),
        ("ANN@acme.io", "ANN@acme.io", "ann@acme.io"),
        ("ann@Bücher.example", "ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@BÜCHER.example", "ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@bu\u0308cher.example", "ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@xn--bcher-kva.example", "ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@XN--BCHER-KVA.example", "ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@faß.de", "ann@faß.de", "ann@xn--fa-hia.de"),
        ("ann@почта.рф", "ann@почта.рф", "ann@xn--80a1acny.xn--p1ai"),
        ("ann@acme\u3002io", "ann@acme.io", "ann@acme.io"),
        ("ann@\uff41\uff43\uff4d\uff45.io", "ann@acme.io", "ann@acme.io"),
        # In a domain name the Kelvin sign is a k for every name server.
        ("ann@\u212aelvin.io", "ann@kelvin.io", "ann@kelvin.io"),
    ],
)
def test_address_has_one_key(text: str, display: str, key: str) -> None:
    """An address's key is lower-case with the domain as A-label, however written; the local part is shown as it is."""
    address = parse(text)

    assert address == Address(display, key)
    assert key_of(text, "subject") == key


@settings(max_examples=EXAMPLES)
@given(text=addresses)
def test_key_of_ascii_is_the_key_of_the_address(text: str) -> None:
    """The fast path for ASCII gives the same key as the full parser."""
    try:
        address = parse(text)
    except InvalidField:
        reject()

    assert key_of(text, "subject") == address.key


@settings(max_examples=EXAMPLES)
@given(text=addresses, upper=st.lists(st.booleans(), min_size=40, max_size=40))
def test_case_of_an_address_does_not_matter(text: str, upper: list[bool]) -> None:
    """Addresses that differ in case only have the same key."""
    other = "".join(
        letter.upper() if up else letter.lower() for letter, up in zip(text, upper * len(text), strict=False)
    )
    try:
        address = parse(text)
    except InvalidField:
        reject()

    assert parse(other).key == address.key


@settings(max_examples=EXAMPLES)
@given(text=addresses)
def test_displayed_form_has_the_same_key(text: str) -> None:
    """The shown form and the key can both be pasted back; the key is ASCII, lower-case, its own key."""
    try:
        address = parse(text)
    except InvalidField:
        reject()

    assert parse(address.display).key == parse(address.key).key == address.key
    assert address.key.isascii()
    assert address.key == address.key.lower()


@settings(max_examples=EXAMPLES)
@given(text=st.text(st.characters(codec="ascii")))
def test_look_up_of_any_ascii_text_is_cheap(text: str) -> None:
    """A lookup accepts any ASCII text: one that is not an address belongs to no member."""
    assert key_of(text, "subject") == text.lower()


@settings(max_examples=EXAMPLES)
@given(text=st.one_of(st.text(), st.builds("{}@{}".format, st.text(), st.text())))
def test_any_text_has_a_key_or_is_refused(text: str) -> None:
    """Any text gets an ASCII key or `InvalidField`; nothing else is raised."""
    try:
        key = key_of(text, "subject")
    except InvalidField:
        key = ""

    assert key.isascii()


# No key


@pytest.mark.parametrize(
    "text",
    [
        "\u212aim@acme.io",
        "\u0430nn@acme.io",
        "ann\u0131@acme.io",
        "\u0130@acme.io",
        "Änn@acme.io",
        "\uff41nn@acme.io",
        "ann\u200b@acme.io",
        "ann\u00ad@acme.io",
        "ann@acme.io\u200b",
        "ann\uff20acme.io",
        "ann@ac\u202eme.io",
    ],
    ids=ascii,
)
def test_similar_looking_address_is_refused(text: str) -> None:
    """A local part beyond ASCII, and anything invisible, is nobody's address: not as a member, not in a look-up."""
    _refused(text)

    with pytest.raises(InvalidField) as caught:
        key_of(text, "subject")
    assert caught.value.field == "subject"


def test_similar_looking_domain_has_another_key() -> None:
    """A Cyrillic letter in a domain is another domain, and its key shows it."""
    assert parse("ann@\u0430cme.io").key == "ann@xn--cme-5cd.io"


@pytest.mark.parametrize(
    "text",
    [
        "ann@acme.io\n",
        "ann@acme.io\r\n",
        "\nann@acme.io",
        "ann\n@acme.io",
        "ann@acme.io\r\nBcc: eve@acme.io",
        "ann@acme.io\n\neve@acme.io",
        "ann\0@acme.io",
        "ann@acme.io\0",
        "ann\t@acme.io",
        "ann@acme.io\x7f",
        "ann@acme.io\u2028",
        "ann@acme.io\x85",
    ],
    ids=ascii,
)
def test_line_breaks_and_controls_are_refused(text: str) -> None:
    """Line breaks and controls get neither into a mail's header nor into the error's text."""
    assert _refused(text).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "ann@acme.io,eve@acme.io",
        "ann@acme.io, eve@acme.io",
        "ann@acme.io;eve@acme.io",
        "ann@acme.io eve@acme.io",
        "ann@eve@acme.io",
        "Ann <ann@acme.io>",
        "<ann@acme.io>",
        "ann@acme.io (Ann)",
        "ann(comment)@acme.io",
        '"ann"@acme.io',
        '"ann@eve"@acme.io',
        "mailto:ann@acme.io?cc=eve@acme.io",
    ],
)
def test_more_than_one_plain_address_is_refused(text: str) -> None:
    """Two addresses, names, comments and quotes: mail goes to exactly the one address that is shown."""
    _refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "@",
        "ann",
        "ann@",
        "@acme.io",
        " ann@acme.io",
        "ann@acme.io ",
        "ann@ acme.io",
        ".ann@acme.io",
        "ann.@acme.io",
        "a..nn@acme.io",
        "ann@acme..io",
        "ann@.acme.io",
        "ann@acme.io.",
        "ann@-acme.io",
        "ann@acme-.io",
        "ann@ac_me.io",
        "ann@acme",
        "ann@localhost",
        "ann@[127.0.0.1]",
        "ann@127.0.0.1",
        "ann@acme.test",
        "ann@acme.local",
        "ann@acme.invalid",
        "ann@xn--a.io",
        "ann@xn--.io",
    ],
)
def test_undeliverable_address_is_refused(text: str) -> None:
    """A text that isn't an address of the public net is refused with the reason."""
    assert _refused(text).startswith("The address is not valid: ")


def test_length_is_limited() -> None:
    """An address of 254 characters is taken, one of 255 isn't."""
    host = ".".join(["h" * 61] * 3) + ".com"
    longest = "a" * 64 + "@" + host

    assert len(longest) == MAX_LENGTH
    assert parse(longest).key == longest
    _refused(longest.replace(".com", ".coms"))


def test_length_of_the_a_label_counts() -> None:
    """A domain that is short as written and too long for a name server is refused."""
    _refused("ann@" + "ü" * 60 + ".io")


def test_very_long_text_is_refused() -> None:
    """A text that is far too long is refused, whichever part is too long."""
    _refused("a" * 10_000 + "@acme.io")
    _refused("ann@" + "a." * 5_000 + "io")
