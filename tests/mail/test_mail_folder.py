"""Mails without a mail server: files that only this user may read."""

import email
import email.policy
import os
import stat
from email.message import EmailMessage
from pathlib import Path

import pytest

from rolecall.errors import ConfigError
from support.mail_servers import secret_in
from support.mail_sites import Logs, accept, delivery, invite, sql
from support.sites import MakeSite, Site
from support.waiting import wait_until


def test_without_a_mail_server_mails_are_private_files(sqlite_site: Site) -> None:
    """Mails are files in a folder for this user only, whatever the umask; the secret in them works."""
    old = os.umask(0)
    try:
        (invitation,) = invite(sqlite_site, "bob@acme.io")
        folder = sqlite_site.settings.mail_folder
        wait_until(lambda: bool(list(folder.glob("*.eml"))))
    finally:
        os.umask(old)
    (file,) = folder.iterdir()
    mail = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    assert isinstance(mail, EmailMessage)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert mail["To"] == "bob@acme.io"
    # Who reads the file finds it in one piece.
    assert secret_in(mail) in file.read_text(encoding="utf-8")
    assert accept(sqlite_site, secret_in(mail)).member.email == invitation.email
    assert str(folder) in sqlite_site.server.mail


def test_a_mail_that_is_written_twice_is_one_file(sqlite_site: Site) -> None:
    """A mail that is written again, as after a crash between the file and its row, is one file."""
    invite(sqlite_site, "bob@acme.io")
    folder = sqlite_site.settings.mail_folder
    wait_until(lambda: bool(list(folder.glob("*.eml"))))
    (before,) = folder.iterdir()
    inode = before.stat().st_ino
    sql(sqlite_site, "UPDATE mails SET state = 'queued', due_time = 0")
    wait_until(lambda: before.stat().st_ino != inode)

    assert list(folder.iterdir()) == [before]


def test_a_folder_that_others_may_enter_is_refused(make_site: MakeSite, sqlite_url: str, tmp_path: Path) -> None:
    """Secrets land there: the server doesn't start, and says what to do."""
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)

    with pytest.raises(ConfigError, match=f"chmod 700 {folder}"):
        make_site(sqlite_url, mail_folder=folder)


def test_a_folder_of_a_kubernetes_volume_is_accepted(make_site: MakeSite, sqlite_url: str, tmp_path: Path) -> None:
    """A pod's `fsGroup` may enter the folders of its volumes: the group is the operator's choice."""
    folder = tmp_path / "volume"
    folder.mkdir()
    folder.chmod(0o2770)
    site = make_site(sqlite_url, mail_folder=folder)
    invite(site, "bob@acme.io")

    wait_until(lambda: len(list(folder.glob("*.eml"))) == 1)


@pytest.mark.parametrize("place", ["taken", "taken/mail"])
def test_a_folder_that_cannot_be_written_is_refused_at_start(
    make_site: MakeSite, sqlite_url: str, tmp_path: Path, place: str
) -> None:
    """A folder that can't be made stops the server, before the first mail is missed."""
    (tmp_path / "taken").write_text("")

    with pytest.raises(ConfigError) as caught:
        make_site(sqlite_url, mail_folder=tmp_path / place)

    assert f"The mail folder {tmp_path / place} can't be written: " in caught.value.message
    assert "ROLECALL_MAIL_FOLDER" in caught.value.message


def test_a_folder_of_a_read_only_file_system_is_refused_at_start(make_site: MakeSite, sqlite_url: str) -> None:
    """A folder that exists, and in which no file can be made, stops the server: a file is made and removed to see."""
    with pytest.raises(ConfigError, match="The mail folder /proc/self/fdinfo can't be written: "):
        make_site(sqlite_url, mail_folder=Path("/proc/self/fdinfo"))


def test_a_start_leaves_nothing_in_the_folder(sqlite_site: Site) -> None:
    """The trial at the start makes the folder, for this user only, and leaves no file there."""
    folder = sqlite_site.settings.mail_folder

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_loses_no_mail(
    make_site: MakeSite, sqlite_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file comes in its way, which the log calls by its name; once that is gone, the mail is written."""
    logs = Logs(capfd)
    folder = tmp_path / "taken"
    site = make_site(sqlite_url, mail_folder=folder)
    folder.rmdir()
    folder.write_text("")
    (invitation,) = invite(site, "bob@acme.io")
    wait_until(lambda: logs.has("mail folder can't be written"))
    queued = delivery(site, invitation)
    folder.unlink()
    wait_until(lambda: delivery(site, invitation) == "SENT")

    assert queued == "QUEUED"
    assert len(list(folder.glob("*.eml"))) == 1
