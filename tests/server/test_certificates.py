"""TLS files that change while a server runs."""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rolecall import Client
from rolecall.errors import CallFailed, ConfigError
from rolecall.server.transport import certificates
from rolecall.server.transport.certificates import Certificates
from support.certificates import CertificateFiles, make_certificate
from support.sites import MakeSite, Site
from support.waiting import keep_asking, wait_until

Replace = Callable[[CertificateFiles], None]


@pytest.fixture
def served(tmp_path: Path) -> CertificateFiles:
    """The files that a server reads."""
    folder = tmp_path / "served"
    folder.mkdir()
    return make_certificate(folder)


@pytest.fixture
def site(each_transport: str, make_site: MakeSite, sqlite_url: str, served: CertificateFiles) -> Site:
    """A server with TLS, of each transport."""
    site = make_site(sqlite_url, tls_cert=served.cert, tls_key=served.key)
    assert bool(site.polling) is (each_transport == "polling")
    return site


def is_served(site: Site, certificate: Path) -> bool:
    """Whether a new connection that trusts only this certificate gets an answer."""
    try:
        with Client(site.address, site.tokens["OWNER"], ca_file=certificate) as client:
            return bool(client.check("ann@acme.io", "view", "members"))
    except CallFailed as error:
        if "did not sign" not in error.message:
            raise
        return False


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Returns all that has been logged so far."""
    read: list[str] = []

    def all_of_it() -> str:
        read.append(capfd.readouterr().out)
        return "".join(read)

    return all_of_it


def descriptors() -> int:
    """The number of this process's open files."""
    return len(list(Path("/proc/self/fd").iterdir()))


def replace(served: CertificateFiles, new: CertificateFiles) -> None:
    """Replace both files, one after the other."""
    shutil.copy(new.cert, served.cert)
    shutil.copy(new.key, served.key)


def test_new_connections_get_a_renewed_certificate(
    site: Site, served: CertificateFiles, tmp_path: Path, logged: Callable[[], str]
) -> None:
    """Connections that exist go on with the old one, new ones get the new one, again and again."""
    old = Path(shutil.copy(served.cert, tmp_path / "old.crt"))
    with Client(site.address, site.tokens["OWNER"], ca_file=old) as client:
        assert client.check("ann@acme.io", "view", "members")
        for number in range(3):
            new = make_certificate(tmp_path, f"new{number}")
            replace(served, new)
            wait_until(lambda new=new: is_served(site, new.cert))  # type: ignore[misc]
            assert not is_served(site, old)
        went_on = client.check("ann@acme.io", "view", "members")

    assert went_on
    assert logged().count("TLS certificate in force") == 3


def test_secrets_that_kubernetes_swaps_are_followed(
    make_site: MakeSite, sqlite_url: str, tmp_path: Path, each_transport: str
) -> None:
    """Kubernetes mounts a Secret as links through `..data`, and replaces only that link."""
    mount = tmp_path / "mount"

    def publish(version: str) -> CertificateFiles:
        folder = mount / f"..{version}"
        folder.mkdir(parents=True)
        pair = make_certificate(folder)
        (mount / "..data_tmp").symlink_to(folder.name)
        (mount / "..data_tmp").rename(mount / "..data")
        return pair

    first = publish("2026_01")
    for file in first:
        (mount / file.name).symlink_to(Path("..data") / file.name)
    site = make_site(sqlite_url, tls_cert=mount / "tls.crt", tls_key=mount / "tls.key")
    assert is_served(site, first.cert)

    second = publish("2026_02")

    wait_until(lambda: is_served(site, second.cert))
    assert not is_served(site, first.cert)


def other_key(served: CertificateFiles, folder: Path) -> None:
    shutil.copy(make_certificate(folder, "other").key, served.key)


def other_certificate(served: CertificateFiles, folder: Path) -> None:
    shutil.copy(make_certificate(folder, "other").cert, served.cert)


def no_certificate(served: CertificateFiles, _folder: Path) -> None:
    served.cert.write_text("nothing")


def no_key(served: CertificateFiles, _folder: Path) -> None:
    served.key.write_bytes(b"")


def swapped(served: CertificateFiles, folder: Path) -> None:
    pair = make_certificate(folder, "other")
    replace(served, CertificateFiles(pair.key, pair.cert))


def damaged_certificate(served: CertificateFiles, _folder: Path) -> None:
    text = served.cert.read_text()
    served.cert.write_text(text[:200] + text[240:])


def damaged_key(served: CertificateFiles, _folder: Path) -> None:
    text = served.key.read_text()
    served.key.write_text(text[:60] + text[80:])


def encrypted_key(served: CertificateFiles, _folder: Path) -> None:
    text = served.key.read_text().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY")
    served.key.write_text(text)


def unsupported_curve(served: CertificateFiles, folder: Path) -> None:
    replace(served, make_certificate(folder, "curve", curve="secp256k1"))


def missing(served: CertificateFiles, _folder: Path) -> None:
    served.key.unlink()


