"""What is told of the steps between two logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lotlip.data.store import FolderStore
from lotlip.train.loop import Step
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.step_log import Meter, Records


def step(number: int, flops: float) -> Step:
    return Step(
        step=number,
        epoch=0,
        loss=1.0,
        mean_loss=1.5,
        scale=14.0,
        lr=1e-3,
        grad_norm=0.5,
        num_samples=8,
        num_tokens=100,
        flops=flops,
        data_wait_s=0.1,
        own_s=0.2,
        step_s=0.5,
        bad=(),
        num_skipped=0,
        trace=(),
        store_faults=0,
        to_stop=False,
    )


@pytest.mark.parametrize("peak_flops", [0.0, 4e12])
def test_speed_and_the_share_of_the_peak_are_those_since_the_last_log(tmp_path: Path, peak_flops):
    events: list[dict[str, Any]] = []
    records = Records(RunFolder(FolderStore(tmp_path)), "nobody", events.append)
    meter = Meter(events.append, records, peak_flops)
    for number in (1, 2):
        meter.take(step(number, flops=1e12))
    meter.log(step(2, flops=1e12))
    values = events[-1]["values"]
    assert values["train/worker_tflops_per_s"] == pytest.approx(2.0)
    assert values["train/samples_per_s"] == pytest.approx(16.0)
    assert values["train/tokens_per_s"] == pytest.approx(200.0)
    assert values["train/data_wait_share"] == pytest.approx(0.2)
    assert values["train/loss"] == 1.5
    assert values.get("train/mfu") == (pytest.approx(0.5) if peak_flops else None)
    meter.take(step(3, flops=5e11))
    meter.log(step(3, flops=5e11))
    assert events[-1]["values"]["train/worker_tflops_per_s"] == pytest.approx(1.0)
