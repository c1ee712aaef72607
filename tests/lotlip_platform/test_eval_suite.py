"""Published benchmarks by real models: features that are kept, tables, runs in MLflow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from published_sets import make_cifar, make_dci, make_docci, make_karpathy, make_urban1k
from tiny_clip import CONTEXT_LENGTH, make_tiny_clip
from torch.nn.functional import cosine_similarity

import lotlip
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip.evaluate.encoders import HuggingFaceEncoder, LoTLIPEncoder
from lotlip.evaluate.published.suite import PROTOCOLS
from lotlip_platform import embeddings
from lotlip_platform.cli import main
from lotlip_platform.eval_models import encoder_of
from lotlip_platform.eval_suite import EXPERIMENT, SuiteConfig, evaluate_suite
from lotlip_platform.eval_table import report_text
from lotlip_platform.storage import ensure_bucket, open_store


class Shown:
    """What an evaluation tells of its progress."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[int, int]] = {}

    def __call__(self, title: str, done: int, total: int) -> None:
        self.first.setdefault(title, (done, total))

    @property
    def num_new(self) -> int:
        return sum(total - done for done, total in self.first.values())


def quiet(text: str) -> None:
    pass


@pytest.fixture
def config(tmp_path: Path, model_folder: Path, mlflow_server: str) -> SuiteConfig:
    make_dci(tmp_path / "files")
    make_karpathy(tmp_path / "files", coco=False)
    make_cifar(tmp_path / "cifar", fine=False)
    return SuiteConfig(
        model=str(model_folder),
        benches={
            "dci": str(tmp_path / "files" / "dci"),
            "flickr30k": str(tmp_path / "files"),
            "cifar10": str(tmp_path / "cifar"),
        },
        protocols=list(PROTOCOLS.values()),
        partial=True,
        cache=str(tmp_path / "cache"),
        tracking_uri=mlflow_server,
    )


