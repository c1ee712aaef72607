"""Some faults around a run, as `make faults` does it with two hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_faults_change_nothing_of_what_a_run_learns() -> None:
    command = [sys.executable, str(RUN), "--faults", "2", "--seed", "46"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            told, log = process.communicate()
        finally:
            process.terminate()  # if the test is given up: it ends what it has started
    print(told, log[-5000:])
    assert process.returncode == 0, told[-2000:]
    # 6 damages in the data; the trainer process killed, and lies of S3, which may have met nothing.
    assert any(f"| faults | {count} in 1 runs" in told for count in (7, 8))
    assert "| hangs | 0 |" in told
    assert "| samples lost or doubled | 0 |" in told
    assert "| steps whose trace differs | 0 |" in told
