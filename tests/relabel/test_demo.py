"""`make relabel-demo` in small, with a sweep over the captioners behind it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).with_name("demo.py")
LOTLIP = (sys.executable, "-P", "-m", "lotlip_platform")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_killed_and_gone_on_with_each_scene_has_its_captions_and_a_sweep_chooses_among_them():
    try:
        done = subprocess.run(
            [sys.executable, str(DEMO), "--scenes", "240", "--sweep"],
            capture_output=True,
            text=True,
            timeout=580,
        )
    finally:
        subprocess.run([*LOTLIP, "down"], capture_output=True, timeout=60)
    print(done.stdout, done.stderr[-5000:])
    assert done.returncode == 0
    assert "WRONG" not in done.stdout
    assert re.search(r"captions by the server +240\n", done.stdout)
    assert re.search(r"kill -9, after 1\d\d questions", done.stdout)
    assert "2 finished" in done.stderr or "2 trials" in done.stdout
