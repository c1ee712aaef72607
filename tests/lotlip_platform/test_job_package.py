import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lotlip.errors import ConfigError
from lotlip_platform import job_package
from lotlip_platform.job_package import make_package


def git(folder: Path, *arguments: str) -> None:
    command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository that is laid out as this one, with little in it."""
    root = tmp_path / "checkout"
    files = {
        "lotlip/__init__.py": "WHAT = 'science'\n",
        "platform/lotlip_platform/__init__.py": "",
        "platform/lotlip_platform/wiring.py": "import lotlip\nprint(lotlip.WHAT)\n",
        "jobs/configs/train/scenes.yaml": "name: scenes\n",
        "docs/figures/large.png": "not for jobs",
        ".gitignore": "*.secret\n",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def names(content: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def test_the_code_can_be_imported_from_one_folder_and_nothing_else_travels(
    checkout: Path, tmp_path: Path
) -> None:
    package = make_package(checkout)
    assert sorted(names(package.content)) == [
        "lotlip/__init__.py",
        "lotlip_platform/__init__.py",
        "lotlip_platform/configs/train/scenes.yaml",
        "lotlip_platform/wiring.py",
    ]
    zipfile.ZipFile(io.BytesIO(package.content)).extractall(tmp_path / "unpacked")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lotlip_platform.wiring"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "science\n"


def test_the_same_code_gives_the_same_bytes_at_any_time(checkout: Path) -> None:
    first = make_package(checkout)
    os.utime(checkout / "lotlip/__init__.py", (1e9, 1e9))
    second = make_package(checkout)
    assert first.digest == second.digest
    assert first.code_version == first.commit == second.code_version


def test_uncommitted_changes_travel_and_are_recorded(checkout: Path) -> None:
    (checkout / "lotlip/__init__.py").write_text("WHAT = 'changed'\n")
    (checkout / "docs/figures/large.png").write_text("changed, too")
    package = make_package(checkout)
    assert package.code_version == f"{package.commit}+changes"
    assert b"+WHAT = 'changed'" in package.changes
    assert b"large.png" not in package.changes
    assert "uncommitted changes" in package.told()[1]
    inside = zipfile.ZipFile(io.BytesIO(package.content))
    assert inside.read("lotlip/__init__.py") == b"WHAT = 'changed'\n"


def test_what_git_does_not_track_stays_behind_and_is_told_unless_it_is_ignored(
    checkout: Path,
) -> None:
    (checkout / "lotlip/new.py").write_text("")
    (checkout / "lotlip/key.secret").write_text("")
    package = make_package(checkout)
    assert package.untracked == ("lotlip/new.py",)
    assert package.told()[-1] == "without 1 files that git does not track: lotlip/new.py"
    assert "lotlip/new.py" not in names(package.content)


def test_a_deleted_file_does_not_travel(checkout: Path) -> None:
    (checkout / "platform/lotlip_platform/wiring.py").unlink()
    package = make_package(checkout)
    assert "lotlip_platform/wiring.py" not in names(package.content)
    assert package.changes


def test_a_package_above_rays_limit_is_told_with_its_largest_files(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "lotlip/weights.bin").write_bytes(os.urandom(2_000_000))
    git(checkout, "add", "-A")
    make_package(checkout).check_size()
    monkeypatch.setattr(job_package, "LIMIT_BYTES", 1_000_000)
    with pytest.raises(ConfigError) as told:
        make_package(checkout).check_size()
    assert "the package has 2 MB, Ray takes 1; largest: lotlip/weights.bin 2.0 MB" in str(
        told.value
    )


def test_the_limit_is_rays_own() -> None:
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    assert job_package.LIMIT_BYTES == DASHBOARD_CLIENT_MAX_SIZE


def test_a_link_is_refused_since_it_may_lead_anywhere(checkout: Path) -> None:
    (checkout / "lotlip/passwords").symlink_to("/etc/passwd")
    git(checkout, "add", "-A")
    with pytest.raises(ConfigError, match="lotlip/passwords is a link"):
        make_package(checkout)


def test_without_a_checkout_or_a_repository_it_says_what_to_do(
    tmp_path: Path, checkout: Path
) -> None:
    with pytest.raises(ConfigError, match="not installed from a checkout"):
        make_package(tmp_path / "nowhere")
    (checkout / ".git").rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"git ls-files failed: .*not a git repository"):
        make_package(checkout)


def test_this_repository_makes_a_package_that_ray_takes() -> None:
    package = make_package()
    package.check_size()
    assert "lotlip_platform/job_runner.py" in names(package.content)
    assert "lotlip_platform/configs/train/scenes.yaml" in names(package.content)
