"""The gRPC server: the only place where the parts are put together."""

from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health
from grpc_status import rpc_status

from rolecall import keys
from rolecall.authorizer import Authorizer
from rolecall.config import Settings, check_listening, split_address
from rolecall.directory import Directory
from rolecall.errors import ConfigError
from rolecall.live_policy import LivePolicy
from rolecall.pages import Pages
from rolecall.server.authorization import AuthorizationService
from rolecall.server.calls import REQUEST_ID, Calls, Method
from rolecall.server.policy import PolicyService
from rolecall.server.probes import add_health
from rolecall.server.reflection import add_reflection
from rolecall.storage import Storage
from rolecall.v1 import authorization_pb2, policy_pb2

__all__ = ["Server", "build_server"]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_WAITING_CALLS = 10_000
MAX_STREAMS = 1000
CONNECTION_GRACE_MS = 5000
STOP_SECONDS = 5.0

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready to start. `address` is where it listens, with the port that it got."""

    address: str
    live: LivePolicy
    storage: Storage
    _grpc: grpc.Server
    _health: health.HealthServicer

    def start(self) -> None:
        """Answer calls from now on."""
        self.live.start()
        self._grpc.start()

    def stop(self, grace: float = STOP_SECONDS) -> None:
        """Take no new calls, give those under way `grace` seconds, and let go of everything."""
        self._health.enter_graceful_shutdown()
        self._grpc.stop(grace).wait(grace + 1)
        self.live.stop()
        self.storage.close()


def build_server(settings: Settings) -> Server:
    """Put a server together and bind its port. Raises `ConfigError`, `PolicyError`, `StorageUnavailable`."""
    check_listening(settings)
    key = keys.read(settings.key_file)
    # One connection for each call under way, and one for the policy's gate.
    storage = Storage(settings.database, pool_size=settings.threads + 1)
    storage.check()
    live = LivePolicy(settings.policy, storage)
    pages = Pages(key)
    directory = Directory(storage)
    authorizer = Authorizer(storage, directory, live, pages)
    calls = Calls(directory)
    services = {
        authorization_pb2.DESCRIPTOR: AuthorizationService(authorizer),
        policy_pb2.DESCRIPTOR: PolicyService(authorizer, live),
    }

    server = grpc.server(
        futures.ThreadPoolExecutor(settings.threads, thread_name_prefix="call"),
        maximum_concurrent_rpcs=MAX_WAITING_CALLS,
        options=[
            # Two servers on one port would share its calls silently.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # A call that never sends its message holds a thread until its connection ends.
            ("grpc.max_connection_age_ms", settings.connection_seconds * 1000),
            ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
        ],
    )
    names = []
    for file, servicer in services.items():
        for name, handlers in _handlers(file, servicer, calls).items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
            names.append(name)
    names.append(health.SERVICE_NAME)
    checker = add_health(server, names)
    if settings.reflection:
        add_reflection(server, names)
    return Server(_bind(server, settings), live, storage, server, checker)


def _handlers(file: FileDescriptor, servicer: Any, calls: Calls) -> dict[str, dict[str, Handler]]:
    """A handler for every RPC that the protos declare; `servicer` has a method for each, or this raises."""
    handlers: dict[str, dict[str, Handler]] = {}
    for service in file.services_by_name.values():
        for rpc in service.methods:
            name = f"/{service.full_name}/{rpc.name}"
            method = Method(name, GetMessageClass(rpc.input_type), getattr(servicer, rpc.name))
            handlers.setdefault(service.full_name, {})[rpc.name] = _unary(method, calls)
    return handlers


def _unary(method: Method, calls: Calls) -> Handler:
    """The public lane: messages pass through as bytes, so that what can fail does so inside `Calls.answer`.

    The handler is of the streaming kind, which looks the same to clients: grpc would have a thread wait for the message
    of a unary one, a stranger's too, before it asks us.
    """

    def behaviour(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        if not context.is_active():
            # Its client gave up while it waited for a thread.
            return b""
        metadata = context.invocation_metadata()
        request_id = calls.request_id(metadata)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        answer = calls.answer(method, messages, metadata, request_id)
        if not isinstance(answer, bytes):
            status = rpc_status.to_status(answer)
            context.set_trailing_metadata((*status.trailing_metadata, (REQUEST_ID, request_id)))
            context.abort(status.code, status.details)
        return answer

    return grpc.stream_unary_rpc_method_handler(behaviour)


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