def test_benchmarks_are_answered_told_and_recorded(config: SuiteConfig, model_folder: Path):
    suite = evaluate_suite(config, Shown(), quiet)
    (evaluated,) = suite.models
    asked = [(r.asked.benchmark, r.asked.protocol.name) for r in evaluated.results]
    assert asked == [(b, p) for p in PROTOCOLS for b in config.benches]
    by_name = dict(zip(asked, evaluated.results, strict=True))
    clean = by_name["dci", "clean"]
    assert (clean.asked.num_images, clean.asked.context_length) == (12, 128), "all that it has"
    assert "headless_text_to_image_r1" in clean.answers
    assert "headless_text_to_image_r1" not in by_name["dci", "official"].answers
    assert set(by_name["cifar10", "clean"].answers) == {"top1", "top5"}

    table = report_text(suite.models, suite.differences)
    own = next(line for line in table.splitlines() if line.startswith(str(model_folder)))
    assert own.count("not run") == 6, "the long ones that were not asked"
    assert "official, 128 tokens" in own
    assert "LoTLIP B/16 (100M)" in table
    assert "headless less the same whole" in table
    assert "64.1 / 62.6" in table
    assert "* of DCI 12 images of 7,805 were there" in table
    assert "README of github.com/wuw2019/LoTLIP at ac95a8d, 2024-11-26" in table

    client = mlflow.MlflowClient(config.tracking_uri)
    run = client.get_run(suite.run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == EXPERIMENT
    share = clean.shares["text_to_image_r5"].value
    assert run.data.metrics["eval/dci/clean-128-part/text_to_image_r5"] == pytest.approx(share)
    assert run.data.tags["weights"] == evaluated.digest
    files = {file.path for file in client.list_artifacts(suite.run_id)}
    assert files == {"figures", "results.json", "table.md"}
    kept = json.loads(Path(client.download_artifacts(suite.run_id, "results.json")).read_text())
    assert kept["models"][0]["results"][0]["of_images"] == 7805


def test_nothing_is_embedded_twice(config: SuiteConfig, monkeypatch: pytest.MonkeyPatch):
    real, made = embeddings.keep, 0

    def some(*arguments: object) -> None:
        nonlocal made
        made += 1
        if made == 4:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(embeddings, "keep", some)
    with pytest.raises(KeyboardInterrupt):
        evaluate_suite(config, Shown(), quiet)
    monkeypatch.setattr(embeddings, "keep", real)
    kept = set(open_store(config.cache).list())
    assert len(kept) == 3
    rest = Shown()
    first = evaluate_suite(config, rest, quiet)
    again = Shown()
    second = evaluate_suite(config, again, quiet)
    assert again.num_new == 0 < rest.num_new
    assert kept < set(open_store(config.cache).list())
    assert first.models[0].results[0].shares == second.models[0].results[0].shares
    place = Path(config.cache) / min(open_store(config.cache).list())
    for broken in (b"PK", place.read_bytes()[:200], place.read_bytes()[:-100]):
        place.write_bytes(broken)
        with pytest.raises(DataError, match=r"is damaged .*: remove it, and run again"):
            evaluate_suite(config, Shown(), quiet)
    place.unlink()
    picture = next(Path(config.benches["dci"]).rglob("sa_4.jpg"))
    picture.write_bytes(picture.read_bytes()[:400])
    with pytest.raises(
        DataError, match=r"not fetched whole: .*/dci/.*photos/sa_4\.jpg: image does"
    ):
        evaluate_suite(config, Shown(), quiet)


def test_workers_of_a_cluster_embed_the_same(config: SuiteConfig, s3_env: str):
    ensure_bucket("s3://evals")
    here = evaluate_suite(config, Shown(), quiet)
    there = dataclasses.replace(config, cache="s3://evals/cache", num_workers=2)
    shown = Shown()
    on_ray = evaluate_suite(there, shown, quiet)
    assert shown.num_new > 0
    for one, other in zip(here.models[0].results, on_ray.models[0].results, strict=True):
        assert one.shares == other.shares


def test_two_models_are_compared_on_the_same_questions(config: SuiteConfig, tmp_path: Path):
    other = make_tiny_clip(tmp_path / "clip")
    suite = evaluate_suite(dataclasses.replace(config, against=f"hf:{other}"), Shown(), quiet)
    ours, theirs = suite.models
    assert theirs.results[1].asked.context_length == CONTEXT_LENGTH
    assert len(suite.differences) == len(ours.results)
    difference = suite.differences[0]["text_to_image_r5"]
    values = [one.results[0].shares["text_to_image_r5"].value for one in suite.models]
    assert difference.value == pytest.approx(values[0] - values[1])
    table = report_text(suite.models, suite.differences)
    assert f"difference to hf:{other}" in table
    same = evaluate_suite(dataclasses.replace(config, against=config.model), Shown(), quiet)
    assert {(d.low, d.high) for of in same.differences for d in of.values()} == {(0.0, 0.0)}


def test_a_clip_of_the_hub_gives_what_transformers_gives(tmp_path: Path):
    folder = make_tiny_clip(tmp_path / "clip")
    encoder = HuggingFaceEncoder(str(folder))
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    path = make_urban1k(tmp_path) / "Urban1k" / "image" / "5.jpg"
    texts = ["a castle", "two trees and a boat"]
    inputs = processor(text=texts, images=Image.open(path), return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model(**inputs)
    images = encoder.embed_images([path.read_bytes()], ["5.jpg"])
    assert cosine_similarity(images, out.image_embeds).min() > 0.99999
    found, num_cut = encoder.embed_texts(texts, context_length=CONTEXT_LENGTH, official=False)
    np.testing.assert_allclose(found, out.text_embeds, atol=1e-5)
    assert not num_cut.any()
    _, num_cut = encoder.embed_texts(["abc " * 60], context_length=CONTEXT_LENGTH, official=True)
    assert num_cut.all()
    with pytest.raises(DataError, match=r"6\.jpg: image does not decode"):
        encoder.embed_images([b"no"], ["6.jpg"])


def test_a_longer_context_reads_more(model_folder: Path):
    encoder = LoTLIPEncoder(lotlip.load(model_folder))
    texts = ["a red castle. " * 12, "a red castle. " * 12 + "a blue boat."]

    def both(context_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder.embed_texts(texts, context_length=context_length, official=False)

    short, num_cut = both(20)
    assert num_cut.all()
    assert torch.equal(short[0], short[1])
    long, num_cut = both(128)
    assert not num_cut.any()
    assert not torch.allclose(long[0], long[1])


@pytest.mark.parametrize(
    "model, error, told",
    [
        ("hf:/nowhere", CheckpointError, "hf:/nowhere is no folder of a Hugging Face model"),
        ("open_clip:ViT-B-16", ConfigError, "is not of the form open_clip:ARCHITECTURE:CHECKPOINT"),
        ("/nowhere", CheckpointError, "there is no model at /nowhere"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(model: str, error: type[Exception], told: str):
    with pytest.raises(error, match=told):
        encoder_of(model)


def test_open_clip_is_used_where_it_is(tmp_path: Path):
    try:
        import open_clip  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="needs open_clip, which does not import here"):
            encoder_of("open_clip:ViT-B-16:openai")
    else:
        with pytest.raises(CheckpointError, match="can't be loaded"):
            encoder_of(f"open_clip:ViT-B-16:{tmp_path / 'nothing.pt'}")


def test_the_command_prints_the_table(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
):
    make_docci(tmp_path)
    here = ["eval", str(model_folder), "--partial", "--cache", str(tmp_path / "cache")]

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*here, *arguments])
        out, error = capsys.readouterr()
        return code, out, error

    code, out, _ = run("--bench", f"docci={tmp_path}", "--protocol", "clean", "--context", "64")
    assert code == 0
    assert "DOCCI, clean: 95% intervals" in out
    assert "clean, 64 tokens" in out
    assert "at most 64 tokens" in out
    code, out, _ = run("--bench", f"docci={tmp_path}", "--json")
    assert code == 0
    assert len(json.loads(out)["models"][0]["results"]) == 2
    wrong: Sequence[tuple[Sequence[str], str]] = (
        (["--bench", "urban1k=" + str(tmp_path)], "has no caption/*.txt; get it from https://"),
        (["--bench", "urban1k=/nowhere"], "/nowhere is empty or does not exist"),
        (["--bench", "urban=x"], "there is no benchmark urban: choose from retrieval, scenes, dci"),
        (["--bench", "scenes=x", "--bench", "dci=y"], "one after the other"),
        (["--bench", f"docci={tmp_path}", "--context", "0"], "--context must be 1 or more"),
        (["--bench", f"docci={tmp_path}", "--workers", "-1"], "--workers must be 0 or more"),
        (["--bench", f"docci={tmp_path}", "--samples", "3"], "--samples is for data sets"),
        (["--bench", "scenes=x"], "--partial is for published benchmarks"),
        (["--bench", "docci=s3://nowhere/x"], "nowhere"),
    )
    for arguments, told in wrong:
        code, out, error = run(*arguments)
        assert (code, out) == (1, "")
        assert told in error
        assert error.count("\n") == 1
