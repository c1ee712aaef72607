"""Every command of infra/runbook.md is one that exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from compose_file import INFRA, read_compose
from ray.scripts.scripts import cli as ray_command

from lotlip_platform.cli import _parser

RUNBOOK = (INFRA / "runbook.md").read_text()
DOCKER_COMPOSE = {"build", "exec", "logs", "ps", "run", "stop", "up"}


def commands() -> list[str]:
    """Lines of the blocks, and what stands in backticks."""
    text = re.sub(r"\s*\\\n\s*", " ", RUNBOOK)
    blocks = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    for fenced in re.findall(r"```\n(.*?)```", text, re.DOTALL):
        blocks += fenced.splitlines()
    prose = re.sub(r"```\n.*?```", "", text, flags=re.DOTALL)
    return blocks + [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", prose)]


def starting_with(program: str) -> list[str]:
    found = [re.sub(r"^\w+=\$\((.*)\)$", r"\1", command) for command in commands()]
    return sorted({each for each in found if each.startswith(f"{program} ")})


@pytest.mark.parametrize("command", starting_with("lotlip"))
def test_lotlip_has_the_command(command: str):
    words = shlex.split(re.sub(r"\bN\b", "1", command))
    assert callable(_parser().parse_args(words[1:]).run)


def test_the_commands_for_what_goes_wrong_are_told():
    told = " ".join(starting_with("lotlip"))
    for verb in ("jobs status", "jobs resume", "jobs stop", "gc", "track sync", "doctor"):
        assert f"lotlip {verb}" in told


@pytest.mark.parametrize("command", starting_with("ray"))
def test_ray_has_the_command_and_its_options(command: str):
    name, *arguments = shlex.split(command)[1:]
    verb = ray_command.commands[name]
    options = {option for parameter in verb.params for option in parameter.opts}
    assert {each for each in arguments if each.startswith("--")} <= options


@pytest.mark.parametrize("command", starting_with("docker compose"))
def test_the_services_of_a_docker_command_exist(command: str):
    words = [word for word in shlex.split(command.split("<")[0].split(">")[0])[2:] if word]
    if words[0] == "--profile":
        words = words[2:]
    assert words[0] in DOCKER_COMPOSE
    named = [word for word in words[1:] if not word.startswith("-")]
    if words[0] in ("exec", "run"):
        named = named[:1]
    assert set(named) <= read_compose()["services"].keys()


def test_files_that_are_named_exist():
    names = re.findall(r"`((?:aws|mlflow|image)/[\w.-]+|[\w-]+\.(?:yaml|json|py))`", RUNBOOK)
    links = re.findall(r"\]\(([\w./-]+)\)", RUNBOOK)
    assert len(names) >= 4
    assert [name for name in [*names, *links] if not (INFRA / name).exists()] == []


def test_lines_are_short_enough_to_read():
    assert [line for line in RUNBOOK.splitlines() if len(line) > 120] == []
    assert Path(INFRA / "runbook.md").stat().st_size < 20_000
