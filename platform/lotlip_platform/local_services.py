"""The embedded default: an S3 endpoint, an MLflow server and a Ray head on this machine.

All listen on 127.0.0.1 only, outlive the command, and keep their files in `home()`. The S3 endpoint
(moto) holds its objects in memory: `down` loses them. MLflow's runs and models stay.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lotlip.errors import ClusterError, ConfigError, DataError, LotlipError, TrackingError
from lotlip_platform.service_process import (
    Service,
    end,
    is_alive,
    last_line,
    port_or_free,
    start,
    wait_until_healthy,
)

SERVICES = ("s3", "mlflow", "ray")
PREFERRED_PORTS = {"s3": 9123, "mlflow": 5123, "ray": 6399, "dashboard": 8265}
START_TIMEOUT_S = 180.0
OBJECT_STORE_BYTES = 500_000_000
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Despite its name it keeps Ray from replacing 127.0.0.1 by the machine's public address, so that
nothing of it can be reached from outside."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "lotlip", "AWS_SECRET_ACCESS_KEY": "lotlip"}
_ERRORS: dict[str, type[LotlipError]] = {
    "s3": DataError,
    "mlflow": TrackingError,
    "ray": ClusterError,
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Plan:
    """How to start a service."""

    command: Sequence[str]
    url: str
    address: str
    health: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def home() -> Path:
    """The folder of the local services: $LOTLIP_HOME, else ~/.lotlip."""
    return Path(os.environ.get("LOTLIP_HOME") or "~/.lotlip").expanduser().absolute()


def require_disk(num_bytes: int) -> None:
    """Raises: DataError if the disk of `home()` has less space left."""
    existing = next(folder for folder in (home(), *home().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise DataError(
            f"{home()} has {free / 1e9:.1f} GB of disk left, {num_bytes / 1e9:.0f} GB are needed: "
            "make room, or set LOTLIP_HOME to a folder elsewhere"
        )


def local_tracking_uri() -> str:
    """MLflow's database, which its server and, without one, its clients open."""
    return f"sqlite:///{home()}/mlflow/mlflow.db"


def local_artifacts() -> Path:
    """The artifacts of the runs in that database."""
    return home() / "mlflow" / "artifacts"


def services() -> dict[str, Service]:
    """The recorded services that are still alive, by name."""
    return {name: service for name, service in _recorded().items() if is_alive(service)}


def up(
    names: Sequence[str] = SERVICES, on_progress: Progress = lambda line: None
) -> dict[str, Service]:
    """Start those services that are not alive and wait until all can be used.

    Raises: ConfigError, DataError (S3), TrackingError (MLflow) or ClusterError (Ray).
    """
    unknown = [name for name in names if name not in SERVICES]
    if unknown:
        raise ConfigError(f"no local service {unknown[0]!r}: choose from {', '.join(SERVICES)}")
    with _locked(on_progress):
        # Ray comes last: its workers inherit the addresses of the others.
        for name in (name for name in SERVICES if name in names):
            service = services().get(name) or _launch(name, on_progress)
            _await(service)
        return services()


def down() -> list[str]:
    """End all recorded services with their descendants; the names of those that were alive."""
    with _locked(lambda line: None):
        ended = list(services())
        # Those whose first process was killed may have left descendants behind.
        for service in reversed(list(_recorded().values())):
            end(service)
        _record_path().unlink(missing_ok=True)
    return ended


def environment() -> dict[str, str]:
    """Variables that point clients to the live services, without those the user set otherwise."""
    alive = services()
    wanted: dict[str, str] = {}
    if "s3" in alive and _s3_is_ours(alive["s3"].address):
        wanted |= {"AWS_ENDPOINT_URL": alive["s3"].address, **CREDENTIALS}
        wanted["AWS_DEFAULT_REGION"] = "us-east-1"
    if "mlflow" in alive:
        wanted["MLFLOW_TRACKING_URI"] = alive["mlflow"].address
    if "ray" in alive and os.environ.get("RAY_ADDRESS") in (None, alive["ray"].address):
        wanted |= {"RAY_ADDRESS": alive["ray"].address, **_ray_client()}
    return {name: text for name, text in wanted.items() if os.environ.get(name, text) == text}


def use_local_services() -> dict[str, str]:
    """Put `environment()` into this process's environment, before Ray is imported."""
    variables = environment()
    os.environ.update(variables)
    if not os.environ.get("RAY_ADDRESS"):  # then commands start one for themselves
        os.environ.update(_LOOPBACK)
    return variables


def ray_token_path() -> Path:
    """The secret without which nobody, not even another user of this machine, can use our Ray."""
    return home() / "ray-token"


def _ray_client() -> dict[str, str]:
    """What Ray's servers and clients must agree on."""
    return {
        **_LOOPBACK,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray_token_path()),
    }


def _ensure_ray_token() -> None:
    if not ray_token_path().exists():
        handle = os.open(ray_token_path(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))


