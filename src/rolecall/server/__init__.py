"""The gRPC server: the only place where the parts are put together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message_factory import GetMessageClass

from rolecall import keys
from rolecall.acceptance import Acceptance
from rolecall.audit import AuditLog, Denials, Event, check_key
from rolecall.auditing import Auditing
from rolecall.authorizer import Authorizer
from rolecall.config import Settings, check_listening, split_address
from rolecall.decision_log import DecisionLog
from rolecall.directory import Directory
from rolecall.errors import ConfigError, UnauthenticatedCredential
from rolecall.feed import Feed
from rolecall.invitations import Invitations
from rolecall.links import Links
from rolecall.live_policy import LivePolicy
from rolecall.mail import Letters, Sender, transport_for
from rolecall.members import Members
from rolecall.mutations import Mutations
from rolecall.organizations import Organizations
from rolecall.pages import Pages
from rolecall.remembered import Remembered
from rolecall.server import lane_probe
from rolecall.server.audit import AuditService
from rolecall.server.authorization import AuthorizationService
from rolecall.server.background import Background
from rolecall.server.calls import MAX_MESSAGE_BYTES, Calls, Method
from rolecall.server.fastlane import FastLane
from rolecall.server.health import SERVICE_NAME, Health
from rolecall.server.invitation import InvitationService
from rolecall.server.lanes import add_handlers
from rolecall.server.member import MemberService
from rolecall.server.organization import OrganizationService
from rolecall.server.policy import PolicyService
from rolecall.server.reflection import add_reflection
from rolecall.server.session import SessionService
from rolecall.server.threads import Threads
from rolecall.server.token import TokenService
from rolecall.server.unheard import Unheard
from rolecall.sessions import Sessions
from rolecall.storage import Storage
from rolecall.sweep import Sweep
from rolecall.tokens import Tokens
from rolecall.v1 import (
    audit_pb2,
    authorization_pb2,
    invitation_pb2,
    member_pb2,
    organization_pb2,
    policy_pb2,
    session_pb2,
    token_pb2,
)

__all__ = ["OPEN_METHODS", "Server", "build_server"]

MAX_WAITING_CALLS = 10_000
MAX_STREAMS = 1000
CONNECTION_GRACE_MS = 5000
STOP_SECONDS = 5.0

_log = structlog.get_logger("rolecall.server")

# Connections that callers' threads don't use: for the policy's gate, the feed, the background, mail, exports, and what
# is read together.
MORE_CONNECTIONS = 12
# So many members and tokens are remembered, and as many that there aren't.
MAX_REMEMBERED = 100_000

# The calls that take no credential: whoever makes one proves who they are by a mailed secret, or asks for that.
OPEN_METHODS = frozenset(
    {
        "/rolecall.v1.InvitationService/AcceptInvitation",
        "/rolecall.v1.SessionService/RequestSignIn",
        "/rolecall.v1.SessionService/SignIn",
    }
)

# The calls that are mostly answered from memory.
AT_ONCE = frozenset(f"/rolecall.v1.AuthorizationService/{name}" for name in ("Check", "BatchCheck"))


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready to start. `address` is where it listens, with the port that it got.

    `mail` tells where mails go.
    """

    address: str
    live: LivePolicy
    storage: Storage
    mail: str
    _core: "_Core"
    _threads: Threads
    _watch: Background
    _grpc: grpc.Server
    _fast: FastLane | None
    _health: Health

    def start(self) -> None:
        """Answer calls from now on."""
        self.live.start()
        self._core.feed.start()
        self._core.background.start()
        self._core.sender.start()
        self._watch.start()
        self._grpc.start()
        if self._fast:
            self._fast.start()

    def stop(self, grace: float = STOP_SECONDS) -> None:
        """Take no new calls, give those under way `grace` seconds, and let go of everything."""
        self._health.stop()
        if self._fast:
            # From here on the polling thread may end.
            self._fast.stop()
        self._grpc.stop(grace).wait(grace + 1)
        self._threads.close()
        self._watch.stop()
        self.live.stop()
        self._core.close()
        self.storage.close()


@dataclass(frozen=True, slots=True)
class _Core:
    """What answers the calls, whichever way they come in."""

    calls: Calls
    services: dict[FileDescriptor, Any]
    feed: Feed
    background: Background
    sender: Sender
    denials: Denials
    directory: Directory
    decisions: DecisionLog

    def close(self) -> None:
        """End the background work, and write down what is still to be."""
        self.sender.stop()
        self.background.stop()
        self.feed.stop()
        try:
            self.denials.flush(closing=True)
            self.directory.uses.flush()
        except Exception:  # noqa: BLE001 - whatever it is, the rest must be let go of
            _log.exception("refusals and uses of the last seconds are lost")
        self.decisions.close()


