"""`lotlip jobs submit`: all that can be checked is checked, then the job is another's.

What travels is the code as git tracks it, and the resolved config. Apart from `job_control`, since
it imports what training imports.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from lotlip.errors import ConfigError
from lotlip_platform.cluster import WORKER_ENVIRONMENT
from lotlip_platform.job_cluster import JobCluster
from lotlip_platform.job_control import STOP_VARIABLE, submit_attempt
from lotlip_platform.job_environment import CODE, JOB, LOGS
from lotlip_platform.job_folder import Job, JobFolder, given_store, jobs_store
from lotlip_platform.job_package import make_package
from lotlip_platform.job_preflight import Told, check
from lotlip_platform.job_spec import check_places, job_spec
from lotlip_platform.person import user_name
from lotlip_platform.redaction import is_secret, secret_in

_OWN = {JOB, LOGS, CODE, STOP_VARIABLE, *WORKER_ENVIRONMENT}


def submit(
    verb: str,
    config: str,
    overrides: Sequence[str] = (),
    *,
    address: str = "",
    store: str = "",
    environment: Mapping[str, str] | None = None,
    on_finding: Told = lambda finding: None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Check a job, and submit it; its id.

    Raises: LotlipError before anything is submitted if it can't run there.
    """
    spec = job_spec(verb, config, overrides)
    variables = dict(environment or {})
    _check_environment(variables)
    package = make_package()
    for line in package.told():
        say(line)
    package.check_size()
    cluster = JobCluster(address)
    jobs = jobs_store(store)
    check_places({"--store": given_store(store)})
    variables[CODE] = package.code_version
    check(
        spec,
        cluster,
        jobs=jobs.uri,
        package=package.content,
        environment=variables,
        on_finding=on_finding,
    )
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    job = Job(
        id=f"{verb}-{spec.name}-{stamp}-{secrets.token_hex(2)}",
        verb=verb,
        files=spec.files,
        output=spec.output,
        code_version=package.code_version,
        package=package.digest,
        environment=variables,
        by=f"{user_name()}@{socket.gethostname()}",
    )
    folder = JobFolder(jobs, job.id)
    folder.write_code(job, package.content, package.changes)
    submit_attempt(folder, job, cluster, package.content, 1)
    return job.id


def _check_environment(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        if is_secret(name) or secret_in(value):
            raise ConfigError(
                f"--env {name} looks like a secret, and Ray shows a job's environment: give it to "
                "the cluster's machines instead, as infra/README.md says"
            )
        if name in _OWN:
            raise ConfigError(f"--env {name} is set by lotlip itself")
