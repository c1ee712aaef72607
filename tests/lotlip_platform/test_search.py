from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import lotlip
from lotlip.data.manifest import read_manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import read_samples
from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, DataError
from lotlip.evaluate.embed import embed_images, embed_texts
from lotlip.model import LoTLIP
from lotlip_platform import search as search_module
from lotlip_platform.search import Match, cut_note, match_table, search, search_sheet

TEXT = "A red castle stands in the middle. Two white birds are above it."


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LoTLIP:
    return lotlip.load(model_folder)


@pytest.fixture(scope="module")
def samples(scenes_folder: Path) -> list[Sample]:
    store = FolderStore(scenes_folder)
    return list(read_samples(store, read_manifest(store)))


def expected(model: LoTLIP, samples: list[Sample]) -> list[tuple[str, float]]:
    """All samples, best first, by the definition."""
    scores = embed_images(model, [s.image for s in samples]) @ embed_texts(model, [TEXT])[0]
    order = scores.argsort(descending=True, stable=True).tolist()
    return [(samples[index].key, float(scores[index])) for index in order]


@pytest.mark.parametrize("at_once", [7, 512])
def test_the_best_images_come_first(model, samples, scenes_folder, monkeypatch, at_once):
    monkeypatch.setattr(search_module, "_AT_ONCE", at_once)
    progress = []
    matches = search(
        model,
        str(scenes_folder),
        TEXT,
        num_hits=5,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    best = expected(model, samples)[:5]
    assert [match.sample.key for match in matches] == [key for key, _ in best]
    scores = torch.tensor([match.score for match in matches])
    torch.testing.assert_close(scores, torch.tensor([score for _, score in best]))
    assert progress[-1] == (60, 60)
    assert len(progress) == -(-60 // at_once)


def test_more_hits_than_images_gives_all_of_them_once(model, samples, scenes_folder):
    matches = search(model, str(scenes_folder), TEXT, num_hits=1000)
    assert [m.sample.key for m in matches] == [key for key, _ in expected(model, samples)]


def test_only_the_first_samples_are_looked_at_if_asked(model, samples, scenes_folder):
    matches = search(model, str(scenes_folder), TEXT, num_hits=20, num_samples=10)
    assert {m.sample.key for m in matches} == {s.key for s in samples[:10]}
    assert len(search(model, str(scenes_folder), TEXT, num_hits=99, num_samples=999)) == 60


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_description_is_refused(model, scenes_folder, text):
    with pytest.raises(ConfigError, match="--text is empty"):
        search(model, str(scenes_folder), text)


def test_a_folder_without_data_is_told(model, tmp_path):
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        search(model, str(tmp_path), TEXT)


def test_the_table_has_a_line_for_each_match(model, scenes_folder):
    matches = search(model, str(scenes_folder), TEXT, num_hits=3)
    header, rule, *lines = match_table(matches).splitlines()
    assert header.split() == ["score", "key", "short", "caption"]
    assert set(rule) == {"-", " "}
    for place, (line, match) in enumerate(zip(lines, matches, strict=True), start=1):
        assert line.split()[:3] == [str(place), f"{match.score:.3f}", match.sample.key]
        assert line.endswith(match.sample.short)


def test_a_caption_of_several_lines_takes_one_line_of_the_table(samples):
    sample = replace(samples[0], short=" a castle\n\tby  a lake\r\n")
    lines = match_table([Match(sample, 0.5)]).splitlines()
    assert len(lines) == 3
    assert lines[-1].endswith(f"{sample.key}  a castle by a lake")


def test_a_description_that_is_read_to_its_end_has_no_note(model):
    assert cut_note(model, TEXT) == ""
    fits = "castle " * (96 - 4)  # [CLS], two corner tokens and [SEP]
    assert cut_note(model, fits) == ""
    wanted = "--text has 97 tokens, the model reads 96: its end is left out"
    assert cut_note(model, f"{fits}castle") == wanted


def test_the_sheet_is_a_picture_whatever_the_number_of_matches(model, scenes_folder):
    for num_hits in (1, 13):
        matches = search(model, str(scenes_folder), TEXT, num_hits=num_hits)
        sheet = search_sheet(TEXT, matches, heading="a heading")
        with Image.open(io.BytesIO(sheet)) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
