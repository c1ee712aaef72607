"""What a job wrote, from the store, while it goes on and when its cluster is gone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from lotlip.errors import ConfigError, DataError
from lotlip_platform.job_cluster import JobCluster
from lotlip_platform.job_folder import DRIVER, JobFolder, jobs_store
from lotlip_platform.job_status import SILENT_S, newest, status
from lotlip_platform.log_parts import LogReader, sources

_LOOK_S = 2.0
_PATIENCE_S = 600.0
"""For a store that is away while a log is followed."""


def log_lines(
    id: str,
    *,
    source: str = DRIVER,
    attempt: int = 0,
    follow: bool = False,
    address: str = "",
    store: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[str]:
    """The log of a job's driver, or of one of its workers, as `rank-0003`.

    `attempt`: which; 0 the newest. With `follow` until the job ends, else as far as it goes; `say`
    is told why nothing comes. Raises: ConfigError if there is no such job or source.
    """
    folder = JobFolder(jobs_store(store), id)
    folder.read_job()
    number = attempt or newest(folder).number
    if number not in [one.number for one in folder.attempts()]:
        raise ConfigError(f"job {id} has no attempt {number}")
    log = _Log(folder, number, source, address)
    if follow:
        yield from log.followed(say)
    else:
        yield from log.rest()


class _Log:
    """One source's log of one attempt at a job."""

    def __init__(self, folder: JobFolder, number: int, source: str, address: str) -> None:
        self._folder, self._number, self._source = folder, number, source
        self._address = address
        self._reader = LogReader(folder.logs(number), source)
        self._back_since = -math.inf
        """When the store was last there again."""

    def followed(self, say: Callable[[str], None]) -> Iterator[str]:
        """All until the job ends."""
        away_since, is_told = None, False
        while True:
            try:
                is_over = self._is_over(say)  # first: what is written before it ends is read then
                yield from self._reader.lines()
                if away_since is not None:
                    self._back_since, away_since = time.monotonic(), None
            except DataError as error:
                if away_since is None:
                    away_since = time.monotonic()
                    say(f"{error}; looking again for {_PATIENCE_S / 60:.0f} minutes")
                if time.monotonic() - away_since > _PATIENCE_S:
                    raise
            else:
                if is_over:
                    yield from self.rest()
                    return
                if self._reader.is_empty and not is_told:
                    is_told = True
                    say(f"nothing from {self._source} yet")
            time.sleep(_LOOK_S)

    def rest(self) -> Iterator[str]:
        """All that there is."""
        yield from self._reader.lines(is_over=True)
        if self._reader.is_empty:
            yield from self._without_log()

    def _is_over(self, say: Callable[[str], None]) -> bool:
        seen = self._folder.read_seen(self._number)
        if seen is not None and seen.state != "running":
            return True
        if seen is not None:
            # While the store was away nobody could be heard.
            is_silent = self._folder.silence_s(self._number) >= SILENT_S
            if not is_silent or time.monotonic() - self._back_since < SILENT_S:
                return False
        now = status(self._folder.id, address=self._address, store=self._folder.jobs_uri)
        if now.state == "lost":
            say(f"the job is lost: nothing was heard of it for {now.silence_s:.0f} s. {now.note}")
        return now.is_over or now.attempt.number > self._number

    def _without_log(self) -> Iterator[str]:
        """What there is to say where the store has nothing of the source."""
        id = self._folder.id
        if others := sources(self._folder.logs(self._number)):
            raise ConfigError(f"job {id} has no log of {self._source}; it has {', '.join(others)}")
        (attempt,) = [one for one in self._folder.attempts() if one.number == self._number]
        # Its runner never began: Ray knows why.
        cluster = JobCluster(self._address or attempt.address)
        yield from cluster.log(attempt.submission_id).splitlines()
