from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lotlip.captions import CaptionConfig
from lotlip.data.features import read_feature, tower_digest, write_feature_shard
from lotlip.data.manifest import Manifest, Shard, read_manifest, write_manifest
from lotlip.data.order import OrderConfig
from lotlip.data.pipeline import Source, batches
from lotlip.data.sample import FEATURE_SUFFIX, Sample
from lotlip.data.shards import described, read_samples, shard_name, write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import DataError
from lotlip.images import AugmentConfig, normalise
from lotlip.model import PRESETS
from lotlip.model.image_tower import ImageTower
from lotlip.tokenizer import Tokenizer


@pytest.fixture
def tower() -> ImageTower:
    torch.manual_seed(0)
    return ImageTower(PRESETS["tiny"].image).eval()


def features_of(store: FolderStore, folder: Path, tower: ImageTower) -> FolderStore:
    manifest, target = read_manifest(store), FolderStore(folder)
    shards = [write_feature_shard(store, shard, target, tower) for shard in manifest.shards]
    write_manifest(target, Manifest(shards=tuple(shards)))
    return target


def source_of(store: FolderStore, tokenizer: Tokenizer) -> Source:
    return Source(
        store=store,
        manifest=read_manifest(store),
        tokenizer=tokenizer,
        captions=CaptionConfig(sentences_per_sub_caption=2, num_sub_captions=2),
        augment=AugmentConfig(min_crop_area=1.0),
        order=OrderConfig(num_streams=4, shuffle_window=16),
        image_size_px=32,
        global_batch=24,
        seed=3,
    )


def test_batches_of_features_are_those_of_pixels_behind_the_tower(
    scene_store: FolderStore, scene_tokenizer: Tokenizer, tower: ImageTower, tmp_path: Path
):
    features = features_of(scene_store, tmp_path, tower)
    num_batches = 0
    for pixels, made in zip(
        batches(source_of(scene_store, scene_tokenizer), epoch=1, start_step=2, streams=range(4)),
        batches(source_of(features, scene_tokenizer), epoch=1, start_step=2, streams=range(4)),
        strict=True,
    ):
        assert made.keys == pixels.keys
        assert torch.equal(made.ids_BSL, pixels.ids_BSL)
        with torch.no_grad():
            expected_BD = tower(normalise(pixels.images))
        torch.testing.assert_close(made.images, expected_BD, atol=1e-5, rtol=1e-5)
        num_batches += 1
    assert num_batches == 10


def test_a_sample_that_cannot_be_used_keeps_its_place_and_its_reason(
    scene_samples: list[Sample], tower: ImageTower, tmp_path: Path
):
    store = FolderStore(tmp_path / "data")
    broken = replace(scene_samples[1], image=b"not an image")
    samples = [scene_samples[0], broken, scene_samples[2]]
    write_manifest(store, Manifest(shards=(write_shard(store, shard_name(0), samples),)))
    features = features_of(store, tmp_path / "features", tower)
    assert read_manifest(features).num_samples == 3
    with pytest.raises(DataError, match="image does not decode: it is of no known format"):
        list(read_samples(features, read_manifest(features)))
    first = next(read_samples(features, read_manifest(features)))
    assert first.image_suffix == FEATURE_SUFFIX
    assert (first.key, first.long) == (samples[0].key, samples[0].long)
    assert read_feature(first.image).dtype == np.float32


def test_what_a_torn_shard_lost_is_told_and_the_rest_trains_in_its_place(
    scene_store: FolderStore, scene_tokenizer: Tokenizer, tower: ImageTower, tmp_path: Path
):
    shutil.copytree(scene_store.root, tmp_path / "data")
    path = tmp_path / "data" / shard_name(4)
    content = path.read_bytes()
    kept = len(content) * 7 // 8
    path.write_bytes(content[:kept] + bytes(len(content) - kept))
    torn = FolderStore(tmp_path / "data")
    found = []
    for store in (torn, features_of(torn, tmp_path / "features", tower)):
        source = source_of(store, scene_tokenizer)
        epoch = list(batches(source, epoch=0, start_step=0, streams=range(4)))
        keys = [key for batch in epoch for key in batch.keys]
        bad = sorted({(b.shard, b.index) for batch in epoch for b in batch.bad})
        reasons = {b.reason for batch in epoch for b in batch.bad}
        found.append((keys, bad, reasons))
    of_pixels, of_features = found
    assert of_features[:2] == of_pixels[:2]
    assert len(of_features[1]) > 5
    assert of_features[2] == of_pixels[2]


def test_a_missing_shard_gives_no_features(
    scene_store: FolderStore, tower: ImageTower, tmp_path: Path
):
    shard = replace(read_manifest(scene_store).shards[0], name="shard-000099.tar")
    target = FolderStore(tmp_path / "features")
    with pytest.raises(DataError, match=r"shard-000099\.tar does not exist"):
        write_feature_shard(scene_store, shard, target, tower)
    assert target.list() == []


def test_a_key_that_is_no_text_is_a_bad_sample_like_any_other(tower: ImageTower, tmp_path: Path):
    store = FolderStore(tmp_path)
    (tmp_path / "raw.tar").write_bytes(latin_1_tar())
    shard = Shard(name="raw.tar", num_samples=1, num_bytes=10240, sha256="")
    write_feature_shard(store, shard, FolderStore(tmp_path / "features"), tower)


def latin_1_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", encoding="latin-1", format=tarfile.GNU_FORMAT
    ) as tar:
        for name in ("caf\xe9.jpg", "caf\xe9.json"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"bad"))
    return buffer.getvalue()


def test_the_digest_tells_weights_and_preprocessing_apart():
    config = PRESETS["tiny"].image

    def digest(config=config, seed=0) -> str:
        torch.manual_seed(seed)
        return tower_digest(ImageTower(config))

    assert digest() == digest(config=replace(config, locked_layers=-1))
    assert len({digest(), digest(seed=1), digest(config=replace(config, num_heads=1))}) == 3


def test_a_written_shard_is_described_as_its_writer_did(scene_store: FolderStore):
    shard = read_manifest(scene_store).shards[0]
    with scene_store.open(shard.name) as file:
        assert described(file, shard.name) == shard


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array"])
def test_a_feature_that_does_not_load_is_an_error_of_the_data(content: bytes):
    with pytest.raises(DataError, match="feature does not load"):
        read_feature(content)
