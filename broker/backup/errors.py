"""What can be wrong with a backup or with where it goes. Messages say what, where, and how to mend it."""

from __future__ import annotations


class BackupError(Exception):
    """The backup cannot be made or used."""
