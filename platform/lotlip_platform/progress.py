"""How long work is shown: bars in a terminal, a line now and then in a pipe or a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from lotlip_platform.interrupts import heed_interrupts

_LINE_EVERY_S = 15.0


def say(text: str, file: TextIO | None = None) -> None:
    """A line for the person at the terminal; standard output is kept for answers."""
    tqdm.write(text, file=file or sys.stderr)


class Bar:
    """Done and total of one piece of work."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._live = sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._told = time.monotonic()
        self._done = False
        self._began: tuple[float, int] | None = None

    def show(self, done: int, total: int, note: str = "") -> None:
        """Bring the display up to date. A `total` of 0 is not known.

        Raises: KeyboardInterrupt, see `interrupts`.
        """
        heed_interrupts()
        if self._began is None:
            self._began = time.monotonic(), done
        if self._live:
            if self._bar is None:
                self._bar = tqdm(
                    total=total or None, initial=done, desc=self._title, unit=f" {self._unit}"
                )
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        is_done = 0 < total <= done
        if time.monotonic() - self._told > _LINE_EVERY_S or (is_done and not self._done):
            self._told, self._done = time.monotonic(), is_done
            of = f"/{total:,}" if total else ""
            say(f"{self._title}: {done:,}{of} {self._unit}s{self._left(done, total)}  {note}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _left(self, done: int, total: int) -> str:
        assert self._began is not None
        start, at_start = self._began
        if done <= at_start or done >= total:  # or it isn't known
            return ""
        seconds = (time.monotonic() - start) * (total - done) / (done - at_start)
        return f", {seconds:.0f} s left"


@contextmanager
def bar(title: str, unit: str) -> Iterator[Bar]:
    shown = Bar(title, unit)
    try:
        yield shown
    finally:
        shown.close()


class Bars:
    """A bar for each kind of work, one after another."""

    def __init__(self) -> None:
        self._title, self._bar = "", Bar("", "")

    def show(self, title: str, done: int, total: int) -> None:
        if title != self._title:
            self._bar.close()
            self._title, self._bar = title, Bar(title, "item")
        self._bar.show(done, total)

    def close(self) -> None:
        self._bar.close()


def preparing() -> dict[str, Bar]:
    """What a run may make before it trains, by the kind of event that tells of it."""
    return {"scenes": Bar("scenes", "sample"), "features": Bar("image features", "sample")}


class TrainDisplay:
    """Shows what `lotlip_platform.train` tells."""

    def __init__(self, name: str, num_steps: int) -> None:
        self._bar = Bar(name, "step")
        self._num_steps = num_steps
        self._speed = ""
        self._preparing = preparing()

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "step":
            self._bar.show(event["step"], self._num_steps, f"loss {event['loss']:.3f}{self._speed}")
        elif kind in self._preparing:
            self._preparing[kind].show(event["done"], event["total"])
        elif kind == "metrics":
            values = event["values"]
            if "train/samples_per_s" in values:
                self._speed = (
                    f"  {values['train/samples_per_s']:.0f} samples/s"
                    f"  data wait {values['train/data_wait_share']:.0%}"
                )
        elif kind == "evaluated":
            metrics = event["metrics"]
            shown = [name for name in metrics if name.endswith(("_r1", "top1"))]
            values = "  ".join(f"{name} {100 * metrics[name].value:.1f}" for name in shown)
            say(f"step {event['step']}: {values}")
        elif kind == "bad":
            for bad in event["samples"]:
                say(f"bad sample {bad['shard']}[{bad['index']}]: {bad['reason']}")
        elif kind == "started":
            for shown in self._preparing.values():
                shown.close()
            say(f"{event['folder']}; waiting for workers")
        elif kind == "note":
            say(event["text"])

    def close(self) -> None:
        self._bar.close()


class SweepDisplay:
    """Shows what `lotlip_platform.sweep` tells."""

    def __init__(self, name: str) -> None:
        self._bar = Bar(name, "sample")
        self._preparing = preparing()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] in self._preparing:
            self._preparing[event["kind"]].show(event["done"], event["total"])
        elif event["kind"] == "progress":
            ends = (f"{event[status]} {status}" for status in ("finished", "stopped", "failed"))
            self._bar.show(event["done"], event["total"], ", ".join(ends))
        elif event["kind"] == "trial":
            trial = event["trial"]
            if event["status"] != "running":
                why = f": {trial.error}" if trial.error else ""
                say(f"{trial.label}, seed {trial.seed}: {event['status']}{why}")
        elif event["kind"] == "note":
            trial = event.get("trial")
            say(f"{trial.name}: {event['text']}" if trial else event["text"])

    def close(self) -> None:
        for shown in self._preparing.values():
            shown.close()
        self._bar.close()


class RelabelDisplay:
    """Shows what `lotlip_platform.relabel` tells."""

    def __init__(self, name: str) -> None:
        self._bar = Bar(name, "caption")

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "captioned":
            self._bar.show(event["done"], event["total"], event["note"])
        elif event["kind"] == "started":
            say(f"{event['folder']}; waiting for workers")
        elif event["kind"] == "note":
            say(event["text"])

    def close(self) -> None:
        self._bar.close()
