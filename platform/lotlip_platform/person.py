"""Who is at work."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """Of this process' user; a container's may have a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
