"""Reading samples, and training on them, against plain ways to do it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import survival
import torch
import webdataset as wds
from measuring import Row, medians
from PIL import Image
from texts import padded
from torch import Tensor
from torch.nn import functional as F

from lotlip.captions import CaptionConfig
from lotlip.data.features import write_feature_shard
from lotlip.data.manifest import Manifest, write_manifest
from lotlip.data.order import OrderConfig
from lotlip.data.pipeline import DataConfig, Source, batches
from lotlip.data.scenes import CAPTIONER, make_sample
from lotlip.data.shards import shard_name, write_shard
from lotlip.data.store import FolderStore
from lotlip.images import AugmentConfig, normalise
from lotlip.model import PRESETS, LoTLIP, ModelConfig
from lotlip.model.pretrained import build
from lotlip.tokenizer import Tokenizer
from lotlip.train.loop import LoopConfig, train_steps
from lotlip.train.optim import OptimConfig, make_optimizer
from lotlip.train.state import TrainState

NUM_SAMPLES, BATCH, SHARD_SIZE, SIZE_PX = 1024, 128, 256, 96
OPTIM = OptimConfig()


class Scenes:
    """Scenes in local shards."""

    def __init__(self, folder: Path) -> None:
        self.store = FolderStore(folder)
        samples = [make_sample(3, index) for index in range(NUM_SAMPLES)]
        shards = [
            write_shard(self.store, shard_name(place), samples[start : start + SHARD_SIZE])
            for place, start in enumerate(range(0, NUM_SAMPLES, SHARD_SIZE))
        ]
        self.manifest = Manifest(shards=tuple(shards))
        write_manifest(self.store, self.manifest)
        self.texts = [text for sample in samples for text in (sample.short, sample.long[CAPTIONER])]

    def tokenizer(self, model: ModelConfig) -> Tokenizer:
        text = model.text
        return Tokenizer.learn(
            self.texts,
            vocab_size=text.vocab_size,
            num_corner_tokens=text.num_corner_tokens,
            context_length=text.context_length,
        )

    def source(self, tokenizer: Tokenizer, augment: AugmentConfig) -> Source:
        return Source(
            store=self.store,
            manifest=self.manifest,
            tokenizer=tokenizer,
            captions=CaptionConfig(),
            augment=augment,
            order=OrderConfig(num_streams=4, shuffle_window=256),
            image_size_px=SIZE_PX,
            global_batch=BATCH,
            seed=0,
        )

    def plain_batches(self, tokenizer: Tokenizer) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels [B, H, W, C] and ids [B, 2, L], as webdataset and Pillow give them."""
        urls = [f"file:{self.store.root / shard.name}" for shard in self.manifest.shards]
        rng = np.random.default_rng(0)

        def prepare(members: dict) -> tuple[np.ndarray, list[str]]:
            image = Image.open(io.BytesIO(members["jpg"])).convert("RGB")
            left, top = rng.uniform(0, 4, 2)
            box = (left, top, left + SIZE_PX - 4, top + SIZE_PX - 4)
            pixels = image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC, box=box)
            captions = json.loads(members["json"])
            return np.asarray(pixels), [captions["short"], captions["long"][CAPTIONER]]

        held = []
        for item in wds.WebDataset(urls, shardshuffle=False).shuffle(256, seed=0).map(prepare):
            held.append(item)
            if len(held) == BATCH:
                pixels = torch.from_numpy(np.stack([pixels for pixels, _ in held]))
                captions = [text for _, pair in held for text in pair]
                yield pixels, torch.from_numpy(tokenizer(captions)).unflatten(0, (BATCH, 2))
                held = []


def rows(scenes: Scenes) -> list[Row]:
    return [loader(scenes), training(scenes), features(scenes), surviving(scenes)]


