"""Requests, answers and rows, as the machine of credentials reads and writes them."""

from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import inspect, text

from rolecall.storage import Transaction
from rolecall.v1 import shared_pb2
from stateful.credential_model import Pattern
from stateful.token_model import SECOND


def dump(tx: Transaction) -> str:
    """Return all rows of all tables as text; bytes as characters and in hexadecimal."""
    lines = []
    for name in inspect(tx.connection).get_table_names():
        for row in tx.connection.execute(text(f'SELECT * FROM "{name}"')):
            for value in row:
                raw = bytes(value) if isinstance(value, bytes | memoryview) else None
                lines.append(str(value) if raw is None else f"{raw.decode('latin-1')}\n{raw.hex()}")
    return "\n".join(lines)


def refusal_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, str]:
    """The code and the reason of a failed call, and all the text that came with it."""
    call = cast("grpc.Call", error)
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(call)
    for detail in status.details if status else ():
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return call.code(), info.reason, f"{call.details()} {status} {call.trailing_metadata()}"


def micros(moment: Timestamp) -> int:
    """A message's time in microseconds."""
    return moment.seconds * SECOND + moment.nanos // 1000


def timestamp(at: int) -> Timestamp:
    """A time as a message."""
    return Timestamp(seconds=at // SECOND, nanos=at % SECOND * 1000)


def restriction_message(patterns: Iterable[Pattern]) -> shared_pb2.Restriction:
    """A restriction as a message."""
    return shared_pb2.Restriction(
        permissions=[shared_pb2.Permission(resource=resource, action=action) for resource, action in patterns]
    )


def restriction_of(message: Any) -> tuple[Pattern, ...] | None:
    """The restriction of a token or a request."""
    if not message.HasField("restriction"):
        return None
    return tuple(dict.fromkeys((item.resource, item.action) for item in message.restriction.permissions))
