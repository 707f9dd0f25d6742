"""The gRPC channel of a client: plain text to a loopback address, TLS to any other; retries."""

import json
import os
from pathlib import Path

import grpc

from rolecall.environment import PREFIX, is_loopback, split_address
from rolecall.errors import ConfigError

__all__ = ["open_channel"]

# Retries are safe: calls that change something carry a request_id.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            # Not retried: the first attempt may have ended the credential or used up the secret; a second fails.
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


def open_channel(address: str, ca_file: Path | str | None, *, plaintext: bool | None) -> grpc.Channel:
    """Open a channel to `address`, which connects when the first call is made. Raises `ConfigError`."""
    try:
        host, _ = split_address(address)
    except ValueError as error:
        raise ConfigError(f"The server's address is wrong: {error}.") from error
    if plaintext is None:
        exposed = os.environ.get(f"{PREFIX}PLAINTEXT_EXPOSES_TOKENS", "").lower() in ("1", "true", "yes", "on")
        plaintext = not ca_file and (exposed or is_loopback(host))
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", _SERVICE_CONFIG),
        # gRPC's default of 1 s between two attempts to connect is longer than all retries of a call during a restart.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if plaintext:
        # A proxy that the environment names would see the token.
        return grpc.insecure_channel(address, [*options, ("grpc.enable_http_proxy", 0)])
    try:
        roots = Path(ca_file).read_bytes() if ca_file else None
    except OSError as error:
        raise ConfigError(f"The CA file {ca_file} can't be read: {error.strerror}.") from error
    if roots is not None and b"-----BEGIN CERTIFICATE-----" not in roots:
        raise ConfigError(f"The CA file {ca_file} holds no PEM certificate: name another.")
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(roots), options)
