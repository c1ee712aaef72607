"""Twenty faults around a run, as `make faults` does it with two hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_faults_change_nothing_of_what_a_run_learns() -> None:
    command = [sys.executable, str(RUN), "--faults", "20", "--seed", "20"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr[-5000:])
    assert done.returncode == 0, done.stdout[-2000:]
    # 6 damages in the data, and 20 others; the last of S3's may have met nothing.
    assert any(f"| faults | {count} in 1 runs" in done.stdout for count in (25, 26))
    assert "| hangs | 0 |" in done.stdout
    assert "| samples lost or doubled | 0 |" in done.stdout
    assert "| steps whose trace differs | 0 |" in done.stdout