def build_server(settings: Settings, *, shares_port: bool = False) -> Server:
    """Put a server together and bind its port, which other workers may share.

    Raises `ConfigError`, `PolicyError`, `StorageUnavailable`.
    """
    check_listening(settings)
    key = keys.read(settings.key_file)
    storage = Storage(settings.database, pool_size=settings.threads + MORE_CONNECTIONS)
    storage.check()
    live = LivePolicy(settings.policy, storage)
    transport = transport_for(settings)
    links = Links(key)
    sender = Sender(storage, links, Letters(settings), transport)
    core = _build_core(settings, key, storage, live, links, sender)

    threads = Threads(settings.threads)
    server = grpc.server(
        threads.callers,
        maximum_concurrent_rpcs=MAX_WAITING_CALLS,
        options=[
            # Two servers on one port would share its calls silently.
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_receive_message_length", 2 * MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # From 1,000 on that wait to be taken in, grpc would cancel some; clients take that for their own doing.
            ("grpc.server.max_pending_requests", MAX_WAITING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", MAX_WAITING_CALLS),
            # What is grpc's own, as watched health, waits for a message until its connection ends.
            ("grpc.max_connection_age_ms", settings.connection_seconds * 1000),
            ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
        ],
    )
    names = [service.full_name for file in core.services for service in file.services_by_name.values()]
    health = Health([*names, SERVICE_NAME])
    methods = [method for file, servicer in core.services.items() for method in _methods(file, servicer)]
    methods += health.methods
    fast: FastLane | None = None
    if _is_fast(settings):
        unary = [method for method in methods if not method.streaming]
        fast = FastLane(server, unary, core.calls, threads, storage.spare)
    unheard = Unheard()
    add_handlers(server, [method for method in methods if method.streaming or not fast], core.calls, threads, unheard)
    watch = Background(unheard.cancel_overdue)
    health.add_watch(server, threads)
    if settings.reflection:
        add_reflection(server, [*names, SERVICE_NAME], threads)
    return Server(_bind(server, settings), live, storage, transport.where, core, threads, watch, server, fast, health)


def _build_core(
    settings: Settings, key: keys.ServerKey, storage: Storage, live: LivePolicy, links: Links, sender: Sender
) -> _Core:
    log = AuditLog(key)
    check_key(storage, log)
    pages = Pages(key)
    denials = Denials(storage, log)

    def note_old_secret(organization: str, user_id: str, credential_id: str) -> None:
        actor = f"user:{user_id}" if user_id else f"token:{credential_id}"
        held = (organization, actor, "PresentRotatedSecret", f"token:{credential_id}")
        denials.note(Event(*held, credential_id=credential_id, reason=UnauthenticatedCredential.reason))

    feed = Feed(storage, Remembered(MAX_REMEMBERED), settings.max_staleness)
    directory = Directory(storage, feed, look_ups=max(1, settings.threads // 4), on_retired=note_old_secret)
    authorizer = Authorizer(storage, directory, live, pages)
    mutations = Mutations(storage, directory, live, log)
    decisions = DecisionLog(settings)
    services = {
        authorization_pb2.DESCRIPTOR: AuthorizationService(authorizer, decisions, storage.require_patience),
        policy_pb2.DESCRIPTOR: PolicyService(authorizer, live),
        token_pb2.DESCRIPTOR: TokenService(Tokens(mutations, storage, live, pages)),
        session_pb2.DESCRIPTOR: SessionService(Sessions(mutations, storage, live, links)),
        member_pb2.DESCRIPTOR: MemberService(Members(mutations, storage, live, pages)),
        invitation_pb2.DESCRIPTOR: InvitationService(
            Invitations(mutations, storage, live, pages), Acceptance(mutations, storage, links)
        ),
        organization_pb2.DESCRIPTOR: OrganizationService(Organizations(mutations, storage, live)),
        audit_pb2.DESCRIPTOR: AuditService(Auditing(storage, directory, live, pages, log)),
    }
    background = Background(denials.flush, directory.uses.flush, Sweep(storage).run)
    return _Core(Calls(directory, denials), services, feed, background, sender, denials, directory, decisions)


def _is_fast(settings: Settings) -> bool:
    """Whether the fast lane serves. Raises `ConfigError` where it must and can't."""
    if settings.lane == "standard":
        return False
    if found := lane_probe.problem():
        if settings.lane == "fast":
            raise ConfigError(f"The fast lane doesn't work with this grpcio ({found}): set lane to `auto`.")
        _log.warning("the fast lane doesn't work with this grpcio, the standard one serves", problem=found)
    return not found


def _methods(file: FileDescriptor, servicer: Any) -> Iterator[Method]:
    """Every RPC that the protos declare; `servicer` has a method for each, or this raises."""
    for service in file.services_by_name.values():
        for rpc in service.methods:
            name = f"/{service.full_name}/{rpc.name}"
            yield Method(
                name,
                GetMessageClass(rpc.input_type),
                getattr(servicer, rpc.name),
                managing=file is not authorization_pb2.DESCRIPTOR,
                open=name in OPEN_METHODS,
                at_once=name in AT_ONCE,
                streaming=rpc.server_streaming,
            )


def _bind(server: grpc.Server, settings: Settings) -> str:
    """Listen. Answers the address with its port. Raises `ConfigError`."""
    host, _ = split_address(settings.listen)
    try:
        if settings.tls_cert is None or settings.tls_key is None:
            port = server.add_insecure_port(settings.listen)
        else:
            pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
            port = server.add_secure_port(settings.listen, grpc.ssl_server_credentials([pair]))
    except OSError as error:
        raise ConfigError(f"The TLS file {error.filename} can't be read: {error.strerror}.") from error
    except RuntimeError as error:
        hint = " Or the TLS files are no PEM, or don't fit together." if settings.tls else ""
        raise ConfigError(
            f"{settings.listen} can't be listened on: perhaps another server does so already. End that one, or choose"
            f" another address with --listen or ROLECALL_LISTEN.{hint}"
        ) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
