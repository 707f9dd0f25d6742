"""Mail: queued in the transaction of a change (the outbox), and sent after it, at least once, by one of the servers."""

from rolecall.mail.rendering import MailRenderer
from rolecall.mail.sender import MailSender
from rolecall.mail.transport import FolderTransport, SmtpTransport, Transport, transport_for

__all__ = ["FolderTransport", "MailRenderer", "MailSender", "SmtpTransport", "Transport", "transport_for"]
