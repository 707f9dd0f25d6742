"""The gRPC channel of a client: plain text to a loopback address or a Unix socket, TLS to any other; retries."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import grpc

from rolecall.environment import PREFIX, is_loopback, socket_path, split_address
from rolecall.errors import ConfigError

__all__ = ["Endpoint", "explain_failure", "find_endpoint", "open_channel"]

PLAINTEXT_PORT = 50051
TLS_PORT = 443

_CLOSED = re.compile("Socket closed|Connection reset|Broken pipe|closed the connection", re.IGNORECASE)

# Retries are safe: calls that change something carry a request_id.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            # Not retried: whoever asks for the health asks again.
            {"name": [{"service": "grpc.health.v1.Health"}]},
            # Nor these: the first attempt may have ended the credential or used up the secret; a second fails.
            {
                "name": [
                    {"service": "rolecall.v1.SessionService", "method": "SignOut"},
                    {"service": "rolecall.v1.SessionService", "method": "SignIn"},
                    {"service": "rolecall.v1.InvitationService", "method": "AcceptInvitation"},
                    {"service": "rolecall.v1.MemberService", "method": "LeaveOrganization"},
                ]
            },
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
        ]
    }
)


class Endpoint(NamedTuple):
    """Where a client connects, and how."""

    address: str
    """`host:port` or `unix:path`."""
    ca_file: Path | str | None
    is_plaintext: bool


def find_endpoint(address: str, ca_file: Path | str | None, *, plaintext: bool | None) -> Endpoint:
    """Complete an address by its port and by whether TLS is used. Raises `ConfigError`.

    A Unix socket and a loopback address without a CA file are plain text; so is any other address, if the environment
    accepts that. Without a port it is 50051 in plain text, 443 with TLS.
    """
    try:
        if path := socket_path(address):
            return Endpoint(f"unix:{path}", ca_file, plaintext is not False)
        host, _ = split_address(address, default_port=0)
        if plaintext is None:
            exposed = os.environ.get(f"{PREFIX}PLAINTEXT_EXPOSES_TOKENS", "").lower() in ("1", "true", "yes", "on")
            plaintext = not ca_file and (exposed or is_loopback(host))
        host, port = split_address(address, default_port=PLAINTEXT_PORT if plaintext else TLS_PORT)
    except ValueError as error:
        raise ConfigError(f"The server's address is wrong: {error}.") from error
    return Endpoint(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", ca_file, plaintext)


def open_channel(endpoint: Endpoint, server_name: str = "") -> grpc.Channel:
    """Open a channel, which connects when the first call is made. Raises `ConfigError`.

    `server_name`: the name that the server's certificate must have, instead of the host's.
    """
    address, ca_file, is_plaintext = endpoint
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", _SERVICE_CONFIG),
        # gRPC's default of 1 s between two attempts to connect is longer than all retries of a call during a restart.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    # gRPC reads a path as part of a URI.
    target = quote(address, safe="/:") if address.startswith("unix:") else address
    if is_plaintext:
        # A proxy that the environment names would see the token.
        return grpc.insecure_channel(target, [*options, ("grpc.enable_http_proxy", 0)])
    try:
        roots = Path(ca_file).read_bytes() if ca_file else None
    except OSError as error:
        raise ConfigError(f"The CA file {ca_file} (ROLECALL_CA_FILE) can't be read: {error.strerror}.") from error
    if roots is not None and b"-----BEGIN CERTIFICATE-----" not in roots:
        raise ConfigError(f"The CA file {ca_file} (ROLECALL_CA_FILE) holds no PEM certificate: name another.")
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options)


_SPEAKS_PLAIN_TEXT = (
    "the server speaks plain text, and this client TLS: unset ROLECALL_CA_FILE for a loopback address; for another one,"
    " have the server use TLS, or set ROLECALL_PLAINTEXT_EXPOSES_TOKENS=true in a trusted network."
)
_SPEAKS_TLS = (
    "the connection was closed at once. If the server uses TLS, set ROLECALL_CA_FILE to a PEM file with its authority."
)


def explain_failure(endpoint: Endpoint, details: str) -> str:
    """Return what keeps a client from connecting, and what to do, by the details of gRPC's UNAVAILABLE."""
    trusted = f"{endpoint.ca_file} (ROLECALL_CA_FILE)" if endpoint.ca_file else "the authorities that gRPC trusts"
    untrusted = (
        f"{trusted} did not sign the server's certificate: set ROLECALL_CA_FILE to a PEM file with its authority."
    )
    other_name = f"{trusted} signed the server's certificate, but for another name: call the server by the name in it."
    problems = (
        (("certificate has expired",), "the server's certificate has expired: renew it there."),
        (("not yet valid",), "the server's certificate is not yet valid: compare the clocks of both machines."),
        (("CERTIFICATE_VERIFY_FAILED",), untrusted),
        (("Hostname Verification", "is not in peer certificate"), other_name),
        (("WRONG_VERSION_NUMBER",), _SPEAKS_PLAIN_TEXT),
        (("handshake failed",), f"TLS failed, with {trusted}."),
        (
            ("receiving SETTINGS",),
            "connections are accepted there, but nothing is answered: is it Rolecall?",
        ),
        (("Permission denied",), "this user may not connect to that socket: see the server's setting socket_mode."),
        (("resolving", "resolution failed"), "the host is not found."),
    )
    for texts, problem in problems:
        if any(text in details for text in texts):
            return problem
    if endpoint.is_plaintext and not endpoint.address.startswith("unix:") and _CLOSED.search(details):
        return _SPEAKS_TLS
    return "is a server running there?"
