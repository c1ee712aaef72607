"""The address of a tracking server: without the secrets in it, and why nobody answers there."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit


def without_user(uri: str) -> str:
    """The address alone. The user and password in `http://USER:PASSWORD@HOST` move to where MLflow
    looks for them, so that no message, process list or run folder shows them."""
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not at:
        return uri
    name, _, password = user.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(name)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return parts._replace(netloc=host).geturl()


def innermost(error: BaseException) -> str:
    """What happened on the wire, below what each library made of it."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return " ".join(str(error).split())[:200]
