"""Calls as raw HTTP/2 frames, which can be interrupted anywhere."""

import socket
import struct

__all__ = ["RawConnection"]

DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS = 1, 4
CANCEL = 8


def _field(name: str, value: str) -> bytes:
    """A header without indexing in HPACK's tables."""
    parts = (name.encode(), value.encode())
    # Lengths of 127 and more take a second byte, and so on.
    return b"\0" + b"".join(_length(len(part)) + part for part in parts)


def _length(value: int) -> bytes:
    if value < 127:
        return bytes([value])
    rest = value - 127
    out = [127]
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest])


class RawConnection:
    """HTTP/2 connection to a server."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=5)
        self._stream = -1
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.frame(SETTINGS, 0, 0)

    def frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """Send one frame."""
        self.socket.sendall(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

    def begin(self, path: str, token: str) -> int:
        """Send a call's headers; the number of its stream."""
        self._stream += 2
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "rolecall",
            "te": "trailers",
            "content-type": "application/grpc",
            "authorization": f"Bearer {token}",
        }
        block = b"".join(_field(name, value) for name, value in headers.items())
        self.frame(HEADERS, END_HEADERS, self._stream, block)
        return self._stream

    def send(self, stream: int, message: bytes, part: float = 1.0) -> None:
        """Send a message, or its beginning."""
        data = b"\0" + struct.pack(">I", len(message)) + message
        whole = part >= 1.0
        self.frame(DATA, END_STREAM if whole else 0, stream, data if whole else data[: int(len(data) * part)])

    def reset(self, stream: int) -> None:
        """Cancel a call."""
        self.frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))

    def vanish(self) -> None:
        """Reset the connection without closing it properly."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """End the connection."""
        self.socket.close()
