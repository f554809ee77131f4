"""Errors that the user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Input that the user can mend.  Commands print its one line and exit with status 1."""
