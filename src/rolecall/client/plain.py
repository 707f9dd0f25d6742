"""Messages as plain values, for JSON and tables: times as text, enums by their short names, numbers as numbers."""

from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from rolecall.domain import rfc3339

__all__ = ["plain"]


def plain(message: Message) -> dict[str, Any]:
    """The message's fields by name. What is absent is None; bytes don't occur."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(item, field) for item in value]
    return _value(value, field)


def _value(value: Any, field: Any) -> Any:
    if isinstance(value, Timestamp):
        return rfc3339(value.seconds * 1_000_000 + value.nanos // 1000)
    if isinstance(value, Message):
        known = value.DESCRIPTOR.full_name.startswith("rolecall.")
        return plain(value) if known else _tidy(MessageToDict(value))
    if field.enum_type is not None:
        # The first value of each enum is its prefix and UNSPECIFIED.
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        known_value = field.enum_type.values_by_number.get(value)
        return known_value.name.removeprefix(prefix).lower() if known_value else str(value)
    return value


def _tidy(value: Any) -> Any:
    """What a Struct holds, in one order, and its whole numbers as such."""
    if isinstance(value, dict):
        return {key: _tidy(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
