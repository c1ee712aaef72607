"""What a cluster's head runs for a job: the verb, with its output kept in the store.

Ray's own stop, `lotlip jobs stop` included, sends SIGTERM to the verb as well as to this: the verb
saves and ends, this waits for it. What it says of the attempt is in the store when the head is
gone.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from lotlip.errors import LotlipError
from lotlip_platform.job_folder import DRIVER, Job, JobFolder, RunnerState, Seen, jobs_store
from lotlip_platform.log_parts import LogWriter
from lotlip_platform.redaction import redacted

BEAT_S = 15.0
_DRAIN_S = 5.0
_LAST_WORD_S = 120.0
"""How long the store is asked to take how the job ended: without it, it is lost."""
_STOPPED = (130, -signal.SIGTERM)
"""How a verb ends that was told to stop: in order, or before it could heed that."""


def run(jobs: str, id: str, number: int) -> int:
    """Run an attempt at a job; the verb's exit code. Raises: LotlipError if it can't begin."""
    folder = JobFolder(jobs_store(jobs), id)
    job = folder.read_job()
    # A handler, since a process that is started would inherit that a signal is ignored.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    log = LogWriter(folder.logs(number), DRIVER)
    with tempfile.TemporaryDirectory(prefix="lotlip-job-") as scratch:
        process = _start(job, Path(scratch))
        beats = _Beats(folder, number)
        tee = threading.Thread(target=_tee, args=(process, log, beats), daemon=True)
        tee.start()
        exit_code = process.wait()
        # Something that the verb left behind may keep the pipe open.
        tee.join(_DRAIN_S)
    log.close(_LAST_WORD_S)
    beats.end(exit_code)
    return exit_code


def _start(job: Job, scratch: Path) -> subprocess.Popen[bytes]:
    for name, content in job.files.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    config = next(iter(job.files))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "lotlip_platform", job.verb, config],
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _tee(process: subprocess.Popen[bytes], log: LogWriter, beats: _Beats) -> None:
    assert process.stdout is not None
    for raw in process.stdout:
        line = redacted(raw.decode(errors="replace"))
        log.write(line.encode())
        beats.last_line = line.strip() or beats.last_line
        with contextlib.suppress(OSError):  # its disk is full: the verb is not to wait for that
            sys.stdout.buffer.write(line.encode())
            sys.stdout.buffer.flush()


class _Beats:
    """Tells the store that the attempt is alive, and at last how it ended."""

    def __init__(self, folder: JobFolder, number: int) -> None:
        self._folder, self._number = folder, number
        self._began_s = time.time()
        self.last_line = ""
        self._tell("running", None)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def end(self, exit_code: int) -> None:
        self._ended.set()
        self._thread.join()
        state: RunnerState = "succeeded" if exit_code == 0 else "failed"
        last_word: RunnerState = "stopped" if exit_code in _STOPPED else state
        deadline = time.monotonic() + _LAST_WORD_S
        while not self._tell(last_word, exit_code) and time.monotonic() < deadline:
            time.sleep(_DRAIN_S)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._tell("running", None)

    def _tell(self, state: RunnerState, exit_code: int | None) -> bool:
        """Whether the store has taken it: the job goes on while that is away."""
        seen = Seen(
            state=state,
            host=socket.gethostname(),
            began_s=self._began_s,
            seen_s=time.time(),
            exit_code=exit_code,
            last_line=self.last_line,
        )
        try:
            self._folder.write_seen(self._number, seen)
        except LotlipError:
            return False
        return True


def main() -> int:
    """Run the attempt that the command line names, see `job_control`."""
    try:
        code = run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except LotlipError as error:
        print(f"lotlip: {error}", file=sys.stderr)
        return 1
    # The end of a process that a signal killed, as shells tell it.
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
