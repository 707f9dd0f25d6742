"""Page tokens: only those that this server gave out for this very list are taken."""

import base64
import hmac
import json
import os
import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rolecall.credentials.server_key import ServerKey
from rolecall.domain import Page
from rolecall.errors import InvalidField, PageToken
from rolecall.services.pagination import Pagination

EXAMPLES = 1000 if os.environ.get("CI") == "true" else 100
URL_SAFE = string.ascii_letters + string.digits + "-_"
PAGES = Pagination(ServerKey(b"k" * 32))
SCOPE = ("ListSubjects", "acme", "view")

positions = st.lists(st.text(), max_size=3)
scopes = st.lists(st.text(max_size=5), max_size=4).map(tuple)


def _refuse(token: str, scope: tuple[str, ...] = SCOPE, pages: Pagination = PAGES) -> None:
    """Require that the token is refused, with a message that doesn't repeat it."""
    with pytest.raises(PageToken) as caught:
        pages.position(scope, Page(0, token))
    assert caught.value.field == "page_token"
    assert "ask for the first page again" in caught.value.message


# Sizes


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(0, 50), (1, 1), (49, 49), (51, 51), (999, 999), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)],
)
def test_page_has_the_requested_size(asked: int, granted: int) -> None:
    """Any size from 1 to 1000 is granted; 0 means 50, and a larger one 1000."""
    assert PAGES.size(Page(asked)) == granted


@pytest.mark.parametrize("asked", [-1, -(2**31)])
def test_negative_size_is_refused(asked: int) -> None:
    """A negative size is refused with the range."""
    with pytest.raises(InvalidField) as caught:
        PAGES.size(Page(asked))

    assert caught.value.field == "page_size"
    assert f"page_size is {asked}: give 1 to 1000, or 0 for 50." in caught.value.message


# Tokens that are taken


def test_no_token_is_the_first_page() -> None:
    """Without a token a list begins at its first item."""
    assert PAGES.position(SCOPE, Page()) is None


@settings(max_examples=EXAMPLES)
@given(scope=scopes, position=positions)
def test_position_survives_the_round_trip(scope: tuple[str, ...], position: list[str]) -> None:
    """A page token encodes any position, and needs no quoting in a URL or a shell."""
    token = PAGES.token(scope, position)

    assert PAGES.position(scope, Page(7, token)) == position
    assert set(token) <= set(URL_SAFE)


@pytest.mark.parametrize("text", ["müller@bücher.example", "日本", "🦊", "\0", '"\\', "\u2028", ""])
def test_unusual_position_survives_the_round_trip(text: str) -> None:
    """Positions may have non-ASCII and control characters, and those of JSON's syntax."""
    assert PAGES.position(SCOPE, Page(0, PAGES.token(SCOPE, [text, text]))) == [text, text]


def test_token_outlives_the_process() -> None:
    """Another process with the same key accepts the token, and issues an equal one."""
    again = Pagination(ServerKey(b"k" * 32))
    token = PAGES.token(SCOPE, ["ann@acme.io"])

    assert again.position(SCOPE, Page(0, token)) == ["ann@acme.io"]
    assert again.token(SCOPE, ["ann@acme.io"]) == token


# Tokens that are refused


@settings(max_examples=EXAMPLES)
@given(
    position=positions,
    at=st.integers(0, 200),
    new=st.one_of(st.sampled_from(URL_SAFE), st.characters(codec=None)),
    change=st.sampled_from(["replace", "insert", "delete", "cut", "append", "double"]),
)
def test_changed_token_is_refused(position: list[str], at: int, new: str, change: str) -> None:
    """Any change of the text is noticed."""
    token = PAGES.token(SCOPE, position)
    at %= len(token)
    changed = {
        "replace": token[:at] + new + token[at + 1 :],
        "insert": token[:at] + new + token[at:],
        "delete": token[:at] + token[at + 1 :],
        "cut": token[: at or 1],
        "append": token + new,
        "double": token + token,
    }[change]
    assume(changed != token)

    _refuse(changed)


