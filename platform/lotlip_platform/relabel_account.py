"""What captioning takes: time, tokens, GPU hours, money."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lotlip.data.manifest import Manifest
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_folder import Tally

_METRICS_EVERY_S = 10.0
_HOUR_S = 3600.0
_MILLION = 1e6


class Account:
    """The running account of a relabelling."""

    def __init__(self, config: RelabelConfig, manifest: Manifest, before: Sequence[Tally]) -> None:
        """`before` is what shards took that are committed already."""
        self._config = config
        self._num_workers = min(config.cluster.num_workers, len(manifest.shards))
        self._total = manifest.num_samples * config.prompts.per_sample
        self._before = sum(before, Tally())
        self._now = Tally()
        self._num_errors = self._num_known = 0
        self._began_s = self._told_s = time.monotonic()
        self._has_begun = False
        self._since = 0
        self._lock = threading.Lock()  # two threads tell

    @property
    def num_answers(self) -> int:
        """Captions that were given, in all lives of the run as far as is known."""
        return self._before.num_answers + self._num_known + self._now.num_answers

    def take(self, event: Mapping[str, Any]) -> None:
        """What a worker told."""
        values = dict(event)
        if not self._has_begun:  # until now workers were started
            self._began_s = self._told_s = time.monotonic()
            self._has_begun = True
        with self._lock:
            self._num_errors += int(values.pop("num_errors", 0))
            self._num_known += int(values.pop("num_known", 0))
            self._now += Tally(**values)

    def take_shard(self, tally: Tally) -> None:
        """Of a shard that is committed; its answers were told as they came."""
        told = Tally(
            num_samples=tally.num_samples,
            num_captions=tally.num_captions,
            num_dropped=tally.num_dropped,
            num_unusable=tally.num_unusable,
            worker_s=tally.worker_s,
        )
        with self._lock:
            self._now += told

    def progress(self) -> dict[str, Any]:
        """For a display."""
        seconds = max(time.monotonic() - self._began_s, 1e-9)
        per_s, tokens = self._now.num_answers / seconds, self._now.output_tokens / seconds
        note = f"{per_s:.1f} captions/s  {tokens:.0f} tokens/s"
        if cost := self._cost(self._now, seconds * self._gpus()):
            of_million = cost / max(self._now.num_answers, 1) * _MILLION
            note += f"  {cost:.2f} so far, {of_million:,.0f} a million"
        if self._num_errors:
            note += f"  {self._num_errors} without answer"
        done = min(self.num_answers, self._total)
        return {"done": done, "total": self._total, "note": note}

    def due_metrics(self) -> dict[str, float]:
        """For MLflow; empty if the last are not old enough."""
        now = time.monotonic()
        seconds, number = now - self._told_s, self._now.num_answers - self._since
        if seconds < _METRICS_EVERY_S or not number:
            return {}
        self._told_s, self._since = now, self._now.num_answers
        since_start = now - self._began_s
        return {
            "relabel/captions_per_s": number / seconds,
            "relabel/tokens_per_s": self._now.output_tokens / since_start,
            "relabel/num_answers": self.num_answers,
            "relabel/num_without_answer": self._num_errors,
        }

    def totals(self) -> dict[str, float]:
        """Of all that is committed, over all lives of the run."""
        tally = self._before
        gpu_s = tally.worker_s * (self._gpus() / self._num_workers)
        cost, number = self._cost(tally, gpu_s), max(tally.num_captions, 1)
        return {
            "relabel/num_samples": tally.num_samples,
            "relabel/num_captions": tally.num_captions,
            "relabel/num_dropped": tally.num_dropped,
            "relabel/num_unusable": tally.num_unusable,
            "relabel/num_attempts": tally.num_attempts,
            "relabel/input_tokens": tally.input_tokens,
            "relabel/output_tokens": tally.output_tokens,
            "relabel/captions_per_worker_s": tally.num_captions / max(tally.worker_s, 1e-9),
            "relabel/gpu_hours": gpu_s / _HOUR_S,
            "relabel/gpu_hours_per_million": gpu_s / _HOUR_S / number * _MILLION,
            "relabel/cost": cost,
            "relabel/cost_per_million": cost / number * _MILLION,
        }

    def _gpus(self) -> float:
        """In use all the time."""
        engine = self._config.captioner.vllm.engine
        of_engine = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
        of_worker = self._config.cluster.gpus_per_worker * of_engine
        return self._num_workers * of_worker + self._config.account.num_endpoint_gpus

    def _cost(self, tally: Tally, gpu_s: float) -> float:
        prices = self._config.account
        return (
            gpu_s / _HOUR_S * prices.price_per_gpu_hour
            + tally.input_tokens / _MILLION * prices.price_per_million_input_tokens
            + tally.output_tokens / _MILLION * prices.price_per_million_output_tokens
        )
