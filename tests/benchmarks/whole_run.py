"""A run with all that belongs to it against the loop alone: Ray Train, MLflow, journal, trace."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import survival
from loading import BATCH, NUM_SAMPLES, Scenes
from measuring import Row
from servers import MlflowServer

from lotlip.images import AugmentConfig
from lotlip.model import PRESETS, LoTLIP
from lotlip_platform.config import build_config
from lotlip_platform.train import train
from lotlip_platform.train_config import TrainConfig

EPOCHS, SKIPPED = 3, 4


def row(scenes: Scenes) -> Row:
    """One worker; seconds as they pass, of 1024 samples, once the first steps are over."""
    before, ours, after = (of(scenes) for of in (bare, as_a_run, bare))
    return Row(
        what="a run of one worker, preset small: Ray Train, MLflow, journal and trace, between "
        f"saves; wall seconds of {NUM_SAMPLES} samples",
        yardstick="the same loop, bare, in a process; the mean of a run before and one after",
        ours_s=ours,
        theirs_s=(before + after) / 2,
        goal=">= 0.98x",
    )


def bare(scenes: Scenes) -> float:
    config = PRESETS["small"]
    tokenizer = scenes.tokenizer(config)
    source = scenes.source(tokenizer, AugmentConfig())
    steps = survival.steps(LoTLIP(config, tokenizer), source, EPOCHS * NUM_SAMPLES)
    return steady([step.step_s for step in steps])


def as_a_run(scenes: Scenes) -> float:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as uri:
        config = {
            "name": "bench",
            "store": f"{folder}/runs",
            "model": {"preset": "small"},
            "data": {
                "train": scenes.store.uri,
                "order": {"num_streams": 4, "shuffle_window": 256},
            },
            "train": {
                "num_samples": EPOCHS * NUM_SAMPLES,
                "global_batch": BATCH,
                "log_every_steps": 1,
                "trace": True,
            },
            "tracking": {"uri": uri, "registered_model": ""},
        }
        samples_per_s: list[float] = []
        train(build_config(TrainConfig, config), listening(samples_per_s))
    return steady([BATCH / speed for speed in samples_per_s])


def listening(samples_per_s: list[float]) -> Callable[[dict[str, Any]], None]:
    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "metrics" and "train/samples_per_s" in event["values"]:
            samples_per_s.append(event["values"]["train/samples_per_s"])

    return listen


def steady(step_s: list[float]) -> float:
    """Of as many steps as make NUM_SAMPLES samples."""
    assert len(step_s) == EPOCHS * NUM_SAMPLES // BATCH
    return statistics.median(step_s[SKIPPED:]) * NUM_SAMPLES / BATCH


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """An MLflow server, and a home of their own for journals."""
    server = MlflowServer(folder)
    try:
        server.wait_until_it_answers()
        with mock.patch.dict(os.environ, {"LOTLIP_HOME": str(folder / "home")}):
            yield server.url
    finally:
        server.end()
