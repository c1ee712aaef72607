"""The scripts that `ray job submit` runs, as processes; and the commands of the README."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lotlip_platform.cli import _parser

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
WRONG = {
    "train.py": ("nowhere", "lotlip: there is no config nowhere; shipped ones: eval/"),
    "precompute.py": ("nowhere", "lotlip: there is no config nowhere; shipped ones: eval/"),
    "sweep.py": ("nowhere", "lotlip: there is no config nowhere; shipped ones: eval/"),
    "models.py": (
        "show nothing",
        "lotlip: 'nothing' is not of the form NAME@ALIAS or NAME/VERSION",
    ),
    "evaluate.py": ("model --bench scenes", "lotlip: --bench 'scenes' is not of the form NAME=URI"),
    "serve.py": (
        "model --index data --config nowhere",
        "lotlip: there is no config nowhere; shipped",
    ),
    "ingest.py": (
        "SRC DEST --format csv --images url",
        "lotlip: columns of format csv must be told",
    ),
    "relabel.py": ("nowhere", "lotlip: there is no config nowhere; shipped ones: eval/"),
    "scenes.py": ("DEST --samples 0", "lotlip: num_samples=0 must be from 1 to "),
    "pretrain_scenes_tower.py": (
        "DEST --epochs 0",
        "pretrain_scenes_tower.py: num_epochs=0 must be 1 or more",
    ),
}


def run(job: str, arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / job), *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_help(job: str, tmp_path: Path) -> None:
    done = run(job, "--help", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("job", JOBS)
def test_every_job_tells_wrong_usage_and_a_wrong_config(job: str, tmp_path: Path) -> None:
    without = run(job, "", tmp_path)
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr.startswith("usage: ")
    arguments, expected = WRONG[job]
    wrong = run(job, arguments, tmp_path)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith(expected)
    assert wrong.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def commands_of_the_readme() -> list[str]:
    """Each `lotlip ...` line of its code blocks, without the explanation behind it."""
    lines = (ROOT / "README.md").read_text().splitlines()
    told = [line[4:] for line in lines if line.startswith("    lotlip ")]
    return [re.split(r" {2,}", line)[0] for line in told]


def test_the_readme_has_commands() -> None:
    assert len(commands_of_the_readme()) > 10


@pytest.mark.parametrize("command", commands_of_the_readme())
def test_every_command_of_the_readme_is_one_that_there_is(command: str) -> None:
    assert callable(_parser().parse_args(shlex.split(command)[1:]).run)
