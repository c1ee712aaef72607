"""The actors that caption, each a shard at a time, as a pool of Ray Data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from lotlip.data.manifest import Shard, to_shard
from lotlip.errors import ClusterError
from lotlip.relabel.asking import Captioner
from lotlip_platform.captioners import captioner_of
from lotlip_platform.cluster import store_environment
from lotlip_platform.endpoint import KEY
from lotlip_platform.ray_data import Unseen, quiet_ray_data, result_of, results
from lotlip_platform.relabel_asking import Work
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_folder import Tally
from lotlip_platform.relabel_shard import relabel_shard
from lotlip_platform.relabel_vllm import NotYetError

_TELL_EVERY_S = 0.5
_MOST_DEATHS = 3
"""Of workers over one shard. Ray Data has no limit: what kills its worker would never end."""


def in_pool(
    config: RelabelConfig,
    work: Work,
    shards: Sequence[Shard],
    mailbox: Any,
    captioner: Captioner | None = None,
) -> Iterator[Tally]:
    """The tally of each shard, as they get ready, those left out that a `captioner` of its own
    can't finish yet. Raises: LotlipError."""
    quiet_ray_data()
    of_endpoint = {name: value for name, value in os.environ.items() if name == KEY}
    environment = Unseen({**store_environment(), **of_endpoint})
    rows = [{"shard": json.dumps(asdict(shard))} for shard in shards]
    pool = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardActor,
        fn_constructor_args=(work, mailbox, environment, captioner),
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(
            size=min(config.cluster.num_workers, len(rows)), max_tasks_in_flight_per_actor=1
        ),
        num_cpus=config.cluster.cpus_per_worker,
        num_gpus=0 if captioner else config.cluster.gpus_per_worker,
    )
    for text in results(pool):
        if counts := json.loads(text):
            yield Tally(**counts)


class ShardActor:
    """Captions shards, one after another, with a model or a client that it keeps."""

    def __init__(
        self,
        work: Work,
        mailbox: Any,
        environment: Unseen,
        captioner: Captioner | None,
    ) -> None:
        os.environ.update(environment.values)
        self._work, self._mailbox = work, mailbox
        self._captioner, self._tells = captioner, captioner is None

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        shard = to_shard(json.loads(str(batch["shard"][0])))
        return result_of(lambda: json.dumps(self._relabel(shard)))

    def _relabel(self, shard: Shard) -> Mapping[str, Any]:
        ask = getattr(self._captioner, "ask", 0)  # of vLLM each round begins a shard
        num_begun: Any = ray.get(self._mailbox.begin.remote(f"{shard.name} {ask}"))
        if num_begun > _MOST_DEATHS + 1:
            raise ClusterError(
                f"{shard.name} has cost {_MOST_DEATHS + 1} workers their lives: if it was for "
                "memory, lower captioner.huggingface.batch_size or cluster.num_workers"
            )
        if self._captioner is None:
            self._captioner = captioner_of(self._work.config, self._work.revision)
        teller = _Teller(self._mailbox)
        try:
            return relabel_shard(self._work, shard, self._captioner, teller.tell).counts
        except NotYetError:
            return {}
        finally:
            if self._tells:  # or its answers were told when they came
                teller.flush()


class _Teller:
    """Sums up what is answered, and tells the driver now and then."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._sum: dict[str, float] = {}
        self._told_s = time.monotonic()

    def tell(self, event: Mapping[str, Any]) -> None:
        for name, value in event.items():
            self._sum[name] = self._sum.get(name, 0) + value
        if time.monotonic() - self._told_s > _TELL_EVERY_S:
            self.flush()

    def flush(self) -> None:
        if self._sum:
            self._mailbox.put.remote(self._sum)
            self._sum, self._told_s = {}, time.monotonic()
