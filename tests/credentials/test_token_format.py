"""The text of credentials: its shape and checksum, and that nothing but a digest of it is ever kept."""

import hashlib
import os
import re
import string
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolecall.credentials import token_format
from rolecall.credentials.token_format import MintedCredential, PresentedCredential
from rolecall.domain import CredentialKind, Member, Organization
from rolecall.storage import Storage, Transaction, members, organizations
from rolecall.storage import credentials as rows
from rolecall.storage.credentials import NewCredential

EXAMPLES = 1000 if os.environ.get("CI") == "true" else 100
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
SHAPE = re.compile(r"(rcp|rco|rcs)_([0-9A-Za-z]{22})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")


def _with_checksum(body: str) -> str:
    """Return `body` with its CRC32, computed independently of the code under test."""
    number, digits = zlib.crc32(body.encode()), ""
    while number:
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return body + digits.rjust(6, "0")


def _bodies() -> st.SearchStrategy[str]:
    return st.builds(
        "{}_{}_{}".format,
        st.sampled_from(CredentialKind),
        st.text(BASE62, min_size=22, max_size=22),
        st.text(BASE62, min_size=43, max_size=43),
    )


def _texts() -> st.SearchStrategy[str]:
    """Credentials that `parse` takes: the tests change them, and each change must be refused."""
    return _bodies().map(_with_checksum)


def _parts(minted: MintedCredential) -> list[str]:
    """Every eight consecutive characters of the secret with its checksum: too long to be found anywhere by chance."""
    secret = minted.text.split("_")[2]
    return [secret[start : start + 8] for start in range(len(secret) - 7)]


def _store(storage: Storage, minted: MintedCredential) -> None:
    """Keep `minted` as the token of `ann` in a new organization, from 1 to 2 microseconds after 1970."""

    def work(tx: Transaction) -> None:
        organizations.add(tx, Organization("acme", "Acme", 0, 1))
        members.add(tx, Member("acme", "ann", "ann@acme.io", "Ann", "OWNER", 1, 1), "ann@acme.io")
        rows.add(tx, _new(minted))

    storage.write(work)


def _new(minted: MintedCredential) -> NewCredential:
    return NewCredential(minted, "acme", "ann", None, "laptop", None, "operator", 1, 2)


def _is_held(storage: Storage, credential_id: str, digest: bytes) -> bool:
    """Whether a caller with an id and a text with this digest is authenticated."""
    return storage.read(lambda tx: rows.holders(tx, [(credential_id, digest)])) != [None]


# New ones


@pytest.mark.parametrize("kind", CredentialKind)
def test_minted_credential_has_the_shape(kind: CredentialKind) -> None:
    """Prefix, id and secret are where a scanner looks for them, and the id is the middle part."""
    minted = token_format.mint(kind)
    match = SHAPE.fullmatch(minted.text)

    assert match is not None
    assert (match[1], match[2]) == (kind.value, minted.id)
    assert minted.last_four == minted.text[-4:]


@pytest.mark.parametrize("kind", CredentialKind)
def test_minted_credential_can_be_parsed(kind: CredentialKind) -> None:
    """A minted text parses to the same kind, id and digest; the digest is the one that is stored."""
    minted = token_format.mint(kind)
    presented = token_format.parse(minted.text)

    assert presented == PresentedCredential(kind, minted.id, hashlib.sha256(minted.text.encode()).digest())
    assert presented.digest == minted.digest


def test_new_secret_keeps_the_id() -> None:
    """A credential that is minted again has its kind and id, and another text with another digest."""
    first = token_format.mint(CredentialKind.ORGANIZATION)
    second = token_format.mint(CredentialKind.ORGANIZATION, first.id)
    match = SHAPE.fullmatch(second.text)

    assert match is not None
    assert match[2] == second.id == first.id
    assert second.digest != first.digest
    assert token_format.parse(second.text) == PresentedCredential(CredentialKind.ORGANIZATION, first.id, second.digest)


