"""Rolecall: may this subject do this action on this resource? Asked over gRPC, answered from Casbin policy files."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rolecall.client import Client, Guest

__all__ = ["Client", "Guest", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the client on first use: the server chooses grpc's settings before grpc is imported."""
    if name in ("Client", "Guest"):
        from rolecall import client  # noqa: PLC0415 - see above

        return getattr(client, name)
    raise AttributeError(f"module 'rolecall' has no attribute {name!r}")
