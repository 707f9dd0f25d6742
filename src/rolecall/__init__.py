"""Rolecall, an authorization service: may this subject do this action on this resource?

Services ask over gRPC, with `Client`; the server decides by Casbin policy files. `pip install rolecall` installs what
the client needs, `pip install 'rolecall[server]'` what the command and the server need too.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rolecall.client import Client, UnauthenticatedClient

__all__ = ["Client", "UnauthenticatedClient", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the client on its first use: the server chooses grpc's settings before grpc is imported."""
    if name in ("Client", "UnauthenticatedClient"):
        from rolecall import client  # noqa: PLC0415 - see above

        return getattr(client, name)
    raise AttributeError(f"module 'rolecall' has no attribute {name!r}")
