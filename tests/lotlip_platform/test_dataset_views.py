from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lotlip.data.scenes import make_sample
from lotlip.data.shards import CaptionCount, write_dataset, write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, DataError
from lotlip.model import PRESETS, LoTLIP
from lotlip.tokenizer import Tokenizer
from lotlip_platform.caption_agreement import agreement
from lotlip_platform.caption_page import caption_page, comparison
from lotlip_platform.dataset_views import show, stats, stats_figure
from lotlip_platform.datasets import make_scenes


def small(folder: Path):
    """10 samples in 2 shards, so without Ray."""
    return make_scenes(
        str(folder), num_samples=10, shard_size=6, on_progress=lambda done, total: None
    )


def picture(png: bytes) -> Image.Image:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return Image.open(io.BytesIO(png))


def test_stats_count_words_images_and_bytes(tmp_path):
    manifest = small(tmp_path)
    found = stats(str(tmp_path))
    first = make_sample(0, 0)
    assert found.num_read == found.num_samples == 10
    assert list(found.profiles) == ["short", "long.scenes"]
    assert found.profiles["short"].lengths[0] == len(first.short.split())
    assert found.profiles["long.scenes"].lengths[0] == len(first.long["scenes"].split())
    assert found.image_sizes == {(96, 96): 10}
    texts = len(first.short.encode()) + len(first.long["scenes"].encode())
    assert found.sample_bytes[0] == len(first.image) + texts
    summary = json.loads(json.dumps(found.summary()))
    assert summary["captions"]["short"]["mean"] == manifest.captions["short"]["mean_words"]
    assert summary["image_sizes_px"] == {"96x96": 10}


def test_stats_take_the_first_samples_and_a_tokenizers_count(tmp_path):
    small(tmp_path)
    samples = [make_sample(0, index) for index in range(7)]
    tokenizer = Tokenizer.learn(
        [s.short for s in samples], vocab_size=200, num_corner_tokens=2, context_length=24
    )
    found = stats(str(tmp_path), num_samples=7, tokenizer=tokenizer)
    assert (found.num_read, found.num_samples, found.unit) == (7, 10, "tokens")
    assert list(found.profiles["short"].lengths) == [
        len(tokenizer.encode(s.short)) for s in samples
    ]
    assert max(found.profiles["long.scenes"].lengths) == 24


def test_stats_name_an_image_that_does_not_open(tmp_path):
    store = FolderStore(tmp_path)
    bad = replace(make_sample(0, 1), image=b"no image")
    shard = write_shard(store, "shard-000000.tar", [make_sample(0, 0), bad])
    write_dataset(store, [(shard, CaptionCount())], {})
    with pytest.raises(DataError, match="sample 00000001: image does not open"):
        stats(store.uri)
    with pytest.raises(DataError, match="sample 00000001: image does not decode"):
        show(store.uri)


def test_the_stats_figure_has_a_panel_for_each_kind_of_caption(tmp_path):
    small(tmp_path)
    found = stats(str(tmp_path))
    one = replace(found, profiles={"short": found.profiles["short"]})
    both, single = picture(stats_figure(found)), picture(stats_figure(one))
    assert both.width == single.width
    assert both.height > single.height


def test_the_contact_sheet_shows_the_samples_asked_for(tmp_path):
    small(tmp_path)
    whole = picture(show(str(tmp_path)))
    row = picture(show(str(tmp_path), num_samples=4))
    one = picture(show(str(tmp_path), num_samples=1))
    assert whole.width == row.width > one.width
    assert whole.height > 2 * row.height
    assert show(str(tmp_path), num_samples=2, start=5) != show(str(tmp_path), num_samples=2)
    last = picture(show(str(tmp_path), start=9))
    assert last.width == one.width


def test_a_very_long_caption_is_trimmed_on_the_contact_sheet(tmp_path):
    def sheet(folder: str, caption: str) -> Image.Image:
        store = FolderStore(tmp_path / folder)
        sample = replace(make_sample(0, 0), long={"a": caption, "b": "word " * 2000})
        shard = write_shard(store, "shard-000000.tar", [sample])
        write_dataset(store, [(shard, CaptionCount())], {})
        return picture(show(store.uri))

    assert sheet("spaces", "word " * 9000).height < 1200
    assert sheet("letters", "猫" * 9000).height < 1200


@pytest.mark.parametrize("change", [{"start": 10}, {"start": -1}, {"num_samples": 0}])
def test_the_contact_sheet_names_a_range_that_is_not_there(tmp_path, change):
    small(tmp_path)
    with pytest.raises(ConfigError, match=f"{next(iter(change))}="):
        show(str(tmp_path), **change)


def test_captioners_are_compared_in_a_table_and_on_a_page(tmp_path):
    make_scenes(str(tmp_path), num_samples=10, captioners=True, on_progress=lambda *_: None)
    found = stats(str(tmp_path))
    head, *rows = comparison(found)
    assert [row[0] for row in rows] == ["short", "long.a", "long.b", "long.c", "long.scenes"]
    assert {len(row) for row in rows} == {len(head)}
    model = tiny_model()
    agreed = agreement(str(tmp_path), model, num_samples=8)
    assert agreed.num_samples == 8
    assert set(agreed.with_image) == set(agreed.with_others) == {"a", "b", "c", "scenes"}
    assert all(agreed.between[name][name] == pytest.approx(1.0) for name in agreed.between)
    assert agreed.between["a"]["b"] == agreed.between["b"]["a"]
    page = caption_page(found, agreed, num_samples=3)
    assert page.count("class='sample'") == 3
    assert make_sample(0, 2, captioners=True).long["b"] in page
    assert "src='data:image/png;base64," in page
    assert comparison(found, agreed)[1][-1] == "-", "short captions are not asked about"
    assert comparison(found, agreed)[2][-2] == f"{agreed.with_image['a']:.3f}"


def test_agreement_takes_samples_with_all_captions(tmp_path):
    store = FolderStore(tmp_path)
    samples = [replace(make_sample(0, i), long={"a": "A castle."}) for i in range(3)]
    samples[0] = replace(samples[0], long={})
    samples[1] = replace(samples[1], long={"a": "A boat.", "b": "A boat."})
    count = CaptionCount()
    for sample in samples:
        count.add(sample)
    write_dataset(store, [(write_shard(store, "shard-000000.tar", samples), count)], {})
    with pytest.raises(ConfigError, match="takes 2 samples with a caption by each of a, b; there"):
        agreement(str(tmp_path), tiny_model(), num_samples=8)


def tiny_model():
    samples = [make_sample(0, i) for i in range(20)]
    config = PRESETS["scenes"]
    text = replace(config.text, vocab_size=300)
    tokenizer = Tokenizer.learn(
        [s.long["scenes"] for s in samples],
        vocab_size=300,
        num_corner_tokens=text.num_corner_tokens,
        context_length=text.context_length,
    )
    image = replace(config.image, pretrained="", locked_layers=0)
    model = LoTLIP(replace(config, text=text, image=image))
    model.tokenizer = tokenizer
    return model
