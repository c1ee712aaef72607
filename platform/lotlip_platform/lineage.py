"""Where a result comes from: which code, with which libraries."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from lotlip_platform.job_environment import CODE, JOB


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
    of_checkout = f"{commit}{'+changes' if changed else ''}"
    return {
        # A job takes its code along, but not the repository.
        "code_version": os.environ.get(CODE) or of_checkout or version("lotlip-platform"),
        "lotlip_version": version("lotlip-platform"),
        "python_version": platform.python_version(),
        "torch_version": version("torch"),
        "ray_version": version("ray"),
        **({"job": os.environ[JOB]} if JOB in os.environ else {}),
    }
