"""Composition root: the only module in which the parts of a server are put together."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import structlog
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message_factory import GetMessageClass

from rolecall.audit import ActivationEntries, AuditLog, Denials, Event, check_key
from rolecall.audit.decision_log import DecisionLog
from rolecall.background import PeriodicThread
from rolecall.config import Settings, check_listening, socket_path, split_address
from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import Refusal
from rolecall.errors import ConfigError, UnauthenticatedCredential
from rolecall.identity.authentication import Authenticator
from rolecall.identity.cache import RevisionCache
from rolecall.identity.change_feed import ChangeFeed
from rolecall.identity.directory import Directory
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.mail import MailRenderer, MailSender, transport_for
from rolecall.policy.reload import LivePolicy
from rolecall.server.handler import MAX_MESSAGE_BYTES, CallHandler, Method
from rolecall.server.servicers.assignment import AssignmentService
from rolecall.server.servicers.audit import AuditService
from rolecall.server.servicers.authorization import AuthorizationService
from rolecall.server.servicers.health import SERVICE_NAME, Health
from rolecall.server.servicers.invitation import InvitationService
from rolecall.server.servicers.member import MemberService
from rolecall.server.servicers.organization import OrganizationService
from rolecall.server.servicers.policy import PolicyService
from rolecall.server.servicers.reflection import add_reflection
from rolecall.server.servicers.session import SessionService
from rolecall.server.servicers.team import TeamService
from rolecall.server.servicers.token import TokenService
from rolecall.server.transport import probe, socket_file
from rolecall.server.transport.call_limits import CallLimits
from rolecall.server.transport.certificates import Certificates
from rolecall.server.transport.executors import Executors
from rolecall.server.transport.polling_server import WATCHDOG_SECONDS, PollingServer
from rolecall.server.transport.standard import add_handlers
from rolecall.server.transport.tuning import tune_interpreter
from rolecall.services.assignments import RoleAssignments
from rolecall.services.audit import AuditLogs
from rolecall.services.authorization import Authorizer
from rolecall.services.cleanup import Cleanup
from rolecall.services.expiry_notices import ExpiryNotices
from rolecall.services.invitations import Invitations
from rolecall.services.members import Members
from rolecall.services.organizations import Organizations
from rolecall.services.pagination import Pagination
from rolecall.services.policies import Policies
from rolecall.services.sessions import Sessions
from rolecall.services.teams import Teams
from rolecall.services.tokens import Tokens
from rolecall.services.unit_of_work import UnitOfWork
from rolecall.storage import Storage
from rolecall.v1 import (
    assignment_pb2,
    audit_pb2,
    authorization_pb2,
    invitation_pb2,
    member_pb2,
    organization_pb2,
    policy_pb2,
    session_pb2,
    team_pb2,
    token_pb2,
)

__all__ = ["OPEN_METHODS", "Server", "build"]

# Calls that wait in grpc until the server takes them.
MAX_PENDING_CALLS = 10_000
MAX_STREAMS = 1000
CONNECTION_GRACE_MS = 5000
STOP_SECONDS = 5.0
# Seconds between two writes of denials and of credentials' uses; one takes microseconds where nothing is pending.
BACKGROUND_SECONDS = 0.25

_log = structlog.get_logger("rolecall.server")

# Database connections besides those of callers' threads: for the policy's gate, the change feed, background work, mail,
# exports and the batch loaders.
MORE_CONNECTIONS = 12

# RPCs that take no credential: the caller presents a mailed secret instead, or requests one.
OPEN_METHODS = frozenset(
    {
        "/rolecall.v1.InvitationService/AcceptInvitation",
        "/rolecall.v1.SessionService/RequestSignIn",
        "/rolecall.v1.SessionService/SignIn",
    }
)

# Uses of a token that are recorded in its organization's audit log, with their actions there.
MISUSES = {
    Refusal.ROTATED: "PresentRotatedSecret",
    Refusal.DELETED: "PresentDeletedToken",
    Refusal.OUTSIDE_NETWORKS: "PresentOutsideNetworks",
}

# RPCs that are mostly answered from the cache, and the servicer's method that does so.
CACHED_METHODS = {
    "/rolecall.v1.AuthorizationService/Check": "check_cached",
    "/rolecall.v1.AuthorizationService/BatchCheck": "batch_check_cached",
}


@dataclass(frozen=True, slots=True)
class Server:
    """Server that is ready to start. `address` is where it listens, with the port that it got.

    `mail` is a sentence that names the destination of mails.
    """

    address: str
    live: LivePolicy
    storage: Storage
    mail: str
    _core: "_Core"
    _executors: Executors
    _watchdog: PeriodicThread
    _grpc: grpc.Server
    _polling: PollingServer | None
    _health: Health
    _certificates: Certificates | None

    def start(self) -> None:
        """Start to serve calls. Tunes the interpreter of the process."""
        tune_interpreter(polling=self._polling is not None)
        self.live.start()
        self._core.feed.start()
        self._core.background.start()
        self._core.sender.start()
        self._watchdog.start()
        if self._certificates:
            self._certificates.start()
        self._grpc.start()
        if self._polling:
            self._polling.start()

    def reload(self) -> None:
        """Read the policy folder, the certificate and its key now, changed or not. Returns at once."""
        self.live.wake()
        if self._certificates:
            self._certificates.wake()

    def stop(self, grace: float = STOP_SECONDS) -> None:
        """Accept no new calls, give running ones `grace` seconds, and release everything."""
        self._health.stop()
        if self._polling:
            # From now on, the end of the polling thread is no defect.
            self._polling.stop()
        self._grpc.stop(grace).wait(grace + 1)
        self._executors.close()
        self._watchdog.stop()
        if self._certificates:
            self._certificates.stop()
        self.live.stop()
        self._core.close()
        self.storage.close()


@dataclass(frozen=True, slots=True)
class _Core:
    """Parts of a server that don't depend on its transport."""

    handler: CallHandler
    services: dict[FileDescriptor, Any]
    feed: ChangeFeed
    background: PeriodicThread
    sender: MailSender
    denials: Denials
    misuses: Denials
    authenticator: Authenticator
    directory: Directory
    decisions: DecisionLog

    def close(self) -> None:
        """Stop the background work, and write what is pending."""
        self.sender.stop()
        self.background.stop()
        self.feed.stop()
        self.directory.loader.close()
        self.authenticator.loader.close()
        try:
            self.authenticator.failed.flush(closing=True)
            self.denials.flush(closing=True)
            # Not those of a token that was recorded lately: a server that restarts again and again adds no entries.
            self.misuses.flush()
            self.authenticator.last_used.flush()
        except Exception:  # noqa: BLE001 - after any error the rest must be released
            _log.exception("denials and times of use of the last seconds are lost")
        self.decisions.close()


