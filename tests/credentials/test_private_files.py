"""Access to a file with a secret: its owner, root, and a group that one of these chose, as on a Kubernetes mount."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rolecall.credentials import server_key
from rolecall.credentials.private_files import exposure
from rolecall.errors import ConfigError

# The user and group of a container, as of the image `gcr.io/distroless/static:nonroot`.
CONTAINER_USER = 65532
OTHER_USER = 1001


def status(mode: int, owner: int) -> os.stat_result:
    """The status of a regular file."""
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, CONTAINER_USER, 32, 0, 0, 0))


@contextmanager
def container_user() -> Iterator[None]:
    """Run as the user of a container, in its group alone."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(CONTAINER_USER)
    os.seteuid(CONTAINER_USER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def mount() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def key_of(mount: Path) -> Callable[[int, int, int], Path]:
    """Makes a key file with this mode, owner and group."""

    def make(mode: int, owner: int, group: int) -> Path:
        path = mount / "rolecall.key"
        server_key.create(path)
        os.chown(path, owner, group)
        path.chmod(mode)
        return path

    return make


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640, 0o660, 0o700])
def test_group_that_root_or_this_user_chose_may_access(mode: int) -> None:
    """Modes that a pod's `fsGroup` gives a Secret (0440) and a writable volume (0660) are no exposure."""
    assert exposure(status(mode, 0)) == exposure(status(mode, os.geteuid())) == ""


@pytest.mark.parametrize("mode", [0o404, 0o444, 0o644, 0o602, 0o601, 0o777])
def test_any_right_of_others_is_named(mode: int) -> None:
    """Any right for all users is an exposure, whoever owns the file; 0444 and 0644 are what a Secret has by default."""
    for owner in (0, os.geteuid(), OTHER_USER):
        assert exposure(status(mode, owner)) == f"mode {mode:04o}"


@pytest.mark.parametrize("mode", [0o440, 0o640, 0o610, 0o620])
def test_group_that_another_user_chose_is_named(mode: int) -> None:
    """A group is trusted only where root or this user chose it; an owner alone always may."""
    assert exposure(status(mode, OTHER_USER)) == f"mode {mode:04o}, owned by user {OTHER_USER}"
    assert exposure(status(0o600, OTHER_USER)) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_key_of_a_secret_with_fsgroup_is_read(key_of: Callable[[int, int, int], Path]) -> None:
    """A Secret with `defaultMode: 0400` and an `fsGroup` is mounted as `root:65532` with 0440, and is read."""
    path = key_of(0o440, 0, CONTAINER_USER)
    with container_user():
        key = server_key.read(path)

    assert key.secret == path.read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_key_of_a_secret_without_fsgroup_says_what_to_set(key_of: Callable[[int, int, int], Path]) -> None:
    """A Secret with `defaultMode: 0400` alone can't be read by the container's user; the error names `fsGroup`."""
    path = key_of(0o400, 0, 0)
    with container_user(), pytest.raises(ConfigError) as caught:
        server_key.read(path)

    assert f"The key file {path} can't be read by this user ({CONTAINER_USER})" in caught.value.message
    assert "`fsGroup`" in caught.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_key_that_another_users_group_may_read_is_refused(key_of: Callable[[int, int, int], Path]) -> None:
    """A key that a third user shares with a group is refused, though this user is in the group."""
    path = key_of(0o440, OTHER_USER, CONTAINER_USER)
    with (
        container_user(),
        pytest.raises(ConfigError, match=rf"open to other users \(mode 0440, owned by user {OTHER_USER}\)"),
    ):
        server_key.read(path)
