"""`lotlip jobs` on a real Ray cluster: that which `lotlip up` starts."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import psutil
import pytest
from servers import free_port

pytestmark = pytest.mark.slow

Lotlip = Callable[..., subprocess.CompletedProcess[str]]
SMALL = (
    *("data.train=s3://lotlip/small/train", "eval.data=s3://lotlip/small/validation"),
    *("scenes.uri=s3://lotlip/small", "scenes.num_train=640", "scenes.num_validation=100"),
    *("data.features=s3://lotlip/small/features", "eval.num_samples=100"),
    "train.num_samples=1280",
)
LONG = (
    *SMALL,
    "name=long",
    "train.num_samples=640000",
    "train.eval_every_steps=0",
    "train.save_every_steps=10",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def lotlip(home: Path) -> Iterator[Lotlip]:
    """Runs commands beside local services of their own."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "MLFLOW_", "RAY_", "LOTLIP_"))
    }
    clean |= {"LOTLIP_HOME": str(home), "AWS_EC2_METADATA_DISABLED": "true"}

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "lotlip_platform", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**clean, **environment},
            timeout=240,
        )

    up = run("up")
    assert up.returncode == 0, up.stderr
    yield run
    run("down")


def submitted(lotlip: Lotlip, *arguments: str) -> str:
    done = lotlip("jobs", "submit", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(lotlip: Lotlip, id: str) -> dict:
    done = lotlip("jobs", "status", id, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_for_line(lotlip: Lotlip, id: str, line: str, *arguments: str) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        if re.search(line, lotlip("jobs", "logs", id, *arguments).stdout):
            return
        time.sleep(1)
    raise AssertionError(f"no {line} in the log of {id}: {lotlip('jobs', 'logs', id).stdout}")


def wrong(lotlip: Lotlip, *arguments: str, **environment: str) -> str:
    """The one line that a mistake is told with."""
    done = lotlip("jobs", *arguments, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("lotlip: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    return lines[0]


def test_a_job_runs_from_nothing_to_its_end_with_its_logs(lotlip: Lotlip) -> None:
    done = lotlip("jobs", "submit", "train", "train/scenes", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "✓ resources  2 workers: the cluster can hold them" in done.stderr
    assert re.search(r"package \d+\.\d MB, commit [0-9a-f]{12}; largest: lotlip/", done.stderr)
    id = done.stdout.strip()
    assert re.fullmatch(r"train-scenes-\d{8}-\d{6}-[0-9a-f]{4}", id)

    followed = lotlip("jobs", "logs", "-f", id)
    assert followed.returncode == 0, followed.stderr
    lines = followed.stdout.splitlines()
    assert any("s3://lotlip/small/train is empty: making 640 scenes" in line for line in lines)
    assert lines[-1].startswith("version  models:/lotlip/1")
    assert lotlip("jobs", "logs", id).stdout == followed.stdout

    found = status(lotlip, id)
    assert (found["state"], found["seen"]["exit_code"]) == ("succeeded", 0)
    assert found["job"]["output"] == "s3://lotlip/runs/scenes"
    for rank in (0, 1):
        of_rank = lotlip("jobs", "logs", id, "--rank", str(rank)).stdout.splitlines()
        assert f"rank {rank}: one of 2 workers, cpu on " in of_rank[0]
        assert f"rank {rank}: step 10 of 10: loss " in of_rank[-1]
        matching = lotlip("jobs", "logs", id, "--rank", str(rank), "--grep", "step 10 ").stdout
        assert matching == f"{of_rank[-1]}\n"
    assert "has no log of rank-0002; it has driver, rank-0000, rank-0001" in wrong(
        lotlip, "logs", id, "--rank", "2"
    )
    assert f"job {id} has succeeded: there is nothing to go on with" in wrong(lotlip, "resume", id)
    assert f"job {id} is succeeded: there is nothing to stop" in wrong(lotlip, "stop", id)


def test_the_run_in_mlflow_tells_its_code_and_its_job(lotlip: Lotlip) -> None:
    listed = json.loads(lotlip("jobs", "list", "--json").stdout)
    job = next(one["job"] for one in listed if one["job"]["id"].startswith("train-scenes"))
    shown = lotlip("models", "show", "lotlip/1", "--json")
    assert shown.returncode == 0, shown.stderr
    assert job["code_version"] in shown.stdout


def test_what_would_keep_a_job_from_running_is_told_before_it_is_submitted(
    lotlip: Lotlip, home: Path
) -> None:
    before = lotlip("jobs", "list").stdout
    submit = ("submit", "train", "train/scenes", *SMALL)
    told = wrong(lotlip, *submit, "cluster.num_workers=64")
    assert "resources: cluster.num_workers=64 with 1 CPUs each" in told
    assert "bucket 'nowhere' does not exist" in wrong(lotlip, *submit, "store=s3://nowhere/runs")
    dead = f"http://127.0.0.1:{free_port()}"
    assert f"cannot reach Ray at {dead}" in wrong(lotlip, *submit, "--address", dead)
    s3 = json.loads((home / "services.json").read_text())["s3"]["url"]
    assert "is no Ray dashboard" in wrong(lotlip, *submit, "--address", s3)
    assert lotlip("jobs", "list").stdout == before


def test_a_wrong_token_and_none_are_told_and_the_token_is_never_shown(
    lotlip: Lotlip, home: Path
) -> None:
    path = home / "ray-token"
    token = path.read_text()
    try:
        path.write_text("0" * 64)
        told = wrong(lotlip, "submit", "train", "train/scenes", *SMALL)
        assert "does not accept the token: set RAY_AUTH_MODE=token" in told
        path.write_text("")
        told = wrong(lotlip, "submit", "train", "train/scenes", *SMALL)
        assert "asks for a token: set RAY_AUTH_MODE=token" in told
    finally:
        path.write_text(token)
    logs = [file.read_text(errors="replace") for file in (home / "logs").iterdir()]
    listed = lotlip("jobs", "list", "--json").stdout
    assert not any(token in text for text in [*logs, listed])


def test_a_job_is_stopped_resumed_and_outlives_its_cluster(lotlip: Lotlip, home: Path) -> None:
    id = submitted(lotlip, "train", "train/scenes", *LONG)
    wait_for_line(lotlip, id, "step 20 of 5000", "--rank", "0")
    assert f"job {id} is running: stop it first" in wrong(lotlip, "resume", id)
    stopped = lotlip("jobs", "stop", id)
    assert stopped.returncode == 0, stopped.stderr
    found = status(lotlip, id)
    assert (found["state"], found["seen"]["exit_code"]) == ("stopped", 130)
    saved = re.search(r"stopped at step (\d+) of 5000, saved", found["seen"]["last_line"])
    assert saved, found["seen"]
    assert f"lotlip jobs resume {id} goes on from there" in found["seen"]["last_line"]

    resumed = lotlip("jobs", "resume", id)
    assert resumed.stdout == f"{id}, attempt 2\n", resumed.stderr
    wait_for_line(lotlip, id, f"resuming at step {saved[1]} of 5000")
    step = 10 * (int(saved[1]) // 10 + 3)
    wait_for_line(lotlip, id, f"step {step} of 5000", "--rank", "0")
    first = lotlip("jobs", "logs", id, "--attempt", "1").stdout
    assert "SIGTERM: stopping after this step" in first

    # As if somebody else resumed it at the same time: that one's attempt goes on.
    _forget_attempt(home, id, 2)
    assert f"job {id} was just resumed by somebody else" in wrong(lotlip, "resume", id)
    assert status(lotlip, id)["state"] == "running"

    _kill_cluster(home)
    found = status(lotlip, id)
    assert found["state"] == "running"  # to the best of anyone's knowledge
    assert "cannot reach Ray at" in found["note"]
    assert f"step {step} of 5000" in lotlip("jobs", "logs", id, "--rank", "1").stdout
    deadline = time.monotonic() + 90
    while status(lotlip, id)["state"] == "running" and time.monotonic() < deadline:
        time.sleep(5)
    assert status(lotlip, id)["state"] == "lost"

    assert lotlip("up").returncode == 0
    # Where the one before was is another, on a busy machine at another port.
    url = json.loads((home / "services.json").read_text())["ray"]["url"]
    resumed = lotlip("jobs", "resume", id, "--address", url)
    assert resumed.stdout == f"{id}, attempt 3\n", resumed.stderr
    assert lotlip("jobs", "stop", id).returncode == 0
    assert status(lotlip, id)["attempt"]["number"] == 3


def _kill_cluster(home: Path) -> None:
    head = psutil.Process(json.loads((home / "services.json").read_text())["ray"]["pid"])
    for process in [*head.children(recursive=True), head]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def _forget_attempt(home: Path, id: str, number: int) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=json.loads((home / "services.json").read_text())["s3"]["url"],
        aws_access_key_id="lotlip",
        aws_secret_access_key="lotlip",
        region_name="us-east-1",
    )
    s3.delete_object(Bucket="lotlip", Key=f"jobs/{id}/attempts/{number:04d}.json")
