"""A small data set of scenes, made once for all tests of the science."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lotlip.data.manifest import Manifest, write_manifest
from lotlip.data.sample import Sample
from lotlip.data.scenes import CAPTIONER, make_sample
from lotlip.data.shards import shard_name, write_shard
from lotlip.data.store import FolderStore
from lotlip.tokenizer import Tokenizer

SHARD_ENDS = (0, 60, 71, 120, 121, 199, 250, 300)


@pytest.fixture(scope="session")
def scene_samples() -> list[Sample]:
    return [make_sample(5, index) for index in range(SHARD_ENDS[-1])]


@pytest.fixture(scope="session")
def scene_store(
    scene_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> FolderStore:
    """300 scenes in 7 uneven shards with their manifest; for reading only."""
    store = FolderStore(tmp_path_factory.mktemp("scenes"))
    shards = [
        write_shard(store, shard_name(place), scene_samples[start:stop])
        for place, (start, stop) in enumerate(pairwise(SHARD_ENDS))
    ]
    write_manifest(store, Manifest(shards=tuple(shards)))
    return store


@pytest.fixture(scope="session")
def scene_tokenizer(scene_samples: list[Sample]) -> Tokenizer:
    texts = [text for s in scene_samples for text in (s.short, s.long[CAPTIONER])]
    return Tokenizer.learn(texts, vocab_size=1024, num_corner_tokens=2, context_length=96)
