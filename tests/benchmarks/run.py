"""`make bench`: each claim as a ratio against a named yardstick, both measured in one run.

Prints a table and writes docs/benchmarks.md. Times are medians over repeats that take turns, in CPU
seconds of the process, since the machine may be busy with other things.
"""

from __future__ import annotations

import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import order as order_of_samples
import survival
import torch
import webdataset as wds
from PIL import Image

from lotlip.captions import CaptionConfig
from lotlip.data.features import write_feature_shard
from lotlip.data.manifest import Manifest, write_manifest
from lotlip.data.order import OrderConfig
from lotlip.data.pipeline import DataConfig, Source, batches
from lotlip.data.scenes import CAPTIONER, make_sample
from lotlip.data.shards import shard_name, write_shard
from lotlip.data.store import FolderStore
from lotlip.images import AugmentConfig
from lotlip.losses import multi_text_loss
from lotlip.model import PRESETS, LoTLIP
from lotlip.model.pretrained import build
from lotlip.tokenizer import Tokenizer
from lotlip.train.loop import LoopConfig, train_steps
from lotlip.train.optim import OptimConfig, make_optimizer
from lotlip.train.state import TrainState

REPEATS = 5
NUM_SAMPLES, BATCH = 1024, 128
REPORT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
Row = tuple[str, str, float, float]
"""What, against which yardstick, and the CPU seconds of both: ours, theirs."""


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(folder)
        samples = [make_sample(3, index) for index in range(NUM_SAMPLES)]
        shards = [
            write_shard(store, shard_name(place), samples[start : start + 256])
            for place, start in enumerate(range(0, NUM_SAMPLES, 256))
        ]
        write_manifest(store, Manifest(shards=tuple(shards)))
        texts = [text for sample in samples for text in (sample.short, sample.long[CAPTIONER])]
        manifest = Manifest(shards=tuple(shards))
        rows = [
            text_tower(texts),
            loader(store, manifest, texts),
            features(store, manifest, texts),
            surviving(store, manifest, texts),
        ]
        late, early = order_of_samples.seek(texts, REPEATS)
    write_report(rows, order_of_samples.mixing(), late, early)


def learnt_tokenizer(texts: list[str], context_length: int, vocab_size: int) -> Tokenizer:
    return Tokenizer.learn(
        texts, vocab_size=vocab_size, num_corner_tokens=2, context_length=context_length
    )


def source_of(
    store: FolderStore, manifest: Manifest, tokenizer: Tokenizer, augment: AugmentConfig
) -> Source:
    return Source(
        store=store,
        manifest=manifest,
        tokenizer=tokenizer,
        captions=CaptionConfig(),
        augment=augment,
        order=OrderConfig(num_streams=4, shuffle_window=256),
        image_size_px=96,
        global_batch=BATCH,
        seed=0,
    )