@pytest.mark.parametrize("length", range(6))
def test_other_spelling_of_the_same_bytes_is_refused(length: int) -> None:
    """Base64 has several texts for some bytes; only the issued one is accepted."""
    token = PAGES.token(SCOPE, ["x" * length])
    padded = token + "=" * (-len(token) % 4)
    raw = base64.urlsafe_b64decode(padded)
    spare_bits = [
        token[:-1] + last
        for last in URL_SAFE
        if last != token[-1] and base64.urlsafe_b64decode(token[:-1] + last + "=" * (-len(token) % 4)) == raw
    ]
    others = [padded, token + "=", token + "==", token + "\n", " " + token, token[:5] + "\n" + token[5:], *spare_bits]
    others.append(base64.b64encode(raw).decode().rstrip("="))

    assert len(spare_bits) == {0: 0, 3: 3, 2: 15}[len(token) % 4]
    for other in set(others) - {token}:
        _refuse(other)


def test_standard_alphabet_is_refused() -> None:
    """A token with `+` and `/` instead of `-` and `_` is refused."""
    tokens = [PAGES.token(SCOPE, [str(number)]) for number in range(50)]
    changed = [token.replace("-", "+").replace("_", "/") for token in tokens]

    assert changed != tokens
    for other in set(changed) - set(tokens):
        _refuse(other)


@pytest.mark.parametrize("token", ["x", "=", "====", "AAAA", "A" * 22, "A" * 1000, "é", "\0", "\ud800", "null", "W10"])
def test_made_up_token_is_refused(token: str) -> None:
    """Tokens that are short, empty when decoded, not base64 or not ASCII are refused without an internal error."""
    _refuse(token)


@settings(max_examples=EXAMPLES)
@given(token=st.text(min_size=1))
def test_any_other_text_is_refused(token: str) -> None:
    """Any other text as a page token gets the same error."""
    _refuse(token)


@settings(max_examples=EXAMPLES)
@given(first=scopes, second=scopes, position=positions)
def test_token_of_another_list_is_refused(first: tuple[str, ...], second: tuple[str, ...], position: list[str]) -> None:
    """A token goes with one list, organization and filter."""
    assume(first != second)

    _refuse(PAGES.token(first, position), second)


@settings(max_examples=EXAMPLES)
@given(
    text=st.text(alphabet='ab,"\\[] \0é', max_size=8),
    cuts=st.tuples(st.lists(st.integers(0, 8), max_size=3), st.lists(st.integers(0, 8), max_size=3)),
)
def test_text_moved_between_parts_of_the_scope_is_refused(text: str, cuts: tuple[list[int], list[int]]) -> None:
    """Equal characters divided differently are another scope: a filter can't imitate an organization."""
    first, second = (
        tuple(text[begin:end] for begin, end in zip([0, *sorted(cut)], [*sorted(cut), len(text)], strict=True))
        for cut in cuts
    )
    assume(first != second)

    _refuse(PAGES.token(first, [text]), second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a", "bc"), ("ab", "c")),
        (("a", "b"), ("a", "b", "")),
        (("a", ""), ("", "a")),
        (("a", "b"), ('a", "b',)),
        (("a\\", "b"), ("a", "\\b")),
        (("a", "é"), ("a", "\\u00e9")),
        (("a",), ("a\0",)),
        (("a", "b"), ("b", "a")),
        (("acme",), ("ACME",)),
        (("é",), ("e\u0301",)),
        (("",), ()),
    ],
)
def test_similar_scopes_are_distinguished(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    """Separators, escapes, empty parts and letters that look the same make different scopes, both ways round."""
    _refuse(PAGES.token(first, ["x"]), second)
    _refuse(PAGES.token(second, ["x"]), first)


@pytest.mark.parametrize("other", [b"K" * 32, b"k" * 31 + b"l", b"\0" * 32])
def test_token_of_another_key_is_refused(other: bytes) -> None:
    """A token signed with another server's key is refused."""
    _refuse(Pagination(ServerKey(other)).token(SCOPE, ["x"]))


@pytest.mark.parametrize("use", ["", "page", "mail", "checkpoints"])
def test_signature_with_another_sub_key_is_refused(use: str) -> None:
    """Neither the server's key itself nor a sub-key for something else signs page tokens."""
    body = json.dumps(["x"]).encode()
    message = json.dumps(SCOPE).encode() + b"\0" + body
    key = ServerKey(b"k" * 32)
    made = [
        base64.urlsafe_b64encode(hmac.digest(secret, message, "sha256")[:16] + body).rstrip(b"=").decode()
        for secret in (key.derive(use), key.secret, key.derive("pages"))
    ]

    _refuse(made[0])
    _refuse(made[1])
    assert made[2] == PAGES.token(SCOPE, ["x"])
