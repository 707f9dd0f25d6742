"""Where a client connects, and what it says where it can't."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rolecall import Client
from rolecall.client.channel import find_endpoint
from rolecall.errors import CallFailed, ConfigError
from support.certificates import CertificateFiles, make_certificate
from support.sites import MakeSite, Site


@pytest.mark.parametrize(
    ("address", "options", "expected"),
    [
        ("auth.example.com", {}, "auth.example.com:443"),
        ("auth.example.com", {"plaintext": True}, "auth.example.com:50051"),
        ("auth.example.com:8443", {}, "auth.example.com:8443"),
        ("localhost", {}, "localhost:50051"),
        ("127.0.0.1", {"ca_file": "ca.pem"}, "127.0.0.1:443"),
        ("127.0.0.1", {"plaintext": False}, "127.0.0.1:443"),
        ("[::1]", {}, "[::1]:50051"),
        ("[2001:db8::1]", {}, "[2001:db8::1]:443"),
        ("[::1]:1", {}, "[::1]:1"),
        ("unix:///run/r.sock", {}, "unix:/run/r.sock"),
    ],
)
def test_port_follows_from_the_use_of_tls(address: str, options: dict[str, object], expected: str) -> None:
    """An address without a port gets 443 with TLS, and 50051 in plain text."""
    arguments = {"ca_file": None, "plaintext": None, **options}

    assert find_endpoint(address, **arguments).address == expected  # type: ignore[arg-type]


def test_variable_for_plain_text_chooses_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that accepts plain text in a network calls the plain-text port."""
    monkeypatch.setenv("ROLECALL_PLAINTEXT_EXPOSES_TOKENS", "true")

    assert find_endpoint("auth.example.com", None, plaintext=None).address == "auth.example.com:50051"


@pytest.mark.parametrize("address", ["", "auth.example.com:", "::1", "a/b", "https://auth.example.com", "unix:", "[]"])
def test_malformed_address_is_refused(address: str) -> None:
    """The error says so before any call is made."""
    with pytest.raises(ConfigError, match="The server's address is wrong"):
        find_endpoint(address, None, plaintext=None)


@pytest.fixture
def certificate(tmp_path: Path) -> CertificateFiles:
    """The certificate of a server."""
    return make_certificate(tmp_path)


@pytest.fixture
def tls_site(make_site: MakeSite, sqlite_url: str, certificate: CertificateFiles) -> Site:
    """A server with TLS."""
    return make_site(sqlite_url, tls_cert=certificate.cert, tls_key=certificate.key)


@pytest.fixture
def failure() -> Callable[..., str]:
    """Returns why a call fails that presents a token."""

    def call(address: str, **options: object) -> str:
        with Client(address, "token", **options) as client, pytest.raises(CallFailed) as caught:  # type: ignore[arg-type]
            client.check("ann@acme.io", "view", "members")
        assert caught.value.metadata["code"] == "UNAVAILABLE"
        return caught.value.message

    return call


def test_untrusted_certificate_is_named(tls_site: Site, tmp_path: Path, failure: Callable[..., str]) -> None:
    """The message says which authorities were tried, and names the variable that holds the right one."""
    other = make_certificate(tmp_path, "other").cert

    assert "the authorities that gRPC trusts did not sign" in failure(tls_site.address, plaintext=False)
    assert "set ROLECALL_CA_FILE" in failure(tls_site.address, plaintext=False)
    assert f" failed: {other} (ROLECALL_CA_FILE) did not sign" in failure(tls_site.address, ca_file=other)


def test_untrusted_certificate_is_named_by_variable(
    tls_site: Site, tmp_path: Path, failure: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the environment names is the one in the message."""
    other = make_certificate(tmp_path, "other").cert
    monkeypatch.setenv("ROLECALL_CA_FILE", str(other))

    assert f"{other} (ROLECALL_CA_FILE) did not sign" in failure(tls_site.address)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"names": "DNS:auth.acme.io"}, "{cert} (ROLECALL_CA_FILE) signed the server's certificate, but for another"),
        ({"end": "20210101000000Z"}, "the server's certificate has expired"),
        ({"begin": "20980101000000Z"}, "the server's certificate is not yet valid"),
    ],
)
def test_certificate_that_does_not_fit_is_explained(
    make_site: MakeSite,
    sqlite_url: str,
    tmp_path: Path,
    failure: Callable[..., str],
    options: dict[str, str],
    problem: str,
) -> None:
    """A trusted certificate may have another name, or be outside its life."""
    cert, key = make_certificate(tmp_path, **options)
    site = make_site(sqlite_url, tls_cert=cert, tls_key=key)

    assert f" failed: {problem.format(cert=cert)}" in failure(site.address, ca_file=cert)


def test_plain_text_server_is_explained(
    sqlite_site: Site, certificate: CertificateFiles, failure: Callable[..., str]
) -> None:
    """A client with TLS says that the server has none, and which variable makes it use TLS."""
    message = failure(sqlite_site.address, ca_file=certificate.cert)

    assert "the server speaks plain text, and this client TLS: unset ROLECALL_CA_FILE" in message


def test_tls_server_is_explained_to_a_client_in_plain_text(tls_site: Site, failure: Callable[..., str]) -> None:
    """A client in plain text says which variable makes it use TLS."""
    assert "If the server uses TLS, set ROLECALL_CA_FILE" in failure(tls_site.address)


@pytest.fixture
def silent(tmp_path: Path) -> str:
    """The address of a socket at which nobody answers any more."""
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return f"unix:{path}"


def test_absent_servers_are_explained(silent: str, failure: Callable[..., str]) -> None:
    """Nothing is said of TLS where nobody listens, or the host isn't found."""
    for address in ("127.0.0.1:1", silent, "unix:/nowhere/rolecall.sock"):
        message = failure(address)
        assert f"The call to {address} failed: is a server running there?" in message
        assert "TLS" not in message
    assert "the host is not found" in failure("nowhere.invalid", timeout=20)