def loader(scenes: Scenes) -> Row:
    """An epoch from local shards to batches of pixels and token ids."""
    tokenizer = scenes.tokenizer(PRESETS["scenes"])
    source = scenes.source(tokenizer, AugmentConfig())

    def ours() -> None:
        read = batches(source, epoch=0, start_step=0, streams=range(4))
        assert sum(len(batch.keys) for batch in read) == NUM_SAMPLES

    def plain_webdataset() -> None:
        read = scenes.plain_batches(tokenizer)
        assert sum(len(pixels) for pixels, _ in read) == NUM_SAMPLES

    ours_s, theirs_s = medians(ours, plain_webdataset)
    return Row(
        what=f"loader, {NUM_SAMPLES} scenes of {SIZE_PX} px, local shards to batches, one process",
        yardstick="plain webdataset + Pillow, same tokenizer, no order, no ledger",
        ours_s=ours_s,
        theirs_s=theirs_s,
        goal=">= 1.5x",
    )


def training(scenes: Scenes) -> Row:
    """An epoch of two towers that both learn."""
    config = PRESETS["small"]
    tokenizer = scenes.tokenizer(config)

    def plain_loop() -> None:
        model = LoTLIP(config, tokenizer).train()
        optimizer = make_optimizer(model, OPTIM)
        target_B = torch.arange(BATCH)
        for pixels, ids_BSL in scenes.plain_batches(tokenizer):
            image_BD = model.encode_image(normalise(pixels))
            text_BND = padded(model, ids_BSL, fused=True)
            loss = torch.zeros(())
            for n in range(text_BND.shape[1]):
                logits_BB = model.scale() * image_BD @ text_BND[:, n].T
                both = F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)
                loss = loss + both / 2 / text_BND.shape[1]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.max_grad_norm)
            optimizer.step()
            model.clamp_scale_()

    source = scenes.source(tokenizer, AugmentConfig())
    ours_s, theirs_s = medians(
        lambda: epoch(LoTLIP(config, tokenizer), source), plain_loop, repeats=3
    )
    return Row(
        what=f"training, loading included, {NUM_SAMPLES} scenes, preset small, m = 2",
        yardstick="a plain loop: webdataset + Pillow, texts padded to the batch's longest, fused "
        "attention",
        ours_s=ours_s,
        theirs_s=theirs_s,
        goal=">= 1.3x",
    )


def features(scenes: Scenes) -> Row:
    """An epoch of training with a locked image tower whose features are kept."""
    tokenizer = scenes.tokenizer(PRESETS["scenes"])
    model = build(PRESETS["scenes"], tokenizer)
    pixels = scenes.source(tokenizer, AugmentConfig(min_crop_area=1.0))
    kept = FolderStore(scenes.store.root / "features")
    shards = [
        write_feature_shard(scenes.store, shard, kept, model.image_tower.eval())
        for shard in scenes.manifest.shards
    ]
    of_features = replace(pixels, store=kept, manifest=Manifest(shards=tuple(shards)))
    ours_s, theirs_s = medians(lambda: epoch(model, of_features), lambda: epoch(model, pixels))
    return Row(
        what=f"training on features of the locked tower, {NUM_SAMPLES} scenes, preset scenes, "
        "m = 2",
        yardstick="the same steps on pixels",
        ours_s=ours_s,
        theirs_s=theirs_s,
        goal=">= 5x",
    )


def surviving(scenes: Scenes) -> Row:
    """An epoch of training with all that a run keeps and tells of its steps."""
    tokenizer = scenes.tokenizer(PRESETS["scenes"])
    source = scenes.source(tokenizer, AugmentConfig())
    model = build(PRESETS["scenes"], tokenizer)
    with survival.watched() as mailbox:
        ours_s, theirs_s = medians(
            lambda: survival.as_a_worker(model, source, NUM_SAMPLES, mailbox),
            lambda: survival.bare(model, source, NUM_SAMPLES),
            repeats=31,  # one takes 5% more or less than the next; what is looked for is 1%
        )
    return Row(
        what="training as a worker of a run does it, between saves: trace, metrics, signs of life",
        yardstick="the same loop, bare",
        ours_s=ours_s,
        theirs_s=theirs_s,
        goal=">= 0.99x",
    )


def epoch(model: LoTLIP, source: Source) -> None:
    loop = LoopConfig(num_samples=NUM_SAMPLES, global_batch=BATCH)
    state = TrainState(model, make_optimizer(model, OPTIM))
    data = DataConfig(train=source.store.uri, order=source.order)
    steps = train_steps(state, source, loop=loop, optim=OPTIM, data=data)
    assert sum(step.num_samples for step in steps) == NUM_SAMPLES
