import json
import os
import time
from pathlib import Path

import pytest
from servers import free_port

from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError
from lotlip_platform.job_folder import Attempt, Job, JobFolder, Seen, job_ids
from lotlip_platform.job_status import listed, status

JOB = Job(
    id="train-x-20260101-000000-abcd",
    verb="train",
    files={"lotlip-job.yaml": "name: x\n"},
    output="s3://b/x",
    code_version="abc",
    package="digest",
    environment={},
    by="me@here",
)


def write(folder: JobFolder, job: Job) -> None:
    attempt = Attempt(
        number=1, address=f"http://127.0.0.1:{free_port()}", submission_id=job.id, time_s=1.0
    )
    folder.write_code(job, b"zip", b"patch")
    folder.write_attempt(attempt)
    folder.write_job(job)


def test_what_is_kept_is_read_again_and_fields_of_later_versions_do_no_harm(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    folder = JobFolder(store, JOB.id)
    with pytest.raises(ConfigError, match="there is no job train-x"):
        folder.read_job()
    write(folder, JOB)
    assert folder.read_job() == JOB
    assert folder.read_package(JOB) == b"zip"
    seen = Seen(state="running", host="h", began_s=1.0, seen_s=2.0)
    folder.write_seen(1, seen)
    assert folder.read_seen(1) == seen
    path = tmp_path / "jobs" / f"{JOB.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert folder.read_job() == JOB
    assert job_ids(store) == [JOB.id]


def test_a_damaged_job_does_not_hide_the_others_and_one_taken_back_is_gone(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    write(JobFolder(store, JOB.id), JOB)
    (tmp_path / "jobs" / "train-y-20260101-000001-abcd.json").write_text("{")
    (one,) = listed(store=str(tmp_path))
    assert (one.job, one.state) == (JOB, "pending")
    JobFolder(store, JOB.id).delete()
    assert listed(store=str(tmp_path)) == []
    assert [path.name for path in tmp_path.rglob("*.zip")] == ["digest.zip"]


def test_a_job_that_has_not_begun_is_pending_until_it_should_have(tmp_path: Path) -> None:
    write(JobFolder(FolderStore(tmp_path), JOB.id), JOB)
    found = status(JOB.id, store=str(tmp_path))
    assert (found.state, found.seen) == ("pending", None)  # its cluster doesn't answer
    assert "cannot reach Ray at http://127.0.0.1:" in found.note
    then = time.time() - 700
    os.utime(tmp_path / JOB.id / "attempts" / "0001.json", (then, then))
    assert status(JOB.id, store=str(tmp_path)).state == "lost"
    assert [one.state for one in listed(store=str(tmp_path))] == ["lost"]


def test_whether_a_job_still_runs_is_told_by_the_stores_clock_not_the_heads(tmp_path: Path) -> None:
    folder = JobFolder(FolderStore(tmp_path), JOB.id)
    write(folder, JOB)
    folder.write_seen(1, Seen(state="running", host="h", began_s=1.0, seen_s=2.0))  # it is 1970
    found = status(JOB.id, store=str(tmp_path))
    assert (found.state, found.is_over) == ("running", False)
    assert "cannot reach Ray at http://127.0.0.1:" in found.note
    assert found.silence_s < 10
    then = time.time() - 120
    os.utime(tmp_path / JOB.id / "states" / "0001.json", (then, then))
    found = status(JOB.id, store=str(tmp_path))
    assert (found.state, round(found.silence_s, -1)) == ("lost", 120)
    assert [one.state for one in listed(store=str(tmp_path))] == ["lost"]
