from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lotlip
from lotlip.captions import split_sentences
from lotlip.data.manifest import Manifest, read_manifest, write_manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import read_samples, write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, DataError
from lotlip.evaluate.benchmarks import BENCHMARKS, Benchmark, read_benchmark
from lotlip.evaluate.questions import read_data_set
from lotlip.evaluate.retrieval import Interval
from lotlip_platform.evaluate import check_benchmarks, evaluate_on, table
from lotlip_platform.tables import aligned

RECALLS = {
    f"{kind}_{direction}_r{k}"
    for kind in ("short", "long")
    for direction in ("image_to_text", "text_to_image")
    for k in (1, 5, 10)
} | {f"headless_text_to_image_r{k}" for k in (1, 5, 10)}


def rewritten(source: Path, folder: Path, **changes) -> str:
    """The data set with the same changes made to each sample."""
    old, new = FolderStore(source), FolderStore(folder)
    samples: list[Sample] = [replace(s, **changes) for s in read_samples(old, read_manifest(old))]
    write_manifest(new, Manifest(shards=(write_shard(new, "shard-000000.tar", samples),)))
    return str(folder)


def test_the_benchmarks_give_their_metrics_as_shares_with_intervals(model_folder, scenes_folder):
    model = lotlip.load(model_folder)
    retrieval, scenes = (evaluate_on(model, name, str(scenes_folder)) for name in BENCHMARKS)
    assert set(retrieval.metrics) == RECALLS
    assert set(scenes.metrics) > RECALLS
    assert {"class_zero_shot_top1", "colour_class_zero_shot_top1"} <= set(scenes.metrics)
    for report in (retrieval, scenes):
        assert report.num_samples == 60
        for interval in report.metrics.values():
            assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0


def test_the_same_model_gets_the_same_report_again(model_folder, scenes_folder):
    model = lotlip.load(model_folder)
    first, second = (evaluate_on(model, "scenes", str(scenes_folder)) for _ in range(2))
    assert first.metrics == second.metrics


def test_a_benchmark_that_is_met_again_knows_the_model_that_has_changed(
    model_folder, scenes_folder
):
    store = FolderStore(scenes_folder)
    samples = read_benchmark(store, read_manifest(store), 60)
    model = lotlip.load(model_folder)
    again = Benchmark("scenes", samples)
    for locked_layers in (0, -1):
        image = replace(model.config.image, locked_layers=locked_layers)
        model.config = replace(model.config, image=image)
        before, _ = again.meet(model)
        for parameters in (model.text_tower.parameters(), model.image_tower.parameters()):
            with torch.no_grad():
                for parameter in parameters:
                    parameter.mul_(1.01).add_(torch.randn_like(parameter) * 0.1)
            if locked_layers == -1:
                break  # the image tower doesn't learn
        after, features = again.meet(model)
        fresh, expected = Benchmark("scenes", samples).meet(model)
        assert after.metrics == fresh.metrics != before.metrics
        torch.testing.assert_close(features.image_ND, expected.image_ND, atol=0, rtol=0)


def test_headless_texts_are_long_ones_without_their_first_sentence(
    model_folder, scenes_folder, tmp_path
):
    model = lotlip.load(model_folder)

    def reported(long):
        uri = rewritten(scenes_folder, tmp_path / str(len(long)), long={"someone": long})
        return evaluate_on(model, "retrieval", uri).metrics

    # All long captions are the same, so all images are right; without its first sentence, too.
    assert reported("A red castle. It rains.")["headless_text_to_image_r1"].value == 1.0
    one_by_one = evaluate_on(model, "retrieval", str(scenes_folder)).metrics
    headless = [f"headless_text_to_image_r{k}" for k in (1, 5, 10)]
    store = FolderStore(scenes_folder)
    without = [
        " ".join(split_sentences(sample.long["scenes"])[1:])
        for sample in read_samples(store, read_manifest(store))
    ]
    samples = list(read_samples(store, read_manifest(store)))
    shortened = [
        replace(sample, long={"scenes": text})
        for sample, text in zip(samples, without, strict=True)
    ]
    report, _ = Benchmark("retrieval", shortened).meet(model)
    expected = [report.metrics[name.replace("headless", "long")] for name in headless]
    assert [one_by_one[name] for name in headless] == expected


