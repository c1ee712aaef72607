"""What the workers of a run tell its driver, and where the driver passes it on.

Only the driver talks to MLflow, so an outage of it touches neither workers nor training. An event
is a dictionary with a `kind`: `scenes`, `features`, `started`, `born`, `beat`, `step`, `metrics`,
`evaluated`, `saved`, `faults`, `stopped`, `bad`, `file`, `note` or `ended`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lotlip.errors import DataError
from lotlip.evaluate.figures import curves
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.mailbox import Event
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.run_metrics import RunMetrics
from lotlip_platform.tracked_run import TrackedRun
from lotlip_platform.train_config import TrainConfig
from lotlip_platform.workers import Workers

Watch = Callable[[Event], None]
"""Sees every event; for a display."""


class Listener:
    """Passes on what the workers tell: to MLflow, and to whoever watches."""

    def __init__(
        self, folder: RunFolder, tracked: TrackedRun, watch: Watch, limits: ClusterConfig
    ) -> None:
        self._folder, self._tracked, self._watch = folder, tracked, watch
        self._limits = limits
        self._metrics = RunMetrics(folder.uri.rpartition("/")[2])
        self._bad: dict[tuple[int, str, int], dict[str, Any]] = {}
        self.start_life()

    def start_life(self) -> None:
        """The workers are about to be started."""
        self.workers = Workers(self._limits)
        self.is_training = False
        self.stopped_at: int | None = None
        """The step at which they saved and ended, as they had been told to."""

    def note(self, text: str) -> None:
        self._watch({"kind": "note", "text": text})

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            self._metrics.take(event)
            if event["kind"] == "metrics":
                self._tracked.log_metrics(event["values"], event["step"], time_ms=event["time_ms"])
            elif event["kind"] == "file":
                self._tracked.log_file(event["name"], event["content"])
            elif event["kind"] in ("born", "beat", "ended"):
                self.workers.take(event)
            elif event["kind"] == "step":
                self.is_training = True
            elif event["kind"] == "stopped":
                self.stopped_at = event["step"]
            elif event["kind"] == "bad":
                self._bad |= {_place(sample): sample for sample in event["samples"]}
            self._watch(event)

    def record_bad_samples(self) -> None:
        """Write the list of bad samples, over all lives of the run; due however it ends."""
        # Steps that are trained again after a failure meet their bad samples again.
        found = {_place(sample): sample for sample in self._folder.read_bad_samples()} | self._bad
        content = self._folder.write_bad_samples(found[place] for place in sorted(found))
        self._tracked.log_file("bad_samples.jsonl", content)

    def check_ledger(self) -> None:
        """Raises: DataError unless read = used + recorded as bad, at the end of training."""
        ledger = (self._folder.read_result() or {}).get("samples", {})
        recorded = len(self._folder.read_bad_samples())
        if ledger and ledger["read"] != ledger["used"] + recorded:
            raise DataError(
                f"{self._folder.uri}: of {ledger['read']} samples read, {ledger['used']} were used "
                f"and {recorded} are recorded as bad; something was lost, please report this"
            )

    def draw_curves(self, config: TrainConfig) -> None:
        """Once training is done."""
        measured = self._folder.read_metrics()

        def history(name: str) -> list[tuple[float, float]]:
            return [(m["step"], m["values"][name]) for m in measured if name in m["values"]]

        recall = {
            name: history(f"eval/{config.eval.benchmark}/{name}")
            for name in ("long_text_to_image_r1", "short_text_to_image_r1")
        }
        panels = {"loss": {"train/loss": history("train/loss")}, "recall@1": recall}
        figure = curves(panels, xlabel="step", title=config.name)
        self._tracked.log_file("figures/curves.png", figure)


def _place(sample: dict[str, Any]) -> tuple[int, str, int]:
    return sample["epoch"], sample["shard"], sample["index"]
