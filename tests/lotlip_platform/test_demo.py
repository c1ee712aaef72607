"""The demo on real parts, smaller than `make demo` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

LOTLIP = str(Path(sys.executable).with_name("lotlip"))


def lotlip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LOTLIP, *arguments], capture_output=True, text=True, timeout=280)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_tells_the_whole_story_and_a_second_run_reuses_it(tmp_path: Path):
    home = Path(os.environ["LOTLIP_HOME"])
    try:
        first = lotlip("demo", "--samples", "1280")
        assert first.returncode == 0, first.stderr
        for title in ("LoTLIP, m = 2", "short captions only", "m = 0, long weighted 3x"):
            assert title in first.stdout
        for name in ("samples", "arms", "search"):
            with Image.open(home / "demo" / f"{name}.png") as picture:
                assert picture.width > 500
        assert first.stderr.count("run ") == 3
        second = lotlip("demo", "--samples", "1280")
        assert second.returncode == 0, second.stderr
        assert second.stderr.count("is done: nothing to train") == 3
        found = lotlip(
            *("search", "models:/lotlip@candidate", "s3://lotlip/demo-1280/test"),
            *("--text", "A red castle.", "--out", str(tmp_path / "found.png")),
        )
        assert found.returncode == 0, found.stderr
        assert len(found.stdout.splitlines()) == 2 + 8  # the table's head and the best eight
    finally:
        ended = lotlip("down")
    assert ended.stdout.strip() == "ended: s3, mlflow, ray"
