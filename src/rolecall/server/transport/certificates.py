"""TLS certificate and private key, read again when their files change.

grpc silently keeps the old pair where a new one is unusable, so each is tried before it is handed over.
"""

import math
import os
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import structlog

from rolecall.background import PeriodicThread
from rolecall.credentials.private_files import warn_if_exposed
from rolecall.errors import ConfigError

__all__ = ["Certificates"]

# How often the files are polled, by two `stat` calls. Polling sees more than inotify does: the symbolic links that
# Kubernetes swaps when it updates a mounted Secret, and a change on a network mount.
POLL_SECONDS = 0.5
# Seconds between two log lines about an expired certificate.
EXPIRED_LOG_SECONDS = 3600.0
# X509_V_FLAG_NO_CHECK_TIME of OpenSSL.
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)

_log = structlog.get_logger("rolecall.tls")

# Size, times, inode and device of both files, which differ after any change; None for a file that can't be read.
_Fingerprint = tuple[tuple[int, int, int, int, int] | None, ...]


class _Pair(NamedTuple):
    """Private key and certificate chain, as PEM."""

    key: bytes
    chain: bytes


class Certificates:
    """The server's certificate. New connections get the newest pair; a pair that is unusable is refused and logged."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Read both files. Raises `ConfigError` where they can't be read, are no PEM, or don't fit together."""
        self._cert, self._key = cert, key
        self._seen = self._tried = self._fingerprint()
        self._forced = threading.Event()
        # Seconds since 1970, and on the monotonic clock.
        self._expires = math.inf
        self._log_expired_at = 0.0
        self._pair = self._given = self._read()
        self._note_life()
        self._watch = PeriodicThread("certificate-watch", self._poll, interval=POLL_SECONDS)

    @property
    def credentials(self) -> grpc.ServerCredentials:
        """The credentials for a port, which follow the files."""
        next_configuration: Any = self._next_configuration
        return grpc.dynamic_ssl_server_credentials(_configuration(self._given), next_configuration)

    def start(self) -> None:
        """Start to watch the files."""
        self._watch.start()

    def stop(self) -> None:
        """End the watch."""
        self._watch.stop()

    def wake(self) -> None:
        """Read the files now, changed or not. May be called from a signal handler."""
        self._forced.set()
        self._watch.wake()

    def _next_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """Return a pair that grpc doesn't have yet. grpc asks before each handshake, in its polling thread."""
        pair = self._pair
        if pair is self._given:
            return None
        self._given = pair
        return _configuration(pair)

    def _poll(self) -> None:
        """Read the files once they have changed, and then stay unchanged for a round: both are replaced together."""
        before, self._seen = self._seen, self._fingerprint()
        if self._forced.is_set() or (self._seen == before and self._seen != self._tried):
            self._forced.clear()
            self._tried = self._seen
            self._reload()
        if self._expires < time.time() and time.monotonic() > self._log_expired_at:
            self._log_expired_at = time.monotonic() + EXPIRED_LOG_SECONDS
            _log.error("TLS certificate has expired, clients refuse it", file=str(self._cert), expired=self._expiry)

    def _reload(self) -> None:
        try:
            pair = self._read()
        except ConfigError as error:
            _log.error("TLS files refused, the last good certificate stays in force", problem=error.message)
            return
        if pair != self._pair:
            self._pair = pair
        self._note_life()
        _log.info("TLS certificate in force", file=str(self._cert), expires=self._expiry)

    @property
    def _expiry(self) -> str:
        return "unknown" if self._expires == math.inf else f"{datetime.fromtimestamp(self._expires, UTC):%FT%TZ}"

    def _read(self) -> _Pair:
        """Read the files, and try them. Raises `ConfigError` that names the file at fault."""
        try:
            pair = _Pair(self._key.read_bytes(), self._cert.read_bytes())
            warn_if_exposed(self._key)
        except OSError as error:
            raise ConfigError(f"The TLS file {error.filename} can't be read: {error.strerror}.") from error
        if not _is_accepted_by_grpc(pair):
            raise ConfigError(_problem(pair, self._cert, self._key))
        return pair

    def _note_life(self) -> None:
        """Note when the certificate in force expires, and log why clients may refuse it."""
        begins, self._expires, problem = _verify(self._cert, self._key)
        self._log_expired_at = 0.0
        if begins > time.time():
            problem = "not yet valid"
        if problem:
            _log.warning("clients may refuse the TLS certificate", file=str(self._cert), problem=problem)

    def _fingerprint(self) -> _Fingerprint:
        states: list[tuple[int, int, int, int, int] | None] = []
        for file in (self._cert, self._key):
            try:
                status = os.stat(file)  # noqa: PTH116 - `Path.stat` costs twice as much
            except OSError:
                states.append(None)
            else:
                states.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev))
        return tuple(states)


def _configuration(pair: _Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([pair])


def _is_accepted_by_grpc(pair: _Pair) -> bool:
    """Whether a server can be made with the pair, which no other call of grpc says. It serves no method."""
    server = grpc.server(ThreadPoolExecutor(1))
    try:
        server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        return False
    finally:
        # Only a server that was started closes its port.
        server.start()
        server.stop(0).wait()
    return True


def _problem(pair: _Pair, cert: Path, key: Path) -> str:
    """Say why grpc can't serve the pair, and which file is at fault."""
    if b"-----BEGIN CERTIFICATE-----" not in pair.chain:
        return f"The TLS file {cert} (tls_cert) holds no certificate in PEM form."
    if b"PRIVATE KEY-----" not in pair.key:
        return f"The TLS file {key} (tls_key) holds no private key in PEM form."
    if b"ENCRYPTED" in pair.key:
        return f"The private key in {key} (tls_key) needs a passphrase: store it without one."
    try:
        ssl.create_default_context(cadata=pair.chain.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        return f"The TLS file {cert} (tls_cert) is damaged: a certificate in it can't be read."
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"The private key in {key} (tls_key) is not that of the first certificate in {cert} (tls_cert)."
        return f"The TLS file {key} (tls_key) is damaged: its private key can't be read."
    except OSError as error:
        return f"The TLS file {cert} or {key} can't be read: {error.strerror}."
    return f"The key in {key} is of a kind that gRPC doesn't support: use ECDSA with P-256 or P-384, or RSA."


def _verify(cert: Path, key: Path) -> tuple[float, float, str]:
    """Read a certificate as a client does that trusts it: begin and end of its life, and what else is wrong.

    The times are seconds since 1970, unlimited where they can't be read.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        server.load_cert_chain(cert, key)
        client.load_verify_locations(cert)
        client_side = client.wrap_bio(to_client, to_server)
        server_side = server.wrap_bio(to_server, to_client, server_side=True)
        for side in (client_side, server_side, client_side):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
        found: Any = client_side.getpeercert()
    except ssl.SSLCertVerificationError as error:
        return 0.0, math.inf, error.verify_message
    except OSError as error:
        return 0.0, math.inf, str(error)
    begin, end = (ssl.cert_time_to_seconds(found[name]) for name in ("notBefore", "notAfter"))
    return begin, end, ""
