"""Whether somebody is at RAY_ADDRESS: Ray's own client would wait for minutes to say no."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from lotlip.errors import ClusterError

TIMEOUT_S = 4.0
_NO_PORT = ("", "auto", "local")
_ADVICE = "start it (lotlip up starts a local one), or correct or unset RAY_ADDRESS"


def check_answers(address: str) -> None:
    """Connect to the port, if the address has one.

    Raises: ClusterError if nobody accepts, or the address is malformed.
    """
    if address in _NO_PORT:
        return
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ClusterError(f"RAY_ADDRESS={address} is malformed: set it to HOST:PORT or unset it")
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError as error:
        late = isinstance(error, TimeoutError)
        reason = f"no answer within {TIMEOUT_S:g} s" if late else error.strerror or error
        raise ClusterError(f"no Ray at {address}: {reason}; {_ADVICE}") from error
