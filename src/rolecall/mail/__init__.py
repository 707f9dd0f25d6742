"""Mail: what is queued with a change is sent after it, at least once, by one of the servers."""

from rolecall.mail.letters import Letters
from rolecall.mail.sender import Sender
from rolecall.mail.transport import FolderTransport, SmtpTransport, Transport, transport_for

__all__ = ["FolderTransport", "Letters", "Sender", "SmtpTransport", "Transport", "transport_for"]