def text_tower(texts: list[str]) -> Row:
    """Forward and backward of one batch of captions, preset small."""
    config = PRESETS["small"]
    tokenizer = learnt_tokenizer(texts, config.text.context_length, config.text.vocab_size)
    model = LoTLIP(config, tokenizer)
    pairs = texts[: 2 * 64]
    image_BD = torch.nn.functional.normalize(torch.randn(64, config.embed_dim), dim=-1)
    trimmed = torch.from_numpy(tokenizer(pairs)).unflatten(0, (64, 2))
    padded = torch.from_numpy(tokenizer(pairs, length=128)).unflatten(0, (64, 2))

    def step(encode: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> float:
        model.zero_grad(set_to_none=True)
        loss = multi_text_loss(image_BD, encode(ids), model.scale())
        loss.backward()
        return loss.item()

    def padded_to_128(ids_BSL: torch.Tensor) -> torch.Tensor:
        """Short and long captions in one batch of one length, as the authors' code does."""
        pooled = model.text_projection(model.text_tower(ids_BSL.flatten(0, 1)))
        features = pooled.unflatten(0, ids_BSL.shape[:2])
        kept = torch.cat([features[:, 0, :1], features[:, 1:].flatten(1, 2)], dim=1)
        return torch.nn.functional.normalize(kept, dim=-1)

    assert abs(step(model.encode_captions, trimmed) - step(padded_to_128, padded)) < 1e-4
    ours, theirs = medians(
        lambda: step(model.encode_captions, trimmed), lambda: step(padded_to_128, padded)
    )
    what = "text tower, forward + backward, 64 x (short + long caption) of scenes, preset small"
    return what, "short and long padded to 128 in one batch", ours, theirs


def loader(store: FolderStore, manifest: Manifest, texts: list[str]) -> Row:
    """An epoch from local shards to batches of pixels and token ids."""
    tokenizer = learnt_tokenizer(texts, 128, 1024)
    source = source_of(store, manifest, tokenizer, AugmentConfig())

    def ours() -> None:
        count = sum(
            len(batch.keys) for batch in batches(source, epoch=0, start_step=0, streams=range(4))
        )
        assert count == NUM_SAMPLES

    def plain_webdataset() -> None:
        urls = [f"file:{store.root / shard.name}" for shard in manifest.shards]
        rng = np.random.default_rng(0)

        def prepare(members: dict) -> tuple[np.ndarray, list[str]]:
            image = Image.open(io.BytesIO(members["jpg"])).convert("RGB")
            left, top = rng.uniform(0, 4, 2)
            box = (left, top, left + 92, top + 92)
            pixels = np.asarray(image.resize((96, 96), Image.Resampling.BICUBIC, box=box))
            captions = json.loads(members["json"])
            return pixels, [captions["short"], captions["long"][CAPTIONER]]

        stream = wds.WebDataset(urls, shardshuffle=False).shuffle(256, seed=0).map(prepare)
        count, held = 0, []
        for item in stream:
            held.append(item)
            if len(held) == BATCH:
                torch.from_numpy(np.stack([pixels for pixels, _ in held]))
                torch.from_numpy(tokenizer([text for _, pair in held for text in pair]))
                count, held = count + len(held), []
        assert count == NUM_SAMPLES

    times = medians(ours, plain_webdataset)
    what = f"loader, {NUM_SAMPLES} scenes of 96 px, local shards to batches, one process"
    return what, "plain webdataset + Pillow, same tokenizer, no order, no ledger", *times


def features(store: FolderStore, manifest: Manifest, texts: list[str]) -> Row:
    """An epoch of training with a locked image tower whose features are kept."""
    config = PRESETS["scenes"]
    tokenizer = learnt_tokenizer(texts, config.text.context_length, config.text.vocab_size)
    model = build(config, tokenizer)
    kept = FolderStore(store.root / "features")
    made = [
        write_feature_shard(store, shard, kept, model.image_tower.eval())
        for shard in manifest.shards
    ]

    def epoch(of: FolderStore, shards: Manifest) -> None:
        source = source_of(of, shards, tokenizer, AugmentConfig(min_crop_area=1.0))
        loop = LoopConfig(num_samples=NUM_SAMPLES, global_batch=BATCH)
        state = TrainState(model, make_optimizer(model, OptimConfig()))
        data = DataConfig(train=of.uri, order=source.order)
        steps = train_steps(state, source, loop=loop, optim=OptimConfig(), data=data)
        assert sum(step.num_samples for step in steps) == NUM_SAMPLES

    ours, theirs = medians(
        lambda: epoch(kept, Manifest(shards=tuple(made))), lambda: epoch(store, manifest)
    )
    what = f"training on features of the locked tower, {NUM_SAMPLES} scenes, preset scenes, m = 2"
    return what, "the same steps on pixels", ours, theirs


def surviving(store: FolderStore, manifest: Manifest, texts: list[str]) -> Row:
    """An epoch of training with all that a run keeps and tells of its steps."""
    config = PRESETS["scenes"]
    tokenizer = learnt_tokenizer(texts, config.text.context_length, config.text.vocab_size)
    source = source_of(store, manifest, tokenizer, AugmentConfig())
    model = build(config, tokenizer)
    with survival.watched() as mailbox:
        ours, theirs = medians(
            lambda: survival.as_a_worker(model, source, NUM_SAMPLES, mailbox),
            lambda: survival.bare(model, source, NUM_SAMPLES),
        )
    what = "training as a worker of a run does it, between saves: trace, metrics, signs of life"
    return what, "the same loop, bare", ours, theirs


def medians(*competitors: Callable[[], object]) -> list[float]:
    """CPU seconds of each, the median of repeats in which they take turns."""
    times: list[list[float]] = [[] for _ in competitors]
    for _ in range(REPEATS):
        for run, taken in zip(competitors, times, strict=True):
            began = time.process_time()
            run()
            taken.append(time.process_time() - began)
    return [statistics.median(taken) for taken in times]


def write_report(
    rows: list[Row], mixing: list[tuple[str, float, float]], late: float, early: float
) -> None:
    lines = [
        "# Benchmarks",
        "",
        f"`make bench` on {date.today()}: {platform.machine()}, torch {torch.__version__}, one",
        f"thread; medians of {REPEATS} repeats in CPU seconds. A speed-up is theirs / ours.",
        "",
        "| what | yardstick | ours, s | yardstick, s | speed-up |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {what} | {yardstick} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.2f}x |"
        for what, yardstick, ours, theirs in rows
    ]
    lines += [
        "",
        "## The order of the samples",
        "",
        f"The first batch of 128 is there {late:.2f} s after a start at sample 10,000,000 of",
        f"11,000,000, and {early:.2f} s after one at sample 0: scenes of 96 px in local shards of",
        f"10,000, all 16 streams read by one process; medians of {REPEATS}.",
        "",
        "How well the order mixes, counted over an epoch of 1,000 shards of 1,000 samples each, in",
        "batches of 1,024. Neighbours of a sample are those within 100 places of it in its shard:",
        "scraped sets have related images there, false negatives if they meet in a batch.",
        "",
        "| order | shards in a batch | neighbours met, a sample |",
        "|---|---|---|",
    ]
    lines += [f"| {who} | {shards:.0f} | {met:.2f} |" for who, shards, met in mixing]
    print("\n".join(lines))
    REPORT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
