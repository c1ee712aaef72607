"""What a worker writes, kept in the store as well: its machine may be gone when somebody asks."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lotlip_platform.job_environment import LOGS
from lotlip_platform.log_parts import LogWriter
from lotlip_platform.redaction import redacted
from lotlip_platform.storage import open_store

_DRAIN_S = 2.0
_LAST_WORD_S = 30.0
"""For a store that is away at the end, when a traceback is what matters."""
_FLUSH_S = 10.0
"""There may be hundreds of workers, and each flush is a request to the store."""


@contextmanager
def log_kept(source: str) -> Iterator[None]:
    """All that this process and those it starts write goes to the job's log too, if there is a
    job; an error with its traceback."""
    uri = os.environ.get(LOGS)
    if not uri:
        yield
        return
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells of each client
    writer = LogWriter(open_store(uri), source, _FLUSH_S)
    reading, writing = os.pipe()
    before = {number: os.dup(number) for number in (1, 2)}
    for number in before:
        os.dup2(writing, number)
    os.close(writing)
    tee = threading.Thread(target=_tee, args=(reading, before[1], writer), daemon=True)
    tee.start()
    try:
        yield
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in before.items():
            os.dup2(kept, number)
        tee.join(_DRAIN_S)  # a process that was left behind may hold the pipe open
        writer.close(_LAST_WORD_S)


def _tee(reading: int, onward: int, writer: LogWriter) -> None:
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            content = redacted(line).encode()
            writer.write(content)
            with contextlib.suppress(OSError):  # its disk is full: training is not to wait for that
                os.write(onward, content)
