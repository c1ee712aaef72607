"""`lotlip jobs`: the verbs of the laptop on somebody's Ray cluster.

Each job has a folder in the store (`job_folder`), with its code, its resolved config and its logs,
so that it can be told of, and gone on with, when the cluster is no more.
"""

from __future__ import annotations

import contextlib
import shlex
import time

from lotlip.errors import ClusterError, ConfigError, LotlipError
from lotlip_platform.job_cluster import JobCluster
from lotlip_platform.job_environment import JOB, LOGS
from lotlip_platform.job_folder import Attempt, Job, JobFolder, jobs_store
from lotlip_platform.job_status import SILENT_S, Status, status

STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_S = 300
"""In which a job that is told to stop must have saved; then Ray kills it."""
_LOOK_S = 1.0


def resume(id: str, *, address: str = "", store: str = "") -> int:
    """Submit a job again, with the code and config that it had; the number of the attempt.

    Its verb goes on from what it saved. Raises: ConfigError if it runs, or is done.
    """
    folder = JobFolder(jobs_store(store), id)
    job, last = folder.read_job(), status(id, store=store)  # asked where it was submitted
    if last.state == "succeeded":
        raise ConfigError(f"job {id} has succeeded: there is nothing to go on with")
    if not last.is_over:
        raise ConfigError(f"job {id} is {last.state}: stop it first, with lotlip jobs stop")
    cluster = JobCluster(address or last.attempt.address)
    number = last.attempt.number + 1
    submit_attempt(folder, job, cluster, folder.read_package(job), number)
    return number


def stop(id: str, *, address: str = "", store: str = "") -> Status:
    """Have a job save and end, and wait for it. Raises: ConfigError if it doesn't run."""
    now = status(id, address=address, store=store)
    if now.is_over:
        raise ConfigError(f"job {id} is {now.state}: there is nothing to stop")
    cluster = JobCluster(address or now.attempt.address)
    cluster.stop(now.attempt.submission_id)
    deadline = time.monotonic() + STOP_S + SILENT_S
    # Ray waits for what still brings the run to MLflow; that the job has ended, the store knows.
    while not (now := status(id, address=address, store=store)).is_over:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"job {id} has not ended after {STOP_S + SILENT_S:.0f} s: see the dashboard of "
                f"{cluster.address}"
            )
        time.sleep(_LOOK_S)
    return now


def submit_attempt(
    folder: JobFolder, job: Job, cluster: JobCluster, package: bytes, number: int
) -> None:
    """Submit a job, once more if `number` is above 1.

    Raises: ClusterError, DataError; ConfigError if somebody else has just done so.
    """
    id = job.id if number == 1 else f"{job.id}.{number}"
    arguments = [folder.jobs_uri, job.id, str(number)]
    environment = {
        **job.environment,
        JOB: job.id,
        LOGS: folder.logs(number).uri,
        STOP_VARIABLE: str(STOP_S),
    }
    folder.write_attempt(
        Attempt(number=number, address=cluster.address, submission_id=id, time_s=time.time())
    )
    folder.write_job(job)
    try:
        cluster.submit(
            # exec, or a shell would stand between Ray's signals and the runner.
            f"exec python -m lotlip_platform.job_runner {shlex.join(arguments)}",
            package=package,
            environment=environment,
            id=id,
            metadata={"submitted_by": job.by, "output": job.output},
        )
    except BaseException as error:
        if "already exists" in str(error.__cause__):
            raise ConfigError(f"job {job.id} was just resumed by somebody else") from error
        with contextlib.suppress(LotlipError):  # it may have arrived, though no answer came back
            cluster.stop(id)
        if number == 1:  # a later one keeps its number, which the cluster may know
            with contextlib.suppress(LotlipError):
                folder.delete()
        raise
