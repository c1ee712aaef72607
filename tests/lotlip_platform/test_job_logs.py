"""Following a job's log in a store that comes and goes."""

from __future__ import annotations

import boto3
import pytest
from servers import free_port

from lotlip.errors import ConfigError, DataError
from lotlip_platform import job_logs
from lotlip_platform.job_folder import Attempt, Job, JobFolder, Seen, jobs_store
from lotlip_platform.job_logs import log_lines
from lotlip_platform.storage import ensure_bucket

STORE = "s3://followed/jobs"
JOB = Job(
    id="train-x-20260101-000000-abcd",
    verb="train",
    files={},
    output="",
    code_version="",
    package="",
    environment={},
    by="",
)


@pytest.fixture(autouse=True)
def _often(s3_env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_logs, "_LOOK_S", 0.01)


def write(log: bytes, *, is_over: bool) -> None:
    ensure_bucket(STORE)
    folder = JobFolder(jobs_store(STORE), JOB.id)
    dead = f"http://127.0.0.1:{free_port()}"
    folder.write_attempt(Attempt(number=1, address=dead, submission_id=JOB.id, time_s=1.0))
    folder.write_job(JOB)
    state = "succeeded" if is_over else "running"
    folder.write_seen(1, Seen(state=state, host="h", began_s=1.0, seen_s=2.0))
    folder.logs(1).write("driver/000.log", log)


def take_away() -> None:
    bucket = boto3.resource("s3").Bucket("followed")
    bucket.objects.all().delete()
    bucket.delete()


def test_who_follows_a_log_waits_for_a_store_that_is_away_and_misses_nothing() -> None:
    write(b"first\n", is_over=False)
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line)
        write(b"first\nsecond\nthird", is_over=True)

    lines = log_lines(JOB.id, store=STORE, follow=True, say=say)
    assert next(lines) == "first"
    take_away()
    assert list(lines) == ["second", "third"]
    assert len(told) == 1
    assert "bucket 'followed' does not exist" in told[0]
    assert told[0].endswith("looking again for 10 minutes")


def test_a_store_that_stays_away_is_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_logs, "_PATIENCE_S", 0.1)
    write(b"first\n", is_over=False)
    lines = log_lines(JOB.id, store=STORE, follow=True)
    assert next(lines) == "first"
    take_away()
    with pytest.raises(DataError, match="bucket 'followed' does not exist"):
        next(lines)


def test_a_worker_that_has_written_nothing_is_told_of_and_at_the_end_who_has() -> None:
    write(b"first\n", is_over=False)
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line)
        write(b"first\n", is_over=True)

    with pytest.raises(ConfigError, match="has no log of rank-0009; it has driver"):
        list(log_lines(JOB.id, source="rank-0009", store=STORE, follow=True, say=say))
    assert told == ["nothing from rank-0009 yet"]