def test_the_captions_to_retrieve_by_can_be_chosen(scenes_folder, tmp_path):
    store = FolderStore(rewritten(scenes_folder, tmp_path / "two", long={"a": "x", "b": "y"}))
    manifest = read_manifest(store)
    assert {s.long["b"] for s in read_benchmark(store, manifest, 9, "b")} == {"y"}
    assert {tuple(s.long) for s in read_benchmark(store, manifest, 9, "b")} == {("b",)}
    with pytest.raises(DataError, match=r"no long caption by eval\.captioner=c to retrieve by"):
        read_benchmark(store, manifest, 9, "c")


def test_images_of_a_data_set_are_left_in_its_shards_until_they_are_embedded(
    scenes_folder, tmp_path
):
    shutil.copytree(scenes_folder, tmp_path / "data")
    store = FolderStore(tmp_path / "data")
    samples = list(read_samples(store, read_manifest(store)))
    question = read_data_set(store, "scenes", 50)
    assert not any(sample.image for sample in question.benchmark.samples)
    across = question.images.part(30, 50)  # the first shard holds 40
    assert across.names == [sample.key for sample in samples[30:50]]
    assert across.read() == [sample.image for sample in samples[30:50]]
    assert across.part(12, 14).read() == [sample.image for sample in samples[42:44]]
    shard = tmp_path / "data" / read_manifest(store).shards[1].name
    content = shard.read_bytes()
    place = content.index(samples[45].image)
    shard.write_bytes(content[: place + 9] + b"\0" + content[place + 10 :])
    with pytest.raises(DataError, match="was changed while it was in use"):
        across.read()


def test_more_samples_than_there_are_is_an_error(scenes_folder):
    store = FolderStore(scenes_folder)
    assert len(read_benchmark(store, read_manifest(store), 20)) == 20
    with pytest.raises(DataError, match="has 60 samples"):
        read_benchmark(store, read_manifest(store), 61)


@pytest.mark.parametrize(
    "benchmark, changes, told",
    [
        ("scenes", {"extra": {}}, "needs samples of lotlip data scenes"),
        ("scenes", {"extra": {"scene": [], "facts": 3}}, "not a scene"),
        ("retrieval", {"long": {}}, "no long caption"),
        ("retrieval", {"image": b"no image"}, "does not decode"),
    ],
)
def test_samples_that_do_not_fit_are_told(
    model_folder, scenes_folder, tmp_path, benchmark, changes, told
):
    uri = rewritten(scenes_folder, tmp_path / "odd", **changes)
    with pytest.raises(DataError, match=told):
        evaluate_on(lotlip.load(model_folder), benchmark, uri)


def test_samples_of_other_data_sets_can_be_retrieved(model_folder, scenes_folder, tmp_path):
    uri = rewritten(scenes_folder, tmp_path / "plain", extra={})
    assert set(evaluate_on(lotlip.load(model_folder), "retrieval", uri).metrics) == RECALLS


def test_an_unknown_benchmark_is_told():
    with pytest.raises(ConfigError, match="no benchmark coco: choose from retrieval, scenes"):
        check_benchmarks(["retrieval", "coco"])


def test_the_table_shows_metrics_down_and_models_across():
    columns = {
        "lotlip": {"r1": Interval(0.5, 0.4, 0.6), "r5": Interval(1.0, 0.95, 1.0)},
        "other model": {"r1": Interval(0.0, 0.0, 0.05)},
    }
    assert table(columns).splitlines() == [
        "    lotlip               other model",
        "--  -------------------  ----------------",
        "r1   50.0 [40.0, 60.0]     0.0 [0.0, 5.0]",
        "r5  100.0 [95.0, 100.0]  not run",
    ]
    assert [line.split()[0] for line in table(columns, ["r5", "r9"]).splitlines()[2:]] == [
        "r5",
        "r9",
    ]
    assert "not run" in table(columns, ["r9"]).splitlines()[2]


def test_a_table_of_nothing_is_its_header():
    assert aligned([["", "score"]]).splitlines() == ["  score", "  -----"]