def build(settings: Settings, *, shares_port: bool = False, limits: Limits = DEFAULT_LIMITS) -> Server:
    """Build a server; see `rolecall.server.build_server`.

    Raises `ConfigError`, `PolicyError`, `StorageUnavailable`.
    """
    with ExitStack() as release:
        server = _build(settings, limits, release, shares_port=shares_port)
        release.pop_all()
    return server


def _build(settings: Settings, limits: Limits, release: ExitStack, *, shares_port: bool) -> Server:
    """Build a server; `release` gets what is to be closed where a later step fails, as where the port is in use."""
    check_listening(settings)
    key = server_key.read(settings.key_file)
    certificates: Certificates | None = None
    if settings.tls_cert and settings.tls_key:
        certificates = Certificates(settings.tls_cert, settings.tls_key)
    pool_size = settings.threads + MORE_CONNECTIONS
    storage = Storage(settings.database, pool_size, limits, password=settings.database_password)
    release.callback(storage.close)
    storage.check()
    log = AuditLog(key)
    if warning := check_key(storage, log):
        _log.error("audit logs are broken", problem=warning)
    live = LivePolicy(settings.policy, storage, limits)
    transport = transport_for(settings, limits)
    links = MailedSecrets(key)
    sender = MailSender(storage, live, links, MailRenderer(settings), transport, limits)
    core = _build_core(settings, limits, key, storage, log, live, links, sender)
    release.callback(core.close)
    executors = Executors(settings.threads)
    release.callback(executors.close)
    server = grpc.server(
        executors.callers,
        # Of grpc's own calls, and on the standard transport of all: those that run or wait for a thread.
        maximum_concurrent_rpcs=settings.threads + limits.waiting_calls,
        options=[
            # Two servers on one port would share its calls silently.
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_receive_message_length", 2 * MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # By default grpc cancels some calls once 1,000 are pending, as if their clients had cancelled them
            # (docs/reproductions/pending_calls.py).
            ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
            # grpc's own methods, such as reflection, wait for a message until the connection ends.
            ("grpc.max_connection_age_ms", settings.connection_seconds * 1000),
            ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
        ],
    )
    names = [service.full_name for file in core.services for service in file.services_by_name.values()]
    health = Health([*names, SERVICE_NAME], is_ready=lambda: core.feed.is_fresh and not live.problem)
    methods = [method for file, servicer in core.services.items() for method in _methods(file, servicer)]
    methods += health.methods
    calls = CallLimits(limits)
    watched = [
        calls.cancel_overdue,
        health.notify_watchers,
        core.directory.loader.fail_overdue,
        core.authenticator.loader.fail_overdue,
    ]
    polling: PollingServer | None = None
    if _polls(settings):
        unary = [method for method in methods if not method.streaming]
        polling = PollingServer(server, unary, core.handler, executors, calls)
        watched.append(polling.check)
    others = [method for method in methods if method.streaming or not polling]
    add_handlers(server, others, core.handler, executors, calls)
    watchdog = PeriodicThread("watchdog", *watched, interval=WATCHDOG_SECONDS, pause_after_failure=WATCHDOG_SECONDS)
    health.add_watch(server, executors)
    if settings.reflection:
        add_reflection(server, [*names, SERVICE_NAME], executors)
    address = _bind(server, settings, certificates)
    return Server(
        address, live, storage, transport.where, core, executors, watchdog, server, polling, health, certificates
    )


