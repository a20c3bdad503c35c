"""Mail: one letter by SMTP, in a thread of its own."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage

from broker.settings import MailSettings


class MailFailed(Exception):
    """The mail server did not take the letter, or it is none that could be sent."""


class MailServerDown(MailFailed):
    """The mail server takes no letter at all: it does not answer, or does not let us in."""


@dataclass(frozen=True, slots=True)
class Letter:
    """`message_id` is the same when it is sent again, so that a mailbox may know it."""

    to: tuple[str, ...]
    subject: str
    text: str
    message_id: str


async def send(settings: MailSettings, letter: Letter) -> None:
    """Raises MailFailed with the server's words, MailServerDown when the next letter would fare no better."""
    where = f"{settings.host}:{settings.port}"
    try:
        await asyncio.to_thread(_send, settings, message_of(settings, letter))
    except (smtplib.SMTPConnectError, smtplib.SMTPHeloError, smtplib.SMTPAuthenticationError) as failure:
        raise MailServerDown(f"{where}: {failure}") from failure
    except smtplib.SMTPException as failure:
        raise MailFailed(f"{where}: {failure}") from failure
    except OSError as failure:
        raise MailServerDown(f"{where}: {failure}") from failure
    except ValueError as failure:  # an address with a line break is no header
        raise MailFailed(f"{', '.join(letter.to)!r}: {failure}") from failure


def message_of(settings: MailSettings, letter: Letter) -> EmailMessage:
    """The letter as it goes out. A line break in a subject would be another header: it becomes a space."""
    message = EmailMessage()
    message["From"] = settings.sender
    message["To"] = ", ".join(letter.to)
    message["Subject"] = " ".join(letter.subject.split())
    message["Message-ID"] = f"<{letter.message_id}@{settings.sender.rpartition('@')[2]}>"
    message.set_content(letter.text)
    return message


def _send(settings: MailSettings, message: EmailMessage) -> None:
    with smtplib.SMTP(settings.host, settings.port, timeout=settings.timeout_s) as server:
        if settings.starttls:
            server.starttls(context=ssl.create_default_context())
        if settings.user is not None and settings.password is not None:
            server.login(settings.user, settings.password.get_secret_value())
        server.send_message(message)
