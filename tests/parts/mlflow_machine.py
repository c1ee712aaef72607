"""What infra/compose.yaml puts on one machine, as far as MLflow needs it, without Docker."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from compose_file import INFRA, ServiceHere, read_compose
from servers import free_port

RUNBOOK = (INFRA / "runbook.md").read_text()
BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
IN_POSTGRES = "docker compose exec -T postgres "
IN_MLFLOW = "docker compose run --rm --no-deps mlflow "


class MlflowMachine:
    """PostgreSQL and MLflow's server, with secrets of their own, and the runbook's commands."""

    def __init__(self, folder: Path, s3_endpoint: str) -> None:
        self.infra = folder / "infra"
        # A copy, so that secrets land in it.
        shutil.copytree(INFRA, self.infra, ignore=shutil.ignore_patterns("secrets", ".env"))
        self.secrets = self.infra / "secrets"
        _run([sys.executable, "new_secrets.py"], cwd=self.infra)
        self.url = f"http://127.0.0.1:{free_port()}"
        self._postgres_port = free_port()
        self._here = {"http://s3:8333": s3_endpoint, "http://mlflow:5000": self.url}
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start_postgres(self, folder: Path) -> None:
        """An empty database, as the image makes it of its variables."""
        assert BINARIES is not None
        owner = _unprivileged(folder)
        wanted = read_compose()["services"]["postgres"]["environment"]
        password = folder / "password"
        shutil.copy(self.secrets / "postgres", password)
        password.chmod(0o444)
        # Its files need not outlive a power cut.
        options = f"-p {self._postgres_port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        data = ["--pgdata", str(folder / "data")]
        login = ["--username", wanted["POSTGRES_USER"], f"--pwfile={password}"]
        for program, arguments in {
            "initdb": [*login, "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"],
            "pg_ctl": ["start", "--wait", "--log", str(folder / "log"), "--options", options],
        }.items():
            _run([str(BINARIES.parent / program), *data, *arguments], cwd=folder, **owner)
        self.in_postgres(f"createdb {wanted['POSTGRES_DB']}")

    def end_postgres(self, folder: Path) -> None:
        assert BINARIES is not None
        command = [str(BINARIES.parent / "pg_ctl"), "stop", "--pgdata", str(folder / "data")]
        _run([*command, "--mode=immediate"], cwd=folder, **_unprivileged(folder))

    def in_postgres(self, command: str) -> str:
        """What `docker compose exec postgres` would do; there no password is asked."""
        assert BINARIES is not None
        variables = {
            "PATH": os.pathsep.join([str(BINARIES.parent), os.environ["PATH"]]),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self._postgres_port),
            "PGUSER": "mlflow",
            "PGPASSWORD": self._first_password,
        }
        return _run(["sh", "-c", command], cwd=self.infra, env=variables)

    @property
    def _first_password(self) -> str:
        """Whatever the file says by now; ALTER ROLE comes after the new file."""
        before = self.secrets / "postgres.before"
        return (before if before.exists() else self.secrets / "postgres").read_text()

    def service(self, name: str) -> ServiceHere:
        return ServiceHere(name, self.secrets, self._here)

    def run_service(self, name: str) -> None:
        """One that comes to an end."""
        service = self.service(name)
        _run(service.command, cwd=self.infra, env=service.environment())

    def mlflow_environment(self) -> dict[str, str]:
        return self.service("mlflow").environment(
            PGHOST="127.0.0.1",
            PGPORT=str(self._postgres_port),
            MLFLOW_HOST="127.0.0.1",
            MLFLOW_PORT=self.url.rpartition(":")[2],
            MLFLOW_WORKERS="1",  # twice as fast to start
            HOME=str(self.infra.parent),
            SECRETS=str(self.secrets),
        )

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.service("mlflow").command,
                cwd=self.infra.parent,
                env=self.mlflow_environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while self.status("/health") != 200:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, self._log.read_text()[-3000:]
            time.sleep(0.2)

    def stop(self) -> None:
        """As Docker does: a signal, and after a while an end."""
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def status(self, path: str, headers: dict[str, str] | None = None) -> int:
        request = urllib.request.Request(self.url + path, headers=headers or {})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def follow(self, marker: str, **words: str) -> str:
        """Do what the runbook says behind a marker; what it printed."""
        found = re.search(rf"<!-- {marker} -->\n```\n(.*?)```", RUNBOOK, re.DOTALL)
        assert found, marker
        printed = []
        for line in re.sub(r"\s*\\\n\s*", " ", found[1]).splitlines():
            for word, value in {"http://127.0.0.1:5000": self.url, **words}.items():
                line = line.replace(word, value)
            if line == "docker compose stop mlflow":
                self.stop()
            elif re.fullmatch(r"docker compose up --detach( --force-recreate)? mlflow", line):
                self.stop()
                self.start()
            elif line.startswith(IN_MLFLOW):
                command = self.service("mlflow").local(line.removeprefix(IN_MLFLOW))
                printed.append(_run(["sh", "-c", command], env=self.mlflow_environment()))
            elif IN_POSTGRES in line:
                printed.append(self.in_postgres(line.replace(IN_POSTGRES, "")))
            else:
                assert line.startswith("python3 "), line
                printed.append(_run(["sh", "-c", line], cwd=self.infra))
        return "".join(printed)

    def login(self, name: str) -> tuple[str, str]:
        parser = ConfigParser()
        parser.read(self.secrets / name)
        return tuple(parser["mlflow"].values())  # type: ignore[return-value]


def _run(command: list[str], **options: Any) -> str:
    options.setdefault("env", {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    # Not through pipes: PostgreSQL, which pg_ctl leaves behind, would hold them open.
    with tempfile.TemporaryFile("w+") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=120, **options)
        out.seek(0)
        text = out.read()
    assert done.returncode == 0, f"{command}: {text[-3000:]}"
    return text


def _unprivileged(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: as whom else, and who owns the folder."""
    if os.geteuid() != 0:
        return {}
    names = {each.pw_name: each for each in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
