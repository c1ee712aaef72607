"""The repository as a newcomer meets it: the name trap, the wheel, the README's commands."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

IN_A_RAY_WORKER = """
import ray

@ray.remote
def system():
    import platform, lotlip_platform
    return platform.system(), platform.__file__

ray.init(
    address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
    runtime_env={"working_dir": ".", "env_vars": {"PYTHONPATH": "platform"}},
)
print(ray.get(system.remote()))
"""


def output(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_in_the_root_sees_the_standard_platform_module():
    assert output("-c", "import platform; print(platform.system())").strip() == "Linux"


def test_pytest_as_a_module_in_the_root_sees_the_standard_platform_module():
    assert "pytest" in output("-m", "pytest", "--version")


def test_a_ray_worker_with_the_root_as_its_working_folder_sees_the_standard_platform_module():
    system, file = re.findall(r"'([^']+)'", output("-c", IN_A_RAY_WORKER))[-2:]
    assert system == "Linux"
    assert not file.startswith(str(ROOT))
    assert "lib/python" in file


@pytest.mark.parametrize("folder", ["platform", "tests/platform"])
def test_nothing_shadows_the_standard_platform_module(folder: str):
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    output("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> list[str]:
    """The names in the wheel."""
    return zipfile.ZipFile(wheel_file).namelist()


def test_the_wheel_holds_both_packages_and_what_they_need(wheel: list[str]):
    needed = {
        "lotlip/__init__.py",
        "lotlip/assets/scenes-image-tower/model.safetensors",
        "lotlip_platform/cli.py",
        "lotlip_platform/configs/train/scenes.yaml",
    }
    assert needed <= set(wheel)


def test_the_wheel_holds_no_platform_and_no_tests(wheel: list[str]):
    tops = {name.split("/")[0] for name in wheel if ".dist-info" not in name}
    assert tops == {"lotlip", "lotlip_platform"}


def test_the_installed_wheel_gives_a_command_that_works_anywhere(wheel_file: Path, tmp_path: Path):
    site = tmp_path / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site))
    output(*pip, str(wheel_file))

    def lotlip(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(site / "bin" / "lotlip"), *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    told = lotlip("train", "train/scenes", "train.lr=1").stderr
    assert told.startswith("lotlip: unknown key train.lr"), told
    made = lotlip("data", "scenes", "made", "--samples", "4")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "made" / "manifest.json").exists()
    told = subprocess.run(
        [sys.executable, "-c", "import lotlip, lotlip_platform as p; print(lotlip, p)"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    ).stdout
    assert told.count(str(site)) == 2, told


def test_every_make_command_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = set(
        re.findall(r"(?:^    |`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_path_in_the_readmes_map_exists():
    readme = (ROOT / "README.md").read_text()
    paths = re.findall(r"`((?:lotlip|platform|jobs|infra|tests|docs)/[\w./-]+)`", readme)
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_key_of_the_config_says_what_it_does():
    undocumented = []
    for path in [*(ROOT / "lotlip").rglob("*.py"), *(ROOT / "platform").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                if node.name in ("TrainConfig", "SceneTowerConfig"):
                    continue  # its groups tell for themselves; not a config of the command line
                followed = zip(node.body, [*node.body[1:], None], strict=True)
                undocumented += [
                    f"{node.name}.{ast.unparse(field.target)}"
                    for field, after in followed
                    if isinstance(field, ast.AnnAssign)
                    and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
                ]
    assert undocumented == []