def test_checksum_is_the_crc32_of_the_rest() -> None:
    """The last six characters are the CRC32 of all before them, in base 62."""
    texts = [token_format.mint(CredentialKind.PERSONAL).text for _ in range(50)]

    assert [_with_checksum(text[:-6]) for text in texts] == texts


def test_minted_credentials_are_unique() -> None:
    """Ids and secrets are new each time."""
    minted = [token_format.mint(CredentialKind.PERSONAL) for _ in range(2000)]

    assert len({one.id for one in minted}) == len(minted)
    assert len({one.text.split("_")[2][:43] for one in minted}) == len(minted)
    assert len({token_format.new_id() for _ in range(2000)}) == 2000


def test_every_bit_of_an_id_is_random() -> None:
    """Read as a number, ids use all of 128 bits: each bit is now set, now not, and no more than those are used."""
    numbers = [sum(BASE62.index(c) * 62**i for i, c in enumerate(reversed(token_format.new_id()))) for _ in range(200)]

    assert all(0 < sum(number >> bit & 1 for number in numbers) < 200 for bit in range(128))
    assert all(number < 2**128 for number in numbers)


def test_every_bit_of_a_secret_is_random() -> None:
    """Read as a number, secrets use all of 256 bits."""
    secrets = [token_format.mint(CredentialKind.PERSONAL).text.split("_")[2][:43] for _ in range(200)]
    numbers = [sum(BASE62.index(c) * 62**i for i, c in enumerate(reversed(secret))) for secret in secrets]

    assert all(0 < sum(number >> bit & 1 for number in numbers) < 200 for bit in range(256))
    assert all(number < 2**256 for number in numbers)


# Presented ones


@settings(max_examples=EXAMPLES)
@given(body=_bodies())
def test_any_text_of_the_shape_and_checksum_can_be_parsed(body: str) -> None:
    """A credential is parsed by its shape and checksum alone: whether it is live is in the database."""
    text = _with_checksum(body)

    kind, identifier, _ = body.split("_")

    assert token_format.parse(text) == PresentedCredential(
        CredentialKind(kind), identifier, hashlib.sha256(text.encode()).digest()
    )


@settings(max_examples=EXAMPLES)
@given(
    text=_texts(), position=st.integers(0, 75), character=st.one_of(st.sampled_from(BASE62), st.characters(codec=None))
)
def test_one_changed_character_is_refused(text: str, position: int, character: str) -> None:
    """A change of any one character breaks the checksum or the shape."""
    changed = text[:position] + character + text[position + 1 :]

    assert (token_format.parse(changed) is None) is (changed != text)


@settings(max_examples=EXAMPLES)
@given(text=_texts(), position=st.integers(0, 75))
def test_one_letter_in_the_other_case_is_refused(text: str, position: int) -> None:
    """Upper and lower case are different characters."""
    changed = text[:position] + text[position].swapcase() + text[position + 1 :]

    assert (token_format.parse(changed) is None) is (changed != text)


@settings(max_examples=EXAMPLES)
@given(text=_texts(), first=st.integers(0, 76), last=st.integers(0, 76))
def test_part_of_a_credential_is_refused(text: str, first: int, last: int) -> None:
    """Cut off at the beginning, at the end or at both."""
    part = text[first:last]

    assert (token_format.parse(part) is None) is (part != text)


@settings(max_examples=EXAMPLES)
@given(text=_texts(), before=st.text(max_size=3), after=st.text(max_size=3))
def test_anything_around_a_credential_is_refused(text: str, before: str, after: str) -> None:
    """Text before or after a credential makes it invalid."""
    longer = before + text + after

    assert (token_format.parse(longer) is None) is (longer != text)


@settings(max_examples=EXAMPLES)
@given(text=_texts(), position=st.integers(0, 74))
def test_two_swapped_characters_are_refused(text: str, position: int) -> None:
    """Neighbours in the wrong order are found too."""
    swapped = text[:position] + text[position + 1] + text[position] + text[position + 2 :]

    assert (token_format.parse(swapped) is None) is (swapped != text)


