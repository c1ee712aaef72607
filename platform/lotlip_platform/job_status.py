"""How jobs on a cluster stand, by what the cluster says and by what the store has of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

from ray.job_submission import JobStatus

from lotlip.errors import ConfigError, LotlipError
from lotlip_platform.job_cluster import JobCluster
from lotlip_platform.job_folder import Attempt, Job, JobFolder, Seen, job_ids, jobs_store

SILENT_S = 60.0
"""A running job that has not been heard of for so long, if its cluster doesn't answer, is lost."""

BEGIN_S = 600.0
"""In which a job that was submitted has begun: one that has not by then, and of which no cluster
knows, is lost."""

JobState = Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]
_STATES: dict[JobStatus, JobState] = {
    JobStatus.PENDING: "pending",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a job stands."""

    job: Job
    attempt: Attempt
    """The newest."""
    state: JobState
    """`lost` if neither the cluster nor the store knows how it ended."""
    seen: Seen | None
    """What its runner last said."""
    silence_s: float
    """Since it said that, by the store's clock; 0 if it has not begun."""
    note: str = ""
    """Why it failed before it began, or why its cluster wasn't asked."""

    @property
    def is_over(self) -> bool:
        return self.state not in ("pending", "running")


def status(id: str, *, address: str = "", store: str = "") -> Status:
    """How a job stands, by its cluster if that answers, else by what the store has.

    Raises: ConfigError if there is no such job.
    """
    folder = JobFolder(jobs_store(store), id)
    job, attempt = folder.read_job(), newest(folder)
    known, note = None, ""
    try:
        known = JobCluster(address or attempt.address).find(attempt.submission_id)
    except LotlipError as error:
        note = str(error)
    # After the cluster was asked: it says the last word.
    kept = _as_kept(folder, job, attempt)
    if known is None or (kept.seen is not None and kept.seen.state != "running"):
        return replace(kept, note=note)
    state = _STATES[known.status]
    note = _reason(known.message or "") if state == "failed" else ""
    return replace(kept, state=state, note=note)


def _reason(message: str) -> str:
    """Ray's message may hold a whole log: its first line and its last tell."""
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()]
    return " ... ".join(line[:200] for line in dict.fromkeys([*lines[:1], *lines[-1:]]))


def listed(*, store: str = "", most: int = 20) -> list[Status]:
    """How the newest jobs stand, the newest first, by what the store has: no cluster is asked."""
    jobs = jobs_store(store)
    found = []
    for id in reversed(job_ids(jobs)[-most:]):
        with contextlib.suppress(LotlipError):  # taken back meanwhile, or damaged
            folder = JobFolder(jobs, id)
            found.append(_as_kept(folder, folder.read_job(), newest(folder)))
    return found


def _as_kept(folder: JobFolder, job: Job, attempt: Attempt) -> Status:
    """How a job stands by what the store has."""
    seen, silence_s = folder.read_seen(attempt.number), 0.0
    state: JobState
    if seen is None:
        state = "pending" if folder.age_s(attempt.number) < BEGIN_S else "lost"
    else:
        silence_s = folder.silence_s(attempt.number)
        is_lost = seen.state == "running" and silence_s >= SILENT_S
        state = "lost" if is_lost else seen.state
    return Status(job=job, attempt=attempt, state=state, seen=seen, silence_s=silence_s)


def newest(folder: JobFolder) -> Attempt:
    """The last attempt at a job. Raises: ConfigError if there is none."""
    attempts = folder.attempts()
    if not attempts:
        raise ConfigError(f"job {folder.id} was being submitted when that was killed: submit anew")
    return attempts[-1]
