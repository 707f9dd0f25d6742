"""Messages and members as plain values, for JSON and tables: times as text, enums by their short names."""

from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from rolecall.domain import Member, rfc3339

__all__ = ["to_dict"]


def to_dict(message: Message | Member) -> dict[str, Any]:
    """Return the fields of a message by name, those of a member as in its message. An absent field is None.

    Bytes fields don't occur.
    """
    if isinstance(message, Member):
        return {
            "user_id": message.user_id,
            "email": message.email,
            "display_name": message.display_name,
            "role": message.role,
            "etag": message.etag,
            "create_time": rfc3339(message.create_time),
            "update_time": rfc3339(message.update_time),
            "external_id": message.external_id,
        }
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
        return to_dict(value) if known else _plain(MessageToDict(value))
    if field.enum_type is not None:
        # The first value of each enum is its prefix and UNSPECIFIED.
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        known_value = field.enum_type.values_by_number.get(value)
        return known_value.name.removeprefix(prefix).lower() if known_value else str(value)
    return value


def _plain(value: Any) -> Any:
    """Return a value of a Struct with its keys sorted and its whole numbers, which it holds as floats, as ints."""
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
