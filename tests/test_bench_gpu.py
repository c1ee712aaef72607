"""`make bench-gpu` as far as it goes without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"


def bench(*arguments: str, device: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=os.environ | {"BENCH_DEVICE": device},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_training_is_measured_and_reported(tmp_path: Path) -> None:
    report = tmp_path / "benchmarks-gpu.md"
    size = "--preset tiny --batch 16 --steps 12 --loaders 1"
    done = bench(*size.split(), "--report", str(report), device="cpu")
    assert done.returncode == 0, done.stderr
    cells = [line.split(" | ") for line in report.read_text().split("\n") if line.startswith("|")]
    lines = {cell[0].strip("| "): cell[1] for cell in cells[2:]}
    assert set(lines) == {"images/s", "text tokens/s", "TFLOP/s", "MFU", "waiting for data"}
    assert float(lines["images/s"].replace(",", "")) > 0
    assert 0 <= float(lines["waiting for data"].rstrip("%")) <= 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = bench(device="cuda")
    assert done.returncode == 1
    assert "torch sees no GPU here" in done.stderr