def _build_core(
    settings: Settings,
    limits: Limits,
    key: server_key.ServerKey,
    storage: Storage,
    log: AuditLog,
    live: LivePolicy,
    links: MailedSecrets,
    sender: MailSender,
) -> _Core:
    pages = Pagination(key)
    denials = Denials(storage, log, limits)
    misuses = Denials(storage, log, limits, seconds=limits.misuse_seconds, by_object=True)

    def note_misuse(refusal: Refusal, organization: str, user_id: str, credential_id: str) -> None:
        actor = f"user:{user_id}" if user_id else f"token:{credential_id}"
        event = (organization, actor, MISUSES[refusal], f"token:{credential_id}")
        misuses.note(Event(*event, credential_id=credential_id, reason=UnauthenticatedCredential.reason))

    feed = ChangeFeed(storage, RevisionCache(limits), settings.max_staleness, live.note_sequence)
    authenticator = Authenticator(storage, feed, limits, on_misuse=note_misuse)
    directory = Directory(storage, authenticator, feed, limits, on_misuse=note_misuse)
    authorizer = Authorizer(storage, directory, live, pages)
    unit_of_work = UnitOfWork(storage, authenticator, live, log)
    decisions = DecisionLog(settings)
    services = {
        authorization_pb2.DESCRIPTOR: AuthorizationService(authorizer, decisions),
        policy_pb2.DESCRIPTOR: PolicyService(authorizer, Policies(storage, live, limits)),
        token_pb2.DESCRIPTOR: TokenService(Tokens(unit_of_work, storage, live, pages)),
        session_pb2.DESCRIPTOR: SessionService(Sessions(unit_of_work, storage, live, links, limits)),
        member_pb2.DESCRIPTOR: MemberService(Members(unit_of_work, storage, live, pages)),
        assignment_pb2.DESCRIPTOR: AssignmentService(RoleAssignments(unit_of_work, storage, live, pages)),
        team_pb2.DESCRIPTOR: TeamService(Teams(unit_of_work, storage, live, pages)),
        invitation_pb2.DESCRIPTOR: InvitationService(Invitations(unit_of_work, storage, live, pages, links, limits)),
        organization_pb2.DESCRIPTOR: OrganizationService(Organizations(unit_of_work, storage, live)),
        audit_pb2.DESCRIPTOR: AuditService(AuditLogs(storage, authenticator, live, pages, log, limits)),
    }
    background = PeriodicThread(
        "background",
        authenticator.failed.flush,
        denials.flush,
        misuses.flush,
        authenticator.last_used.flush,
        ActivationEntries(storage, log, lambda: live.in_force.activation.sequence).run,
        Cleanup(storage, limits).run,
        *([ExpiryNotices(storage, live, limits).run] if settings.expiry_mails else []),
        interval=BACKGROUND_SECONDS,
    )
    handler = CallHandler(authenticator, denials)
    return _Core(
        handler,
        services,
        feed,
        background,
        sender,
        denials,
        misuses,
        authenticator,
        directory,
        decisions,
    )


def _polls(settings: Settings) -> bool:
    """Whether to use the polling transport. Raises `ConfigError` where the settings require it and it doesn't work."""
    if settings.transport == "standard":
        return False
    if found := probe.problem():
        if settings.transport == "polling":
            raise ConfigError(f"The polling transport doesn't work with this grpcio ({found}): set `transport = auto`.")
        _log.warning("polling transport doesn't work with this grpcio, using the standard one", problem=found)
    return not found


def _methods(file: FileDescriptor, servicer: Any) -> Iterator[Method]:
    """Yield every RPC that the protos declare. Raises `AttributeError` where `servicer` has no method for one."""
    for service in file.services_by_name.values():
        for rpc in service.methods:
            name = f"/{service.full_name}/{rpc.name}"
            yield Method(
                name,
                GetMessageClass(rpc.input_type),
                getattr(servicer, rpc.name),
                managing=file is not authorization_pb2.DESCRIPTOR,
                open=name in OPEN_METHODS,
                run_cached=getattr(servicer, CACHED_METHODS[name]) if name in CACHED_METHODS else None,
                streaming=rpc.server_streaming,
            )


def _bind(server: grpc.Server, settings: Settings, certificates: Certificates | None) -> str:
    """Listen, and return the address with its port. Raises `ConfigError`."""
    try:
        if path := socket_path(settings.listen):
            # gRPC reads the path as part of a URI.
            with socket_file.claim(Path(path), int(settings.socket_mode, 8)):
                server.add_insecure_port(f"unix:{quote(path)}")
            return f"unix:{path}"
        if certificates:
            port = server.add_secure_port(settings.listen, certificates.credentials)
        else:
            port = server.add_insecure_port(settings.listen)
    except RuntimeError as error:
        raise ConfigError(
            f"{settings.listen} can't be listened on: perhaps another server does so already. End that one, or choose"
            " another address with --listen or ROLECALL_LISTEN."
        ) from error
    host, _ = split_address(settings.listen)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
