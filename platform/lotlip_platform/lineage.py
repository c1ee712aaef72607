"""Where a result comes from: which code, with which libraries."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path


def code_tags() -> dict[str, str]:
    """Which code runs: the commit of a checkout (with `+changes` if it has any), and versions."""
    here = Path(__file__).parent
    has_git = shutil.which("git") is not None

    def git(*arguments: str) -> str:
        if not has_git:
            return ""
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    # Installed into a virtual environment, this file may lie in somebody else's repository.
    commit = git("ls-files", Path(__file__).name) and git("rev-parse", "HEAD")
    changed = commit and git("status", "--porcelain", "--untracked-files=no")
    return {
        "code_version": f"{commit}{'+changes' if changed else ''}" or version("lotlip-platform"),
        "lotlip_version": version("lotlip-platform"),
        "python_version": platform.python_version(),
        "torch_version": version("torch"),
        "ray_version": version("ray"),
    }
