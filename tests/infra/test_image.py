"""infra/image/Dockerfile, as far as it can be followed without Docker."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "image"
Instruction = tuple[str, str]


def instructions() -> list[list[Instruction]]:
    """By stage: what to do, and how."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    stages: list[list[Instruction]] = [[]]
    for line in filter(str.strip, lines):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest.strip()))
    return stages


def copied() -> list[tuple[str, str]]:
    """Of the repository: path, and where it goes."""
    pairs: list[tuple[str, str]] = []
    for name, rest in instructions()[1]:
        if name == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            pairs += [(source, target) for source in sources]
    return pairs


def is_ignored(path: str) -> bool:
    """Whether Docker leaves it out: the last pattern that fits it or a folder of it decides."""
    ignored = False
    above = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        anywhere = "**/" in line
        names = [Path(each).name if anywhere else each for each in above]
        # A single * does not reach into folders.
        if any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for name in names):
            ignored = not line.startswith("!")
    return ignored


def test_all_that_is_copied_exists_and_nothing_else_is_sent():
    sources = [source for source, _ in copied()]
    assert {"lotlip", "platform/lotlip_platform", "jobs/configs", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source
    for path in (".git/config", ".venv/bin/python", "infra/secrets/postgres", "infra/.env"):
        assert is_ignored(path), path
    for path in ("mlruns/0/meta.yaml", "tests/conftest.py", "lotlip/model/__pycache__/x.pyc"):
        assert is_ignored(path), path


def test_the_base_is_pinned_and_the_last_user_is_no_root():
    stages = instructions()
    (base,) = [rest for name, rest in stages[0] if name == "ARG"]
    assert re.fullmatch(r"BASE=python:3\.11-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    assert {stage[0][1].split()[0] for stage in stages[1:]} == {"${BASE}"}
    last = stages[-1]
    names = [name for name, _ in last]
    assert [rest for name, rest in last if name == "USER"] == ["1000:1000"]
    # Afterwards nothing is done as root.
    assert "RUN" not in names[names.index("USER") :]
    assert names.index("USER") < names.index("CMD")
    assert ("HEALTHCHECK", "NONE") in last


def test_every_installation_heeds_the_constraints():
    commands = [rest for stage in instructions() for name, rest in stage if name == "RUN"]
    installs = [
        command
        for each in commands
        for command in re.split(r"&&|;", each)
        if re.search(r"\bpip install\b", command)
    ]
    assert len(installs) == 4
    for command in installs:
        assert "--constraint" in command, command


def test_no_secret_and_no_credential_is_in_the_image():
    told = " ".join(rest for stage in instructions() for _, rest in stage)
    assert not re.search(r"password|secret|token|AWS_|MLFLOW_TRACKING", told, re.IGNORECASE)


def test_a_login_shell_finds_the_same_python():
    last = dict(reversed(instructions()[-1]))
    path = re.search(r"PATH=(\S+)", last["ENV"])
    assert path
    assert path[1].startswith("/opt/lotlip/bin:")
    assert "HOME=/home/lotlip" in last["ENV"]
    profile = [rest for name, rest in instructions()[-1] if "/etc/profile.d/" in rest]
    assert "export PATH=/opt/lotlip/bin:$PATH" in profile[0]


def test_the_packages_that_are_installed_first_are_those_of_the_project(tmp_path: Path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (command,) = [rest for _, rest in instructions()[1] if "tomllib" in rest]
    program = shlex.split(command.partition(">")[0])
    printed = subprocess.run(
        [sys.executable, *program[1:]], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    server = project["optional-dependencies"]["server"]
    assert printed.splitlines() == [*project["dependencies"], *server]
    # Two pip can't resolve to others than what is tested.
    pinned = (ROOT / "constraints.txt").read_text().lower()
    for requirement in server:
        name = re.split(r"[\[>=]", requirement)[0].lower()
        assert f"\n{name}==" in pinned, requirement


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Built as the image does, of what it copies and nothing else; the names in it."""
    source = tmp_path_factory.mktemp("src")
    for path, target in copied():
        destination = source / (path if target == "./" else target)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, destination, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / path, destination)
    (command,) = [rest for _, rest in instructions()[1] if "hatchling build" in rest]
    words = [str(source / "wheel") if word == "/wheel" else word for word in shlex.split(command)]
    subprocess.run([sys.executable, *words[1:]], cwd=source, check=True, capture_output=True)
    (file,) = (source / "wheel").glob("*.whl")
    return zipfile.ZipFile(file).namelist()


def test_what_is_copied_is_enough_for_the_wheel(wheel: list[str]):
    tops = {name.split("/")[0] for name in wheel if ".dist-info" not in name}
    assert tops == {"lotlip", "lotlip_platform"}
    assert {"lotlip_platform/cli.py", "lotlip_platform/configs/train/scenes.yaml"} <= set(wheel)
    assert any(name.endswith("entry_points.txt") for name in wheel)
