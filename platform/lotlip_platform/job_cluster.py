"""A Ray cluster as those see it who submit jobs to it: over HTTP, at its dashboard."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from lotlip.errors import ClusterError, ConfigError
from lotlip_platform.local_services import ray_token_path, services
from lotlip_platform.tracking_address import innermost, one_line

VARIABLE = "RAY_API_SERVER_ADDRESS"
CONNECT_S, SEND_S, ANSWER_S = 5.0, 300.0, 60.0
_LOOK_S = 0.3


class JobCluster:
    """Submits, watches and stops jobs. Every failure is a ClusterError of one line."""

    def __init__(self, address: str = "") -> None:
        """`address`: http://HOST:PORT of the dashboard; else RAY_API_SERVER_ADDRESS, else the
        local cluster.

        Raises: ClusterError, ConfigError.
        """
        local = services().get("ray")
        self.address = _checked(address or os.environ.get(VARIABLE) or (local.url if local else ""))
        with self._explaining("reach"):
            self._client = _Client(self.address, headers={"Authorization": _token(self.address)})

    @property
    def ray_version(self) -> str:
        return self._client.ray_version

    def submit(
        self,
        command: str,
        *,
        package: bytes,
        environment: Mapping[str, str],
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Have the cluster's head run a command in the unpacked package; its id."""
        with tempfile.TemporaryDirectory() as folder, self._explaining("submit to"):
            path = Path(folder) / "package.zip"
            path.write_bytes(package)
            return self._client.submit_job(
                entrypoint=command,
                submission_id=id,
                runtime_env={"working_dir": str(path), "env_vars": dict(environment)},
                metadata=dict(metadata or {}),
            )

    def find(self, id: str) -> JobDetails | None:
        """None if the cluster knows nothing of it."""
        with self._explaining("ask"):
            try:
                return self._client.get_job_info(id)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

    def log(self, id: str) -> str:
        """What Ray has of a job's output, with what went wrong before it began."""
        with self._explaining("ask"):
            return self._client.get_job_logs(id)

    def stop(self, id: str) -> None:
        """Have SIGTERM sent to it, if it runs; doesn't wait."""
        with self._explaining("ask"):
            self._client.stop_job(id)

    def wait(self, id: str, timeout_s: float) -> JobDetails:
        """Until it has ended. Raises: ClusterError if it takes longer."""
        deadline = time.monotonic() + timeout_s
        while (job := self.find(id)) is not None:
            if job.status.is_terminal():
                return job
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{self.address} is {job.status.value.lower()} job {id} for more than "
                    f"{timeout_s:.0f} s: see the cluster's dashboard"
                )
            time.sleep(_LOOK_S)
        raise ClusterError(f"{self.address} has forgotten job {id}: was the cluster restarted?")

    def delete(self, id: str) -> None:
        """Take a job that has ended out of its lists."""
        with self._explaining("ask"):
            self._client.delete_job(id)

    @contextmanager
    def _explaining(self, verb: str) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            is_known = "Authentication failed" in str(error)
            what = "does not accept the token" if is_known else "asks for a token"
            raise ClusterError(
                f"Ray at {self.address} {what}: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH "
                "to a file with the cluster's token"
            ) from error
        except (OSError, requests.RequestException) as error:
            reason = innermost(error)
            raise ClusterError(
                f"cannot {verb} Ray at {self.address}: {reason}; start it (lotlip up starts a "
                f"local one), or correct --address or {VARIABLE}"
            ) from error
        except (RuntimeError, ValueError, KeyError) as error:
            if "returned 404" in str(error):
                raise ClusterError(
                    f"what answers at {self.address} is no Ray dashboard: correct --address or "
                    f"{VARIABLE}"
                ) from error
            # Ray may answer with a traceback, whose last line tells.
            lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
            reason = (lines or [repr(error)])[-1][:300]
            raise ClusterError(f"cannot {verb} Ray at {self.address}: {reason}") from error


class _Client(JobSubmissionClient):
    """Ray's client, which would wait for ever for a server that accepts and says nothing, and
    which heeds the environment more than its argument."""

    def __init__(self, address: str, headers: dict[str, str]) -> None:
        # It tells of each package that it sends.
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = address
        try:
            super().__init__(address, headers=headers)
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before

    @property
    def ray_version(self) -> str:
        return self._server_ray_version or "unknown"

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        # The first of the two is also how long sending the package may take.
        connect_s = SEND_S if method == "PUT" else CONNECT_S
        return super()._do_request(method, endpoint, timeout=(connect_s, ANSWER_S), **options)


def _checked(address: str) -> str:
    """Raises: ConfigError."""
    if not address:
        raise ConfigError(
            f"no cluster to ask: give --address http://HOST:8265 or set {VARIABLE}, or start a "
            "local one with lotlip up"
        )
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise ConfigError(f"--address {address}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--address {address} is not of the form http://HOST:8265")
    if "@" in parts.netloc:
        raise ConfigError("--address holds a user name, and is recorded: use Ray's token instead")
    return address.rstrip("/")


def _token(address: str) -> str:
    """The header with the cluster's token, as Ray's own clients find it; empty if there is none.

    That of the local cluster goes to no other.
    """
    own, given = str(ray_token_path()), os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if _is_local(address):
        paths = [own]
    elif token := os.environ.get("RAY_AUTH_TOKEN"):
        return f"Bearer {token}"
    else:
        paths = [given] if given != own else []
        if os.environ.get("RAY_AUTH_MODE") == "token":
            paths.append("~/.ray/auth_token")
    files = [Path(path).expanduser() for path in paths if path]
    try:
        found = next((file.read_text().strip() for file in files if file.is_file()), "")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the token of Ray: {one_line(error)}") from error
    return f"Bearer {found}" if found else ""


def _is_local(address: str) -> bool:
    """Whether it is the cluster that `lotlip up` has started."""
    local = services().get("ray")
    if local is None:
        return False
    ours, theirs = urlsplit(local.url), urlsplit(address)
    return theirs.port == ours.port and theirs.hostname in (ours.hostname, "localhost")
