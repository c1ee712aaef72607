from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from lotlip_platform.lineage import code_tags


def test_a_checkout_is_named_by_its_commit() -> None:
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert re.fullmatch(rf"{commit}(\+changes)?", code_tags()["code_version"])


def test_without_git_the_version_of_the_package_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tags = code_tags()
    assert tags["code_version"] == tags["lotlip_version"] == "0.1.0"
