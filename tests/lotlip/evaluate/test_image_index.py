from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lotlip.data.features import write_feature_shard
from lotlip.data.manifest import Manifest, write_manifest
from lotlip.data.shards import write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import DataError
from lotlip.evaluate.embed import embed_images
from lotlip.evaluate.image_index import ImageIndex, read_index
from lotlip.model import PRESETS, LoTLIP


@pytest.fixture(scope="module")
def model() -> LoTLIP:
    torch.manual_seed(0)
    return LoTLIP(PRESETS["tiny"]).eval()


def index_of(samples, model: LoTLIP, folder: Path) -> ImageIndex:
    data, features = FolderStore(folder / "data"), FolderStore(folder / "features")
    shards = [
        write_feature_shard(data, write_shard(data, name, part), features, model.image_tower)
        for name, part in (("shard-0.tar", samples[:7]), ("shard-1.tar", samples[7:]))
    ]
    write_manifest(features, Manifest(shards=tuple(shards)))
    return read_index(model, features, Manifest(shards=tuple(shards)))


def test_an_index_has_the_features_of_all_images_in_their_order(scene_samples, model, tmp_path):
    samples = scene_samples[:20]
    index = index_of(samples, model, tmp_path)
    wanted = embed_images(model, [sample.image for sample in samples])
    torch.testing.assert_close(index.features_ND, wanted)
    assert index.numbers == tuple(range(20))
    assert index.keys == tuple(sample.key for sample in samples)
    assert index.captions == tuple(sample.short for sample in samples)
    assert (len(index), index.num_unreadable) == (20, 0)


def test_images_that_do_not_decode_are_left_out_and_counted(scene_samples, model, tmp_path):
    samples = [
        replace(sample, image=b"no image") if place in (0, 9) else sample
        for place, sample in enumerate(scene_samples[:20])
    ]
    index = index_of(samples, model, tmp_path)
    assert (len(index), index.num_unreadable) == (18, 2)
    assert index.numbers == (*range(1, 9), *range(10, 20))
    wanted = embed_images(model, [samples[number].image for number in index.numbers])
    torch.testing.assert_close(index.features_ND, wanted)


def test_a_data_set_without_one_image_is_refused(scene_samples, model, tmp_path):
    samples = [replace(sample, image=b"") for sample in scene_samples[:9]]
    with pytest.raises(DataError, match="not one image"):
        index_of(samples, model, tmp_path)


def test_each_text_finds_its_best_images(scene_samples, model, tmp_path):
    index = index_of(scene_samples[:20], model, tmp_path)
    texts_QD = torch.nn.functional.normalize(torch.randn(3, index.features_ND.shape[1]), dim=1)
    for found, scores_N in zip(
        index.search(texts_QD, 4), texts_QD @ index.features_ND.T, strict=True
    ):
        best = scores_N.argsort(descending=True)[:4]
        assert [hit.place for hit in found] == best.tolist()
        assert [hit.score for hit in found] == pytest.approx(scores_N[best].tolist())
    assert [len(found) for found in index.search(texts_QD, 99)] == [20, 20, 20]


def test_what_exceeds_the_average_adds_up_to_nothing(scene_samples, model, tmp_path):
    index = index_of(scene_samples[:20], model, tmp_path)
    texts_QD = torch.randn(3, index.features_ND.shape[1])
    excess = index.above_average(texts_QD, list(range(20)))
    torch.testing.assert_close(excess.sum(dim=1), torch.zeros(3), atol=1e-4, rtol=0)
    first, second = (texts_QD[0] @ index.features_ND[place] for place in (4, 11))
    torch.testing.assert_close(excess[0, 4] - excess[0, 11], first - second)
