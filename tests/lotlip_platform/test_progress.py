from __future__ import annotations

import re

import pytest

from lotlip.evaluate.retrieval import Interval
from lotlip_platform import progress
from lotlip_platform.progress import Bar, TrainDisplay, bar

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture) -> list[str]:
    """The lines on stderr since the last look; nothing may be on stdout."""
    out, error = capsys.readouterr()
    assert out == ""
    return [line.rstrip() for line in error.splitlines()]


def test_a_bar_in_a_pipe_is_one_line_at_the_end_of_short_work(capsys: Capture) -> None:
    with bar("scenes", "sample") as shown:
        for done in range(0, 2001, 100):
            shown.show(done, 2000)
        shown.show(2000, 2000)
    assert told(capsys) == ["scenes: 2,000/2,000 samples"]


def test_a_bar_in_a_pipe_tells_now_and_then_how_long_it_will_take(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = Bar("check", "sample")
    for step in range(9):
        now = 100.0 + 5 * step
        shown.show(100 + step, 110, "fine")
    # What was done when it was shown first, as after a resume, says nothing about the speed.
    assert told(capsys) == [
        "check: 104/110 samples, 30 s left  fine",
        "check: 108/110 samples, 10 s left  fine",
    ]
    shown.show(110, 110)
    shown.close()
    assert told(capsys) == ["check: 110/110 samples"]


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> TrainDisplay:
    """A display that tells every step at once."""
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)
    return TrainDisplay("LoTLIP", 20)


def test_a_display_of_training_tells_steps_with_the_speed_last_measured(
    display: TrainDisplay, capsys: Capture
) -> None:
    display({"kind": "step", "step": 1, "loss": 3.4567})
    display(
        {
            "kind": "metrics",
            "step": 1,
            "values": {"train/samples_per_s": 123.4, "train/data_wait_share": 0.25},
        }
    )
    display({"kind": "metrics", "step": 1, "values": {"system/cpu": 0.5}})
    display({"kind": "step", "step": 2, "loss": 3.0})
    display.close()
    first, second = told(capsys)
    assert first == "LoTLIP: 1/20 steps  loss 3.457"
    assert re.fullmatch(
        r"LoTLIP: 2/20 steps, \d+ s left  loss 3\.000  123 samples/s  data wait 25%", second
    )


def test_a_display_of_training_tells_what_else_happens(
    display: TrainDisplay, capsys: Capture
) -> None:
    metrics = {
        "short_text_to_image_r1": Interval(0.5, 0.4, 0.6),
        "short_text_to_image_r5": Interval(0.9, 0.8, 1.0),
        "class_zero_shot_top1": Interval(0.123, 0.1, 0.2),
    }
    bad = {"shard": "shard-000001.tar", "index": 7, "reason": "image does not decode"}
    display({"kind": "features", "done": 10, "total": 10})
    display({"kind": "started", "folder": "s3://b/runs/one"})
    display({"kind": "evaluated", "step": 10, "metrics": metrics})
    display({"kind": "bad", "samples": [bad, {**bad, "index": 9}]})
    display({"kind": "note", "text": "resuming at step 10 of 20"})
    display({"kind": "beat"})  # of no interest to a person
    assert told(capsys) == [
        "image features: 10/10 samples",
        "s3://b/runs/one; waiting for workers",
        "step 10: short_text_to_image_r1 50.0  class_zero_shot_top1 12.3",
        "bad sample shard-000001.tar[7]: image does not decode",
        "bad sample shard-000001.tar[9]: image does not decode",
        "resuming at step 10 of 20",
    ]