@settings(max_examples=EXAMPLES)
@given(text=st.text())
def test_other_text_is_refused(text: str) -> None:
    """`parse` returns None for any other text, and raises nothing."""
    assert token_format.parse(text) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + "\n",
        lambda text: "\n" + text,
        lambda text: text + "\r\n",
        lambda text: text + " ",
        lambda text: text + "\0",
        lambda text: text + "\ud800",
        lambda text: text[:-1] + "é",
        lambda text: text[:30] + "٣" + text[31:],
        lambda text: text[:30] + "\u212a" + text[31:],
        lambda text: text.translate({ord("_"): "\uff3f"}),
        lambda text: text.replace("_", "-"),
        lambda text: _with_checksum(text[:-6].replace("rcp_", "rcx_")),
        lambda text: _with_checksum(text[:-6].replace("rcp_", "RCP_")),
        lambda text: _with_checksum(text[:-6].replace("rcp_", "_")),
        lambda text: _with_checksum(text[:-7]),
        lambda text: _with_checksum(text[:-6] + "0"),
        lambda text: _with_checksum(text[:26] + "0" + text[26:-6]),
        lambda text: _with_checksum(text[:27] + text[28:-6]),
        lambda text: _with_checksum(text[:30] + "é" + text[31:-6]),
        lambda text: _with_checksum(text[:30] + "\n" + text[31:-6]),
        lambda text: f"Bearer {text}",
        lambda text: text * 2,
        lambda _: "",
    ],
)
def test_wrong_shape_is_refused(damage: Callable[[str], str]) -> None:
    """A right checksum doesn't make up for a wrong shape, and look-alikes are no letters."""
    text = token_format.mint(CredentialKind.PERSONAL).text

    assert token_format.parse(text) is not None
    assert token_format.parse(damage(text)) is None


def test_right_id_with_another_secret_does_not_match(storage: Storage) -> None:
    """Only the complete text has the stored digest, neither a part of it nor a longer text."""
    stored = token_format.mint(CredentialKind.PERSONAL)
    other = token_format.mint(CredentialKind.PERSONAL)
    presented = token_format.parse(stored.text)
    forged = token_format.parse(_with_checksum(f"rcp_{stored.id}_{other.text.split('_')[2][:43]}"))
    _store(storage, stored)

    assert presented is not None
    assert forged is not None
    assert forged.id == stored.id
    assert _is_held(storage, stored.id, presented.digest)
    for digest in (forged.digest, b"", stored.digest[:31], stored.digest + b"\0", stored.digest[::-1], bytes(32)):
        assert not _is_held(storage, stored.id, digest)


# What is kept of them


def test_only_the_digest_is_stored(sqlite_url: str, tmp_path: Path) -> None:
    """The database's files, the write-ahead log among them, hold the digest, and no part of the secret."""
    minted = token_format.mint(CredentialKind.PERSONAL)
    storage = Storage(sqlite_url)
    storage.create()
    _store(storage, minted)
    files = {path.name: path.read_bytes() for path in tmp_path.glob("rolecall.db*")}
    storage.close()
    files["after closing"] = (tmp_path / "rolecall.db").read_bytes()
    leaks = [name for name, content in files.items() if any(part.encode() in content for part in _parts(minted))]

    assert minted.digest in files["rolecall.db-wal"]
    assert minted.digest in files["after closing"]
    assert minted.id.encode() in files["after closing"]
    assert leaks == []


def test_secret_is_in_no_repr() -> None:
    """The repr of a credential, as in a log, shows id and kind, and neither text, secret nor digest."""
    minted = token_format.mint(CredentialKind.PERSONAL)
    presented = token_format.parse(minted.text)
    new = _new(minted)

    for shown in (repr(minted), str(minted), repr(presented), str(presented), repr(new), f"{new}"):
        assert minted.id in shown
        assert not any(part in shown for part in _parts(minted))
        assert repr(minted.digest) not in shown
        assert minted.digest.hex() not in shown
