"""The gRPC server. `build_server` puts its parts together."""

from typing import TYPE_CHECKING

from rolecall.environment import SERVER_EXTRA_MISSING, importing, lacks_server_extra

if lacks_server_extra():
    raise ImportError(SERVER_EXTRA_MISSING)

from rolecall.config import Settings
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.server.transport.tuning import set_grpc_environment

if TYPE_CHECKING:
    from rolecall.server.build import Server

__all__ = ["build_server"]


def build_server(settings: Settings, *, shares_port: bool = False, limits: Limits = DEFAULT_LIMITS) -> "Server":
    """Build a server and bind its port, which other workers may share.

    Sets the environment that makes grpc fast, which grpc reads when it is imported: no effect if it is already.
    Raises `ConfigError`, `PolicyError`, `StorageUnavailable`.
    """
    set_grpc_environment(polling=settings.transport != "standard")
    with importing():
        from rolecall.server import build  # noqa: PLC0415 - see above

    return build.build(settings, shares_port=shares_port, limits=limits)
