"""What can come between a request and its answer, whatever speaks HTTP for the commands. The message says what it was."""

from __future__ import annotations


class NotSent(Exception):
    """No connection: nothing of the request was sent, so that it may be sent again whatever it asks for."""


class BrokeOff(Exception):
    """The connection broke, or was silent for too long: the request may or may not have arrived."""
