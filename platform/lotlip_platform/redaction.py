"""Secrets, kept out of what is recorded and shown: values of the environment, users in URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

_NAMES = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN(?![A-Z])|API_KEY|CREDENTIAL", re.IGNORECASE)
_NO_SECRETS = re.compile(r"_(PATH|FILE|MODE)$", re.IGNORECASE)
_USER_IN_URL = re.compile(r"://([^/\s@]+|[^/\s@:]+:[^\s@]+)@")  # a password may hold a slash
_SHORTEST = 8  # shorter ones, as of local services, are words that texts may hold


def redacted(text: str) -> str:
    """The text without the secrets of this process' environment, and without users in URLs."""
    text = _USER_IN_URL.sub("://***@", text)
    for _, value in _secrets():
        text = text.replace(value, "***")
    return text


def secret_in(text: str) -> str:
    """What kind of secret a text holds; empty if none is known."""
    if _USER_IN_URL.search(text):
        return "a user name in a URL"
    return next((f"the value of {name}" for name, value in _secrets() if value in text), "")


def is_secret(name: str) -> bool:
    """Whether a variable of this name is one that holds a secret."""
    return bool(_NAMES.search(name)) and not _NO_SECRETS.search(name)


def _secrets() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= _SHORTEST:
            yield name, value