UNUSABLE = pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (other_key, r"private key in \S+tls\.key \(tls_key\) is not that of the first certificate in \S+tls\.crt"),
        (other_certificate, r"private key in \S+tls\.key \(tls_key\) is not that of the first certificate"),
        (no_certificate, r"tls\.crt \(tls_cert\) holds no certificate"),
        (no_key, r"tls\.key \(tls_key\) holds no private key"),
        (swapped, r"tls\.crt \(tls_cert\) holds no certificate"),
        (damaged_certificate, r"tls\.crt \(tls_cert\) is damaged"),
        (damaged_key, r"tls\.key \(tls_key\) is damaged"),
        (encrypted_key, r"tls\.key \(tls_key\) needs a passphrase"),
        (unsupported_curve, r"tls\.key is of a kind that gRPC doesn't support: use ECDSA with P-256"),
        (missing, r"tls\.key can't be read: No such file"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)


@UNUSABLE
def test_unusable_files_end_a_start(
    served: CertificateFiles, tmp_path: Path, spoil: Callable[[CertificateFiles, Path], None], problem: str
) -> None:
    """Each defect is named, with the file at fault."""
    spoil(served, tmp_path)

    with pytest.raises(ConfigError, match=problem):
        Certificates(*served)


@pytest.mark.parametrize("each_transport", ["polling"], indirect=True)
@UNUSABLE
def test_unusable_files_are_refused_and_the_old_certificate_stays(
    site: Site,
    served: CertificateFiles,
    tmp_path: Path,
    logged: Callable[[], str],
    spoil: Callable[[CertificateFiles, Path], None],
    problem: str,
) -> None:
    """The log names the defect once, and the server serves what it had, until usable files are there."""
    old = Path(shutil.copy(served.cert, tmp_path / "old.crt"))

    spoil(served, tmp_path)
    wait_until(lambda: "TLS files refused, the last good certificate stays in force" in logged())
    assert is_served(site, old)
    time.sleep(3 * certificates.POLL_SECONDS)
    new = make_certificate(tmp_path, "new")
    replace(served, new)
    wait_until(lambda: is_served(site, new.cert))

    assert logged().count("refused") == 1
    assert re.search(problem, logged())


def test_files_that_are_replaced_one_after_the_other_are_read_together(
    site: Site, served: CertificateFiles, tmp_path: Path, logged: Callable[[], str]
) -> None:
    """While files change, nothing is read: half a pair isn't reported as a defect."""
    new = make_certificate(tmp_path, "new")
    shutil.copy(new.cert, served.cert)
    # Never unchanged for a whole round, until the key follows.
    keep_asking(lambda: os.utime(served.cert), 3 * certificates.POLL_SECONDS)
    shutil.copy(new.key, served.key)
    wait_until(lambda: is_served(site, new.cert))

    assert "refused" not in logged()


def test_reload_reads_unchanged_files_again(site: Site, served: CertificateFiles, logged: Callable[[], str]) -> None:
    """A reload, as by SIGHUP, reads the files though nothing looks changed, and the certificate stays."""
    site.server.reload()
    wait_until(lambda: "TLS certificate in force" in logged())

    assert is_served(site, served.cert)


@pytest.mark.parametrize(
    ("life", "warning"),
    [
        ({"end": "20210101000000Z"}, "TLS certificate has expired, clients refuse it"),
        ({"begin": "20980101000000Z"}, "not yet valid"),
    ],
    ids=["expired", "not yet valid"],
)
def test_certificate_outside_its_life_is_logged(
    site: Site,
    served: CertificateFiles,
    tmp_path: Path,
    logged: Callable[[], str],
    life: dict[str, str],
    warning: str,
) -> None:
    """Such a certificate is served, as the clock may be wrong, and the log says that clients refuse it."""
    replace(served, make_certificate(tmp_path, "new", **life))

    wait_until(lambda: warning in logged())


def test_certificate_that_expires_while_it_is_served_is_logged(
    tmp_path: Path, logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says so when the time comes, though no file changes."""
    served = Certificates(*make_certificate(tmp_path))
    served.start()
    try:
        time.sleep(2 * certificates.POLL_SECONDS)
        before = logged()
        # 2100.
        monkeypatch.setattr(time, "time", lambda: 4.1e9)
        wait_until(lambda: "has expired" in logged())
    finally:
        served.stop()

    assert "expired" not in before


def test_key_that_others_can_read_is_a_warning(tmp_path: Path, logged: Callable[[], str]) -> None:
    """Such a key is used all the same; one that only the group can read is fine."""
    pair = make_certificate(tmp_path)
    pair.key.chmod(0o640)
    Certificates(*pair)
    before = logged()
    pair.key.chmod(0o644)
    Certificates(*pair)

    assert before == ""
    assert "file with a secret is open to other users" in logged()


def test_reading_files_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """Trying a pair opens a port for a moment; certificates that live an hour are replaced for years."""
    pair = make_certificate(tmp_path)
    Certificates(*pair)
    before = descriptors()
    for _ in range(20):
        Certificates(*pair)
    wait_until(lambda: descriptors() <= before + 2)
