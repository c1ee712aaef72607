"""infra/compose.yaml against the Compose specification, and what must be true of it."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_file import INFRA, read_compose, variables_of
from compose_spec import PyCompose

Service = dict[str, Any]
ONE_SHOT = {"buckets", "accounts"}
STARTS_AS_ROOT = {"s3", "postgres"}
"""Images that give a folder to their own user first, and then become it."""


@pytest.fixture
def services() -> dict[str, Service]:
    return read_compose()["services"]


def dependencies(service: Service) -> dict[str, str]:
    return {name: each["condition"] for name, each in service.get("depends_on", {}).items()}


def secrets_of(service: Service) -> set[str]:
    return {
        each if isinstance(each, str) else each["source"] for each in service.get("secrets", [])
    }


@pytest.mark.parametrize("path", [(), ("services", "mlflow"), ("services", "s3", "healthcheck")])
def test_a_mistyped_key_is_refused(path: tuple[str, ...]):
    compose = read_compose()
    group = compose
    for name in path:
        group = group[name]
    group["volums"] = []
    with pytest.raises(ValueError, match="volums"):
        PyCompose.from_yaml(yaml.safe_dump(compose))


def test_all_that_was_asked_for_is_there(services: dict[str, Service]):
    always = {name for name, service in services.items() if "profiles" not in service}
    assert always == {
        *("s3", "buckets", "postgres", "mlflow", "accounts"),
        *("ray-head", "ray-worker"),
    }
    assert services.keys() - always == {"prometheus", "grafana"}


def test_ports_are_published_on_this_machine_only(services: dict[str, Service]):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 6
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
    assert not any("network_mode" in service for service in services.values())


def test_images_are_pinned_and_ours_has_the_version_of_the_package(services: dict[str, Service]):
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), name
    project = (INFRA.parent / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert version
    ours = {name: each["image"] for name, each in services.items() if "build" in each}
    assert ours.keys() == {"buckets", "mlflow", "accounts", "ray-head", "ray-worker"}
    assert set(ours.values()) == {f"lotlip:{version[1]}-cpu"}


def test_no_secret_is_in_the_file_and_each_is_a_file_that_git_ignores():
    compose = read_compose()
    for name, service in compose["services"].items():
        for variable, text in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY", variable):
                assert str(text).startswith("/run/secrets/"), f"{name}: {variable}"
    assert not re.search(r"://\w+:\w+@", (INFRA / "compose.yaml").read_text())
    declared = compose["secrets"]
    used = set().union(*(secrets_of(service) for service in compose["services"].values()))
    assert used == declared.keys()
    for name, secret in declared.items():
        assert secret["file"] == f"./secrets/{name}"
    ignored = subprocess.run(
        ["git", "check-ignore", "infra/secrets/postgres", "infra/.env"],
        cwd=INFRA.parent,
        capture_output=True,
        text=True,
    )
    assert ignored.stdout.split() == ["infra/secrets/postgres", "infra/.env"]


def test_nobody_gets_a_secret_that_is_not_for_them(services: dict[str, Service]):
    admins = {
        name
        for name, service in services.items()
        if secrets_of(service) & {"s3_admin", "mlflow_admin", "postgres"}
    }
    assert admins == {"buckets", "mlflow", "accounts", "postgres"}
    for name in ("ray-head", "ray-worker"):
        assert secrets_of(services[name]) == {"ray_token", "s3_lotlip", "mlflow_user"}


def test_what_is_waited_for_is_there_and_can_be_found_healthy(services: dict[str, Service]):
    for name, service in services.items():
        for other, condition in dependencies(service).items():
            if condition == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"
                assert other not in ONE_SHOT
            else:
                assert condition == "service_completed_successfully"
                assert other in ONE_SHOT
    for name in ONE_SHOT:
        assert services[name]["restart"] == "no"
    assert services.keys() - ONE_SHOT == {
        name for name, service in services.items() if "healthcheck" in service
    }


def test_containers_can_do_no_more_than_they_need(services: dict[str, Service]):
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert "privileged" not in service, name
        # Without it Docker keeps everything that was ever printed.
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
    assert {name for name, service in services.items() if "cap_add" in service} == STARTS_AS_ROOT


def test_ray_asks_for_a_token_and_its_head_takes_no_tasks(services: dict[str, Service]):
    for name in ("ray-head", "ray-worker"):
        service = services[name]
        environment = service["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert service["stop_grace_period"] == "2m"
        # Time to save is left before Docker kills.
        assert float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < 120
        assert "shm_size" in service
        assert "--block" in service["command"]
    assert "--num-cpus=0" in services["ray-head"]["command"]
    assert services["ray-worker"]["deploy"]["replicas"] == 2


def test_files_of_the_repository_that_are_mounted_exist():
    compose = read_compose()
    mounted = [each["file"] for each in compose["configs"].values()]
    for service in compose["services"].values():
        mounted += [
            volume.split(":")[0]
            for volume in service.get("volumes", [])
            if isinstance(volume, str) and volume.startswith(".")
        ]
        if "build" in service:
            build = service["build"]
            context = (INFRA / build["context"]).resolve()
            assert (context / build["dockerfile"]).exists()
    assert len(mounted) == 6
    assert [path for path in mounted if not (INFRA / path).exists()] == []


def test_the_example_sets_variables_that_exist_to_their_defaults():
    defaults = variables_of()
    lines = (INFRA / "compose.env.example").read_text().splitlines()
    told = dict(re.findall(r"^(?:# )?([A-Z_0-9]+)=(.*)$", "\n".join(lines), re.MULTILINE))
    assert told == defaults


def test_the_file_for_gpus_changes_services_that_exist(services: dict[str, Service]):
    gpus = read_compose("compose.gpu.yaml")["services"]
    assert gpus.keys() <= services.keys()
    (device,) = gpus["ray-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def new_secrets(folder: Path, *arguments: str) -> list[str]:
    command = [sys.executable, str(INFRA / "new_secrets.py"), "--folder", str(folder), *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [Path(line.removeprefix("made ")).name for line in printed.splitlines()]


def test_new_secrets_makes_what_the_file_names_once_and_renews_what_it_is_told(tmp_path: Path):
    folder = tmp_path / "secrets"
    made = new_secrets(folder)
    assert set(made) == {*read_compose()["secrets"], "client.env"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert before.keys() == set(made)
    assert new_secrets(folder) == ["client.env"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    renewed = new_secrets(folder, "--renew", "ray_token", "--renew", "s3")
    after = {path.name: path.read_text() for path in folder.iterdir()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == set(renewed) - {"client.env"}
    assert changed == {"ray_token", "s3_users.json", "s3_admin", "s3_lotlip", "s3_mlflow"}


def test_the_store_knows_the_keys_of_its_users_and_lets_each_into_its_own_bucket(tmp_path: Path):
    folder = tmp_path / "secrets"
    new_secrets(folder)
    for user in json.loads((folder / "s3_users.json").read_text())["identities"]:
        parser = ConfigParser()
        parser.read(folder / f"s3_{user['name']}")
        (credentials,) = user["credentials"]
        assert dict(parser["default"]) == {
            "aws_access_key_id": credentials["accessKey"],
            "aws_secret_access_key": credentials["secretKey"],
        }
        if user["name"] == "admin":
            assert "Admin" in user["actions"]
        else:
            assert {action.partition(":")[2] for action in user["actions"]} == {user["name"]}


def test_the_settings_for_clients_are_what_a_shell_reads(tmp_path: Path):
    folder = tmp_path / "secrets"
    new_secrets(folder)
    script = f"set -a; . {folder}/client.env; set +a; env"
    shell = subprocess.run(["sh", "-c", script], env={}, capture_output=True, text=True, check=True)
    told = dict(line.split("=", 1) for line in shell.stdout.splitlines())
    assert Path(told["RAY_AUTH_TOKEN_PATH"]).read_text() == (folder / "ray_token").read_text()
    assert told["MLFLOW_TRACKING_PASSWORD"] in (folder / "mlflow_user").read_text()
    ports = {
        service: compose["ports"][0].split(":")[1]
        for service, compose in read_compose()["services"].items()
        if "ports" in compose
    }
    for variable, service in {
        "AWS_ENDPOINT_URL": "s3",
        "MLFLOW_TRACKING_URI": "mlflow",
        "RAY_API_SERVER_ADDRESS": "ray-head",
    }.items():
        assert told[variable] == f"http://127.0.0.1:{ports[service]}"