def _s3_is_ours(address: str) -> bool:
    """Whether the user's settings name no other store or credentials; the two are never mixed."""
    ours = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ENDPOINT_URL_S3": address,
        "AWS_ACCESS_KEY_ID": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "AWS_PROFILE": None,
    }
    return all(os.environ.get(name) in (None, value) for name, value in ours.items())


def _launch(name: str, on_progress: Progress) -> Service:
    left_over = _recorded().get(name)
    if left_over:
        end(left_over)
    plan = {"s3": _plan_s3, "mlflow": _plan_mlflow, "ray": _plan_ray}[name](on_progress)
    on_progress(f"starting {name} at {plan.url}")
    variables = {**os.environ, **environment(), **plan.environment}
    pid, create_time = start(plan.command, folder=home(), log=_log(name), environment=variables)
    service = Service(name, plan.url, plan.address, plan.health, pid, create_time)
    _record({**_recorded(), name: service})
    return service


def _await(service: Service) -> None:
    if wait_until_healthy(service, START_TIMEOUT_S):
        return
    how = f"did not answer within {START_TIMEOUT_S:g} s" if is_alive(service) else "ended"
    end(service)
    _record({name: other for name, other in _recorded().items() if name != service.name})
    log = _log(service.name)
    raise _ERRORS[service.name](f"{service.name} {how}: {last_line(log)}; see {log}")


def _plan_s3(on_progress: Progress) -> _Plan:
    port = _port("s3", on_progress)
    url = f"http://127.0.0.1:{port}"
    command = _module("moto.server", "--host", "127.0.0.1", "--port", str(port))
    return _Plan(command, url, url, (f"{url}/moto-api/",), {"MOTO_PORT": str(port)})


def _plan_mlflow(on_progress: Progress) -> _Plan:
    port = _port("mlflow", on_progress)
    url = f"http://127.0.0.1:{port}"
    local_artifacts().mkdir(parents=True, exist_ok=True)
    command = _module(
        *("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", local_tracking_uri()),
        # Not through the server: so a run is read alike when it was recorded without one.
        *("--no-serve-artifacts", "--default-artifact-root", str(local_artifacts())),
    )
    # The job runner and its consumers would be 8 more processes of 220 MB each.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return _Plan(command, url, url, (f"{url}/health",), quiet)


def _plan_ray(on_progress: Progress) -> _Plan:
    _ensure_ray_token()
    port, dashboard = _port("ray", on_progress), _port("dashboard", on_progress)
    agent = port_or_free(0)
    address, url = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
    command = _module(
        *("ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={_ray_folder()}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        f"--ray-client-server-port={port_or_free(0)}",
        *(f"--num-cpus={_num_cpus()}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
    )
    health = (f"{url}/api/gcs_healthz", f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
    variables = {
        **_ray_client(),
        # Jobs start `python`: it must be this one.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "RAY_ADDRESS": address,
        # Workers that share cores must not spin while they wait.
        "OMP_WAIT_POLICY": "PASSIVE",
        # A single node has nowhere to move its work: end at once.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    return _Plan(command, url, address, health, variables)


def _num_cpus() -> int:
    """One logical CPU more than cores: the drivers of a sweep take a sliver of one each."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(2, cores) + 1


def _ray_folder() -> str:
    """A short path: Ray puts Unix sockets deep below it, and their paths end at 107 bytes."""
    digest = hashlib.sha256(str(home()).encode()).hexdigest()[:8]
    return f"/tmp/lotlip-ray-{os.getuid()}-{digest}"


def _module(*arguments: str) -> list[str]:
    # -P: a folder of the user's must not shadow a module.
    return [sys.executable, "-P", "-m", *arguments]


def _port(name: str, on_progress: Progress) -> int:
    preferred = PREFERRED_PORTS[name]
    port = port_or_free(preferred)
    if port != preferred:
        on_progress(f"port {preferred} is in use: {name} takes {port}")
    return port


def _log(name: str) -> Path:
    return home() / "logs" / f"{name}.log"


def _record_path() -> Path:
    return home() / "services.json"


def _recorded() -> dict[str, Service]:
    path = _record_path()
    try:
        entries = json.loads(path.read_text())
        return {
            name: Service(**{**entry, "health": tuple(entry["health"])})
            for name, entry in entries.items()
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; set LOTLIP_HOME") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): end its services and remove it") from error


def _record(entries: Mapping[str, Service]) -> None:
    text = json.dumps({name: asdict(service) for name, service in entries.items()}, indent=2)
    handle, temporary = tempfile.mkstemp(dir=home(), prefix=".services-")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, _record_path())


@contextmanager
def _locked(on_progress: Progress) -> Iterator[None]:
    """Only one `up` or `down` at a time."""
    try:
        home().mkdir(parents=True, exist_ok=True)
        file = (home() / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"cannot write to {home()}: {error.strerror}; set LOTLIP_HOME") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress("another `lotlip up` or `down` is at work: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
