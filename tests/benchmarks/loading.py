"""Reading samples, and training on them, against plain ways to do it."""

from __future__ import annotations

import gc
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal
from unittest import mock

import boto3
import numpy as np
import survival
import tokenizers
import torch
import webdataset as wds
from measuring import Row, Work, medians, peak_mib, resident_kib
from PIL import Image
from servers import free_port
from texts import padded
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor
from torch.nn import functional as F

from lotlip.captions import CaptionConfig
from lotlip.data.features import write_feature_shard
from lotlip.data.manifest import Manifest
from lotlip.data.order import OrderConfig
from lotlip.data.pipeline import DataConfig, Source, batches
from lotlip.data.scenes import CAPTIONER, make_sample
from lotlip.data.shards import CaptionCount, shard_name, write_dataset, write_shard
from lotlip.data.store import FolderStore, Store
from lotlip.images import AugmentConfig, normalise
from lotlip.model import PRESETS, LoTLIP, ModelConfig
from lotlip.model.pretrained import build
from lotlip.tokenizer import Tokenizer
from lotlip.train.loop import LoopConfig, train_steps
from lotlip.train.optim import OptimConfig, make_optimizer
from lotlip.train.state import TrainState
from lotlip.vocabulary import VOCAB_FILE
from lotlip_platform.storage import S3Store, ensure_bucket

NUM_SAMPLES, BATCH, SIZE_PX = 1024, 128, 96
OPTIM = OptimConfig()


Precision = Literal["fp32", "bf16"]


class Scenes:
    """Samples in four shards: scenes, or other images with their captions."""

    def __init__(self, store: Store, images: Sequence[bytes] = (), size_px: int = SIZE_PX) -> None:
        self.store, self.size_px = store, size_px
        samples = [make_sample(3, index) for index in range(len(images) or NUM_SAMPLES)]
        if images:
            pairs = zip(samples, images, strict=True)
            samples = [replace(sample, image=image) for sample, image in pairs]
        self.num_samples, each = len(samples), len(samples) // 4
        shards = []
        for k in range(4):
            own, captions = samples[k * each : (k + 1) * each], CaptionCount()
            for sample in own:
                captions.add(sample)
            shards.append((write_shard(store, shard_name(k), own), captions))
        self.manifest = write_dataset(store, shards, {"command": "make bench"})
        self.texts = [text for sample in samples for text in (sample.short, sample.long[CAPTIONER])]

    def tokenizer(self, model: ModelConfig) -> Tokenizer:
        text = model.text
        return Tokenizer.learn(
            self.texts,
            vocab_size=text.vocab_size,
            num_corner_tokens=text.num_corner_tokens,
            context_length=text.context_length,
        )

    def source(
        self,
        tokenizer: Tokenizer,
        augment: AugmentConfig,
        *,
        batch: int = BATCH,
        num_streams: int = 4,
    ) -> Source:
        return Source(
            store=self.store,
            manifest=self.manifest,
            tokenizer=tokenizer,
            captions=CaptionConfig(),
            augment=augment,
            order=OrderConfig(num_streams=num_streams, shuffle_window=256),
            image_size_px=self.size_px,
            global_batch=batch,
            seed=0,
        )

    def plain_batches(self, tokenizer: Tokenizer) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels [B, H, W, C] and ids [B, 2, L], as webdataset, Pillow and tokenizers give them."""
        at = self.store.uri if "://" in self.store.uri else f"file:{self.store.uri}"
        urls = [f"{at}/{shard.name}" for shard in self.manifest.shards]
        rng, size = np.random.default_rng(0), self.size_px
        pieces = tokenizer.to_files()[VOCAB_FILE].decode().splitlines()
        vocab = {piece: number for number, piece in enumerate(pieces)}
        words = tokenizers.Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
        words.normalizer, words.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
        num_pieces = tokenizer.context_length - tokenizer.num_corner_tokens - 2
        words.enable_truncation(num_pieces)
        words.enable_padding()
        start = torch.tensor([tokenizer.cls_id, *tokenizer.corner_ids])

        def prepare(members: dict) -> tuple[np.ndarray, list[str]]:
            image = Image.open(io.BytesIO(members["jpg"])).convert("RGB")
            left, top = rng.uniform(0, 4, 2)
            box = (left, top, left + image.width - 4, top + image.height - 4)
            pixels = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
            captions = json.loads(members["json"])
            return np.asarray(pixels), [captions["short"], captions["long"][CAPTIONER]]

        held = []
        for item in wds.WebDataset(urls, shardshuffle=False).shuffle(256, seed=0).map(prepare):
            held.append(item)
            if len(held) == BATCH:
                pixels = torch.from_numpy(np.stack([pixels for pixels, _ in held]))
                captions = [text for _, pair in held for text in pair]
                ids = torch.tensor([encoding.ids for encoding in words.encode_batch(captions)])
                ids = F.pad(ids, (0, 1)).scatter(
                    1, (ids != 0).sum(dim=1, keepdim=True), tokenizer.sep_id
                )
                ids = torch.cat([start.expand(len(ids), -1), ids], dim=1)
                yield pixels, ids.unflatten(0, (BATCH, 2))
                held = []


@contextmanager
def s3() -> Iterator[S3Store]:
    """A bucket behind HTTP, for both sides; webdataset's reads as boto3's users read."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "lotlip",
        "AWS_SECRET_ACCESS_KEY": "lotlip",
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def opened(url: str, *_: object) -> object:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"]

    try:
        while not answers(port):
            assert server.poll() is None, "moto's server did not start"
            time.sleep(0.2)
        with (
            mock.patch.dict(os.environ, settings),
            mock.patch.dict(wds.gopen_schemes, {"s3": opened}),
        ):
            ensure_bucket("s3://bench")
            yield S3Store("bench")
    finally:
        server.kill()
        server.wait()


def answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def photos(num: int, width: int = 1024, height: int = 768) -> list[bytes]:
    """JPEGs with the spectrum of photographs: the finer, the fainter."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    frequency[0, 0] = 1

    def photo() -> bytes:
        phases = np.exp(2j * np.pi * rng.random((3, height, width)))
        layers = np.fft.ifft2(phases / frequency).real
        layers = layers[:1] + 0.3 * layers  # colours mostly vary together
        pixels = np.clip(layers / layers.std() * 50 + 128, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    return [photo() for _ in range(num)]


def rows(scenes: Scenes) -> list[Row]:
    few, large = f"{NUM_SAMPLES} scenes of 96 px", "256 photographs of 1024 x 768 px"
    pictures = 4 * photos(64)
    with s3() as store:
        loaders = [
            loader(few, Scenes(store.at("scenes"))),
            loader(f"{large} to 224 px", Scenes(store.at("photos"), pictures, size_px=224)),
        ]
    trials = [
        features(few, scenes),
        features(f"{large} to 96 px", Scenes(scenes.store.at("photos"), pictures)),
    ]
    return [*loaders, *trainings(scenes), *trials, surviving(scenes)]


def loader(what: str, scenes: Scenes) -> Row:
    """An epoch from S3 to batches of pixels and token ids."""
    tokenizer = scenes.tokenizer(PRESETS["scenes"])
    source = scenes.source(tokenizer, AugmentConfig())

    def ours() -> None:
        read = batches(source, epoch=0, start_step=0, streams=range(4))
        assert sum(len(batch.keys) for batch in read) == scenes.num_samples

    def plain_webdataset() -> None:
        read = scenes.plain_batches(tokenizer)
        assert sum(len(pixels) for pixels, _ in read) == scenes.num_samples

    ours_s, theirs_s = medians(ours, plain_webdataset)
    return Row(
        what=f"loader, S3 to augmented batches in one process, {what}",
        yardstick="plain webdataset + boto3 + Pillow + tokenizers: no order, no resuming, no "
        "ledger, no sentences",
        ours_s=ours_s,
        theirs_s=theirs_s,
        goal=">= 1.5x",
    )


def kept_mib(folder: str) -> float:
    """How much more memory there is in use after ten epochs of loading than after two."""
    scenes = Scenes(FolderStore(folder))
    source = scenes.source(scenes.tokenizer(PRESETS["scenes"]), AugmentConfig())
    after = []
    for epoch in range(10):
        for _ in batches(source, epoch=epoch, start_step=0, streams=range(4)):
            pass
        gc.collect()
        after.append(resident_kib())
    return (after[9] - after[1]) / 1024


def training(side: str, precision: Precision, folder: str) -> Work:
    """An epoch of two towers that both learn."""
    config = PRESETS["small"]
    scenes = Scenes(FolderStore(folder))  # the same bytes again
    tokenizer = scenes.tokenizer(config)
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")

    def plain_loop() -> None:
        model = LoTLIP(config, tokenizer).train()
        optimizer = make_optimizer(model, OPTIM)
        target_B = torch.arange(BATCH)
        for pixels, ids_BSL in scenes.plain_batches(tokenizer):
            with bf16:
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
    if side == "theirs":
        return plain_loop
    return lambda: epoch(LoTLIP(config, tokenizer), source, precision)


def trainings(scenes: Scenes) -> Iterator[Row]:
    for precision, goal in (
        ("fp32", ">= 1.3x"),
        ("bf16", f"ours <= {NUM_SAMPLES / 100:.2f} s, <= 1945 MiB"),
    ):
        sides = [training(side, precision, scenes.store.uri) for side in ("ours", "theirs")]
        ours_s, theirs_s = medians(*sides, repeats=3)
        ours_mib, theirs_mib = (
            peak_mib(training, side, precision, scenes.store.uri, whole=True)
            for side in ("ours", "theirs")
        )
        yield Row(
            what=f"training, loading included, {NUM_SAMPLES} scenes, preset small (towers of width "
            f"192 x 6 layers), {precision}, m = 2, batch {BATCH}; memory of the whole process",
            yardstick="a plain loop: webdataset + Pillow, texts padded to the batch's longest, "
            "fused attention",
            ours_s=ours_s,
            theirs_s=theirs_s,
            ours_mib=ours_mib,
            theirs_mib=theirs_mib,
            goal=goal,
        )


def features(what: str, scenes: Scenes) -> Row:
    """An epoch of training with a locked image tower whose features are kept."""
    tokenizer = scenes.tokenizer(PRESETS["scenes"])
    model = build(PRESETS["scenes"], tokenizer)
    pixels = scenes.source(tokenizer, AugmentConfig(min_crop_area=1.0))
    kept = scenes.store.at("features")
    shards = [
        write_feature_shard(scenes.store, shard, kept, model.image_tower.eval())
        for shard in scenes.manifest.shards
    ]
    of_features = replace(pixels, store=kept, manifest=Manifest(shards=tuple(shards)))
    ours_s, theirs_s = medians(lambda: epoch(model, of_features), lambda: epoch(model, pixels))
    return Row(
        what=f"a sweep's trial on features of the locked tower, preset scenes, m = 2, {what}",
        yardstick="the same trial on pixels, decoded in full, as those of the features were",
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


def epoch(model: LoTLIP, source: Source, precision: Precision = "fp32") -> None:
    num_samples = source.manifest.num_samples
    loop = LoopConfig(num_samples=num_samples, global_batch=BATCH, precision=precision)
    state = TrainState(model, make_optimizer(model, OPTIM))
    data = DataConfig(train=source.store.uri, order=source.order)
    steps = train_steps(state, source, loop=loop, optim=OPTIM, data=data)
    assert sum(step.num_samples for step in steps) == num_samples
