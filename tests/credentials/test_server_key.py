"""The server's key: who may read it, what is refused, and its sub-keys."""

import hashlib
import hmac
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.credentials import server_key
from rolecall.credentials.server_key import ServerKey
from rolecall.errors import ConfigError


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The path of a key that doesn't exist yet."""
    return tmp_path / "rolecall.key"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Set a umask with which new files are open to all users by default."""
    before = os.umask(0)
    yield
    os.umask(before)


def problem(path: Path) -> str:
    """The message of `read` about the file."""
    with pytest.raises(ConfigError) as caught:
        server_key.read(path)
    return caught.value.message


@pytest.mark.usefixtures("open_umask")
def test_new_key_file_is_readable_by_its_owner_only(key_file: Path) -> None:
    """A new key file has 32 bytes and mode 0600, whatever the umask."""
    server_key.create(key_file)

    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key_file.stat().st_size == 32


def test_new_key_is_the_one_that_is_read_later(key_file: Path) -> None:
    """`create` returns the key that it wrote to the file."""
    created = server_key.create(key_file)

    read = server_key.read(key_file)

    assert read == created
    assert read.secret == key_file.read_bytes()


def test_keys_are_unique(tmp_path: Path) -> None:
    """Keys are random."""
    made = {server_key.create(tmp_path / f"{number}.key").secret for number in range(10)}

    assert len(made) == 10


def test_key_is_never_overwritten(key_file: Path) -> None:
    """A second `create` fails and leaves the first key as it was."""
    created = server_key.create(key_file)

    with pytest.raises(ConfigError) as caught:
        server_key.create(key_file)

    assert caught.value.message == f"The key file {key_file} can't be created: File exists."
    assert server_key.read(key_file) == created


def test_key_is_not_written_through_a_link(key_file: Path, tmp_path: Path) -> None:
    """A link that somebody put there doesn't lead the key elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    key_file.symlink_to(elsewhere)

    with pytest.raises(ConfigError):
        server_key.create(key_file)

    assert not elsewhere.exists()


def test_key_in_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A missing folder is named with the file."""
    path = tmp_path / "missing" / "rolecall.key"

    with pytest.raises(ConfigError) as caught:
        server_key.create(path)

    assert caught.value.message == f"The key file {path} can't be created: No such file or directory."


def test_missing_key_says_how_to_get_one(key_file: Path) -> None:
    """Without a key, the message names the command that makes one and the setting that finds it."""
    message = problem(key_file)

    assert str(key_file) in message
    assert "run `rolecall init`" in message
    assert "ROLECALL_KEY_FILE" in message


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_key_of_another_size_says_to_restore_it(key_file: Path, size: int) -> None:
    """A truncated or foreign file is not taken for a key, and not shown."""
    key_file.touch(0o600)
    key_file.write_bytes(b"K" * size)

    message = problem(key_file)

    assert f"{key_file} holds {size} bytes, not 32: restore it from a backup" in message
    assert "KK" not in message


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o444, 0o644, 0o666])
def test_key_open_to_others_says_how_to_protect_it(key_file: Path, mode: int) -> None:
    """Any right for others is one too many; the message holds the command to paste, and what helps where none does."""
    server_key.create(key_file)
    key_file.chmod(mode)

    message = problem(key_file)

    assert f"(mode {mode:04o})" in message
    assert f"`chmod 600 {key_file}`" in message
    assert "`defaultMode: 0400`" in message
    assert "`fsGroup`" in message


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700, 0o440, 0o640, 0o660])
def test_key_with_safe_mode_is_read(key_file: Path, mode: int) -> None:
    """A key file that only its owner, and a group that the owner chose, may access is read."""
    created = server_key.create(key_file)
    key_file.chmod(mode)

    assert server_key.read(key_file) == created


def test_folder_instead_of_a_key_is_refused(tmp_path: Path) -> None:
    """A path that can't be read as a file says why."""
    assert problem(tmp_path) == f"The key file {tmp_path} can't be read: Is a directory."


def test_sub_keys_differ_by_use_and_by_key() -> None:
    """Neither two uses nor two keys have a sub-key in common; no sub-key is the key itself."""
    first, second = ServerKey(bytes(32)), ServerKey(bytes(31) + b"\1")

    derived = [first.derive("pages"), first.derive("mail"), second.derive("pages"), second.derive("mail")]

    assert len({*derived, first.secret, second.secret}) == 6
    assert {len(key) for key in derived} == {32}


def test_sub_keys_are_stable() -> None:
    """A restart, or the next release, derives the same sub-keys: what was signed stays valid."""
    key = ServerKey(bytes(range(32)))

    assert key.derive("pages") == key.derive("pages")
    assert key.derive("pages") == hmac.new(bytes(range(32)), b"rolecall sub-key pages", hashlib.sha256).digest()


def test_id_distinguishes_keys_without_giving_them_away() -> None:
    """The id is stable and short, differs by key, and is neither part of the key nor of a sub-key."""
    first, second = ServerKey(bytes(range(32))), ServerKey(bytes(range(1, 33)))

    assert first.id == ServerKey(bytes(range(32))).id
    assert first.id != second.id
    assert len(first.id) == 8
    assert first.id not in first.secret.hex()
    assert first.id not in first.derive("pages").hex()


def test_repr_shows_no_secret() -> None:
    """A key in a log line or a traceback gives nothing away."""
    key = ServerKey(b"0123456789abcdef0123456789abcdef")

    for shown in (repr(key), str(key), f"{key}"):
        assert "0123456789abcdef" not in shown
        assert key.secret.hex() not in shown


def test_key_that_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A FIFO as the key file doesn't block, and a device isn't read without end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="holds 0 bytes"):
            server_key.read(path)
