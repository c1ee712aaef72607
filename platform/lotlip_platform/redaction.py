"""Secrets, kept out of what is recorded and shown: values of the environment and of the files that
Ray, boto3 and MLflow read, users in URLs."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

_NAMES = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN(?![A-Z])|API_KEY|CREDENTIAL", re.IGNORECASE)
_NO_SECRETS = re.compile(r"_(PATH|FILE|MODE)$", re.IGNORECASE)
_USER_IN_URL = re.compile(r"://([^/\s@]+|[^/\s@:]+:[^\s@]+)@")  # a password may hold a slash
_SHORTEST = 8  # shorter ones, as of local services, are words that texts may hold


def redacted(text: str) -> str:
    """The text without the secrets that this process has, and without users in URLs."""
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
    """Each with the name of where it is."""
    found = [*os.environ.items()]
    for place in (
        os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token",
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",
        "~/.mlflow/credentials",
    ):
        path = Path(place).expanduser()
        try:
            found += _in_file(path, path.stat().st_mtime_ns)
        except (OSError, ValueError):  # not there, or not for us
            continue
    for name, value in found:
        if is_secret(name) and len(value) >= _SHORTEST:
            yield name, value


@functools.lru_cache
def _in_file(path: Path, version: int) -> list[tuple[str, str]]:
    """What is in lines of `name = value`; else it is a token."""
    text = path.read_text()
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
    if not pairs:
        return [("RAY_AUTH_TOKEN", text.strip())]
    return [(name.strip(), value.strip()) for name, _, value in pairs]
