"""What the order of the samples costs and how well it mixes, against what webdataset does."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import webdataset.filters

from lotlip.captions import CaptionConfig
from lotlip.data.manifest import Manifest, Shard
from lotlip.data.order import EpochOrder, OrderConfig
from lotlip.data.pipeline import Source, batches
from lotlip.data.scenes import make_sample
from lotlip.data.shards import shard_name, write_shard
from lotlip.data.store import FolderStore
from lotlip.images import AugmentConfig
from lotlip.tokenizer import Tokenizer

SHARDS, PER_SHARD, BATCH, READERS = 1000, 1000, 1024, 8


def seek(texts: list[str], repeats: int) -> tuple[float, float]:
    """Seconds to the first batch at sample 10 million of 11 million, and at sample 0.

    The shards are one file of 10,000 scenes under 1,100 names.
    """
    tokenizer = Tokenizer.learn(texts, vocab_size=1024, num_corner_tokens=2, context_length=128)
    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(folder)
        scenes = [make_sample(3, index) for index in range(100)]
        samples = (replace(scenes[k % 100], key=f"{k:08d}") for k in range(10_000))
        first = write_shard(store, shard_name(0), samples)
        shards = [first]
        for place in range(1, 1100):
            os.link(Path(folder) / first.name, Path(folder) / shard_name(place))
            shards.append(replace(first, name=shard_name(place)))
        source = Source(
            store=store,
            manifest=Manifest(shards=tuple(shards)),
            tokenizer=tokenizer,
            captions=CaptionConfig(),
            augment=AugmentConfig(),
            order=OrderConfig(),
            image_size_px=96,
            global_batch=128,
            seed=0,
        )

        def first_batch(position: int) -> float:
            began = time.perf_counter()
            stream = batches(source, epoch=0, start_step=position // 128, streams=range(16))
            next(stream)
            taken = time.perf_counter() - began
            stream.close()  # type: ignore[attr-defined]
            return taken

        turns = [(first_batch(10_000_000), first_batch(0)) for _ in range(repeats)]
    late, early = zip(*turns, strict=True)
    return float(np.median(late)), float(np.median(early))


def mixing() -> list[tuple[str, float, float]]:
    """How batches are composed: who mixes, shards in a batch, and neighbours met, a sample.

    Neighbours are samples within 100 places of each other in a shard; scraped data sets have
    related images there, which are false negatives if they meet in a batch.
    """
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(SHARDS * PER_SHARD)
    return [
        ("lotlip, the default: 16 streams, a window of 1024", *composed(ours(16, 1024))),
        ("lotlip, 64 streams, a window of 4096", *composed(ours(64, 4096))),
        ("webdataset, 8 loaders with shuffle(1000), its examples' default", *composed(theirs())),
        ("all samples shuffled", *composed(shuffled[: len(shuffled) // BATCH * BATCH])),
    ]


def ours(num_streams: int, shuffle_window: int) -> np.ndarray:
    """The samples of an epoch, numbered through, in their order."""
    shard = Shard(name="", num_samples=PER_SHARD, num_bytes=0, sha256="")
    config = OrderConfig(num_streams=num_streams, shuffle_window=shuffle_window)
    manifest = Manifest(shards=(shard,) * SHARDS)
    order = EpochOrder(manifest, config, seed=0, epoch=0, global_batch=BATCH)
    epoch = np.empty(order.steps * BATCH, dtype=np.int64)
    for stream in range(num_streams):
        begin = stream * order.stream_length
        spans = order.spans(begin, begin + order.stream_length)
        lying = np.concatenate([np.arange(s.start, s.stop) + s.shard * PER_SHARD for s in spans])
        rounds = [order.round(stream, index)[1] for index in range(order.num_rounds())]
        for place, sample in enumerate(lying[np.concatenate(rounds)]):
            epoch[order.position(stream, place)] = sample
    return epoch


def theirs() -> np.ndarray:
    """Loaders that each shuffle their own shards with a buffer and give whole small batches.

    A training batch is made of one small batch of each loader.
    """

    def loader(number: int) -> Iterator[int]:
        rng = np.random.default_rng([1, number])
        own = rng.permutation(np.arange(number, SHARDS, READERS))
        samples = (int(shard) * PER_SHARD + k for shard in own for k in range(PER_SHARD))
        return webdataset.filters._shuffle(samples, bufsize=1000, initial=1000)

    loaders = [loader(number) for number in range(READERS)]
    each, epoch = BATCH // READERS, []
    for _ in range(SHARDS * PER_SHARD // BATCH):
        epoch += [sample for one in loaders for sample in islice(one, each)]
    return np.array(epoch[: len(epoch) // BATCH * BATCH])


def composed(epoch: np.ndarray) -> tuple[float, float]:
    """Mean number of shards in a batch, and of neighbours of a sample in its batch."""
    batches = np.sort(epoch.reshape(-1, BATCH), axis=1)
    shards = float(np.mean([len(np.unique(batch // PER_SHARD)) for batch in batches]))
    met = 0
    for batch in batches:
        near = np.searchsorted(batch, batch + 100, side="right") - np.arange(1, BATCH + 1)
        within = np.searchsorted(batch, (batch // PER_SHARD + 1) * PER_SHARD) - np.arange(
            1, BATCH + 1
        )
        met += 2 * int(np.minimum(near, within).sum())
    return shards, met / batches.size
