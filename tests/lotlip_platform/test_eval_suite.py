"""Published benchmarks by real models: features that are kept, tables, runs in MLflow."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from published_sets import (
    make_cifar,
    make_dci,
    make_docci,
    make_imagenet,
    make_karpathy,
    make_urban1k,
)
from safetensors.torch import load_file, save_file
from tiny_clip import CONTEXT_LENGTH, make_tiny_clip, make_tiny_siglip
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoTokenizer

import lotlip
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip.evaluate.encoders import HuggingFaceEncoder, LoTLIPEncoder, _told_transforms
from lotlip.evaluate.published.suite import PROTOCOLS
from lotlip_platform import embeddings
from lotlip_platform.cli import main
from lotlip_platform.eval_config import SuiteConfig, SuiteTracking
from lotlip_platform.eval_models import encoder_of
from lotlip_platform.eval_suite import evaluate_suite
from lotlip_platform.eval_table import report_text
from lotlip_platform.evaluate import evaluate_on
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
        partial=True,
        cache=str(tmp_path / "cache"),
        tracking=SuiteTracking(uri=mlflow_server),
    )


def test_benchmarks_are_answered_told_and_recorded(config: SuiteConfig, model_folder: Path):
    suite = evaluate_suite(config, Shown(), quiet)
    (evaluated,) = suite.models
    asked = [(r.asked.benchmark, r.asked.protocol.name) for r in evaluated.results]
    assert asked == [(b, p) for b in config.benches for p in PROTOCOLS]
    by_name = dict(zip(asked, evaluated.results, strict=True))
    clean = by_name["dci", "clean"]
    assert (clean.asked.num_images, clean.asked.context_length) == (12, 128), "all that it has"
    assert "headless_text_to_image_r1" in clean.answered.answers
    assert "headless_text_to_image_r1" not in by_name["dci", "official"].answered.answers
    assert set(by_name["cifar10", "clean"].answered.answers) == {"top1", "top5"}

    table = report_text(suite.models, suite.differences)
    own = next(line for line in table.splitlines() if line.startswith(str(model_folder)))
    assert own.count("not run") == 6, "the long ones that were not asked"
    assert "official, 128 tokens" in own
    assert "LoTLIP B/16 (100M)" in table
    assert "headless less the same whole" in table
    assert "data loaders do; of equal scores the first wins; at most 128 tokens" in table
    assert "equal texts are right for each other's images, ties count against the model" in table
    assert "classes of equal names are right for each other's images, ties count" in table
    assert "64.1 / 62.6" in table
    assert "* of DCI 12 images of 7,805 were asked" in table
    assert "README of github.com/wuw2019/LoTLIP at ac95a8d, 2024-11-26" in table

    client = mlflow.MlflowClient(config.tracking.uri)
    run = client.get_run(suite.run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "evaluations"
    share = clean.answered.shares["text_to_image_r5"].value
    assert run.data.metrics["eval/dci/clean-128-part/text_to_image_r5"] == pytest.approx(share)
    assert run.data.tags["weights"] == evaluated.digest
    files = {file.path for file in client.list_artifacts(suite.run_id)}
    assert files == {"figures", "results.json", "table.md"}
    pictures = {file.path for file in client.list_artifacts(suite.run_id, "figures")}
    names = ("attention.html", "attention.png", "sentences_dci.png")
    assert pictures == {f"figures/{name}" for name in names}
    kept = json.loads(Path(client.download_artifacts(suite.run_id, "results.json")).read_text())
    assert kept["models"][0]["results"][0]["of_images"] == 7805


def test_a_data_set_is_asked_as_in_training_and_of_other_peoples_models(
    tmp_path: Path, model_folder: Path, scenes_folder: Path, mlflow_server: str
):
    config = SuiteConfig(
        model=str(model_folder),
        benches={"scenes": str(scenes_folder), "retrieval": str(scenes_folder)},
        against=f"hf:{make_tiny_clip(tmp_path / 'clip')}",
        cache=str(tmp_path / "cache"),
        tracking=SuiteTracking(uri=mlflow_server),
    )
    suite = evaluate_suite(config, Shown(), quiet)
    ours, theirs = (one.results for one in suite.models)
    model = lotlip.load(model_folder)
    for name, result in zip(config.benches, ours, strict=True):
        report = evaluate_on(model, name, str(scenes_folder))
        assert result.answered.shares == report.metrics
        assert not result.asked.is_part
    assert theirs[0].answered.shares.keys() == ours[0].answered.shares.keys()
    assert ours[0].asked.images_digest == theirs[0].asked.images_digest
    table = report_text(suite.models, suite.differences)
    assert "Long texts" not in table, "no published benchmark was asked"
    official = dataclasses.replace(config, protocols=("official",), against="")
    (again,) = evaluate_suite(official, Shown(), quiet).models
    assert again.results[0].asked.digest != ours[0].asked.digest, "other texts"


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
    assert first.models[0].results[0].answered.shares == second.models[0].results[0].answered.shares
    place = Path(config.cache) / min(open_store(config.cache).list())
    whole = place.read_bytes()
    directory = whole.index(b"PK\1\2")
    unknown = whole[: directory + 10] + b"\x63" + whole[directory + 11 :]  # a way to compress
    for broken in (b"", b"PK", whole[:200], whole[:-100], unknown):
        place.write_bytes(broken)
        third = evaluate_suite(config, Shown(), quiet)
        assert third.models[0].results[0].answered.shares == (
            first.models[0].results[0].answered.shares
        )
        assert place.read_bytes() == whole, "made anew"
    place.unlink()
    picture = next(Path(config.benches["dci"]).rglob("sa_4.jpg"))
    picture.write_bytes(picture.read_bytes()[:400])
    with pytest.raises(
        DataError, match=r"not fetched whole: .*/dci/.*photos/sa_4\.jpg: image does"
    ):
        evaluate_suite(config, Shown(), quiet)


def test_an_evaluation_that_was_killed_goes_on(config: SuiteConfig, tmp_path: Path):
    # The prompts of a thousand classes are fifty pieces.
    make_imagenet(tmp_path / "imagenet", v2=False, num_classes=12)
    command = ["eval", config.model, "--bench", f"imagenet={tmp_path / 'imagenet'}", "--partial"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": config.tracking.uri}
    with subprocess.Popen(
        [sys.executable, "-m", "lotlip_platform", *command, "--cache", config.cache],
        env=environment,
        stderr=subprocess.DEVNULL,
    ) as process:
        store = open_store(config.cache)
        while len(store.list()) < 3 and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = store.list()
    assert 2 < len(kept) < 50
    for name in kept:
        with np.load(io.BytesIO(store.read(name))) as piece:
            assert piece["features"].ndim == 2, "what is there is whole"
    only = dataclasses.replace(config, benches={"imagenet": str(tmp_path / "imagenet")})

    def look(title: str, done: int, total: int) -> None:
        raise KeyboardInterrupt(f"{done} of {total}")

    # 12 images and, read in two ways, 1,000 classes, of which each piece has 20.
    with pytest.raises(KeyboardInterrupt, match=f"{12 + 20 * (len(kept) - 1)} of 2012"):
        evaluate_suite(only, look, quiet)


def test_workers_of_a_cluster_embed_the_same(config: SuiteConfig, s3_env: str):
    ensure_bucket("s3://evals")
    here = evaluate_suite(config, Shown(), quiet)
    there = dataclasses.replace(config, cache="s3://evals/cache", num_workers=2)
    shown = Shown()
    on_ray = evaluate_suite(there, shown, quiet)
    assert shown.num_new > 0
    for one, other in zip(here.models[0].results, on_ray.models[0].results, strict=True):
        assert one.answered.shares == other.answered.shares


@pytest.mark.parametrize(
    "num_gpus, num_workers, share", [(0, 4, 0), (8, 4, 1), (4, 4, 1), (3, 4, 0.5), (2, 5, 1 / 3)]
)
def test_workers_share_gpus_so_that_all_of_them_run(num_gpus: int, num_workers: int, share: float):
    assert embeddings._gpus_each(num_gpus, num_workers) == share
    if num_gpus:
        assert num_gpus * int(1 / share + 1e-9) >= num_workers


def test_two_models_are_compared_on_the_same_questions(config: SuiteConfig, tmp_path: Path):
    other = make_tiny_clip(tmp_path / "clip")
    suite = evaluate_suite(dataclasses.replace(config, against=f"hf:{other}"), Shown(), quiet)
    ours, theirs = suite.models
    assert theirs.results[1].asked.context_length == CONTEXT_LENGTH
    assert len(suite.differences) == len(ours.results)
    medians = [
        one.results[0].answered.medians["text_to_image_median_rank"].value for one in suite.models
    ]
    median = suite.differences[0]["text_to_image_median_rank"]
    assert median.value == medians[0] - medians[1]
    difference = suite.differences[0]["text_to_image_r5"]
    values = [one.results[0].answered.shares["text_to_image_r5"].value for one in suite.models]
    assert difference.value == pytest.approx(values[0] - values[1])
    table = report_text(suite.models, suite.differences)
    assert f"difference to hf:{other}" in table
    row = next(line for line in table.splitlines() if line.startswith("headless_text_to_image_r1"))
    assert row.split()[1:4] == ["11", "/", "0"], "the other one reads no caption whole"
    metrics = mlflow.MlflowClient(config.tracking.uri).get_run(suite.run_id).data.metrics
    theirs_r5 = metrics[f"against/dci/official-{CONTEXT_LENGTH}-part/text_to_image_r5"]
    assert theirs_r5 == pytest.approx(values[1])
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
    with pytest.raises(ConfigError, match=r"2 tokens around a text: it can't read 2"):
        encoder.embed_texts(["a castle"], context_length=2, official=False)
    with pytest.raises(DataError, match=r"6\.jpg: image does not decode"):
        encoder.embed_images([b"no"], ["6.jpg"])


def test_a_siglip_reads_texts_padded_to_its_full_length(tmp_path: Path):
    folder = make_tiny_siglip(tmp_path / "siglip")
    assert "attention_mask" not in AutoTokenizer.from_pretrained(folder)("a castle")
    encoder = HuggingFaceEncoder(str(folder))
    from transformers import SiglipModel, SiglipProcessor

    model = SiglipModel.from_pretrained(folder).eval()
    processor = SiglipProcessor.from_pretrained(folder)
    texts = ["a castle", "two trees and a boat", ""]
    broken, _ = encoder.embed_texts(
        ["A \ud83dcastle"], context_length=CONTEXT_LENGTH, official=False
    )

    def expected(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out = model.get_text_features(input_ids=ids)
        return normalize(out if isinstance(out, torch.Tensor) else out.pooler_output, dim=-1)

    found, is_cut = encoder.embed_texts(texts, context_length=CONTEXT_LENGTH, official=False)
    padded = processor.tokenizer(
        texts, padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt"
    )["input_ids"]
    torch.testing.assert_close(found, expected(padded), atol=1e-5, rtol=0)
    assert not is_cut.any()
    torch.testing.assert_close(broken[0], found[0])  # in lower case, without half a pair
    found, is_cut = encoder.embed_texts(texts, context_length=10, official=False)
    pad = processor.tokenizer.pad_token_id
    padded[:, 10:] = pad
    torch.testing.assert_close(found, expected(padded), atol=1e-5, rtol=0)
    assert is_cut.tolist() == [False, True, False]

    path = make_urban1k(tmp_path) / "Urban1k" / "image" / "5.jpg"
    pixels = processor.image_processor(Image.open(path), return_tensors="pt")
    with torch.no_grad():
        out = model.get_image_features(**pixels)
    image = normalize(out if isinstance(out, torch.Tensor) else out.pooler_output, dim=-1)
    seen = encoder.embed_images([path.read_bytes()], ["5.jpg"])
    torch.testing.assert_close(seen, image, atol=1e-5, rtol=0)


def test_a_siglip_2_whose_tokenizer_keeps_capitals_reads_lower_case(tmp_path: Path):
    folder = make_tiny_siglip(tmp_path / "siglip")
    for name, (of, becomes) in {
        "tokenizer_config.json": ("tokenizer_class", "GemmaTokenizer"),  # as in some folders
        "tokenizer.json": ("normalizer", None),
    }.items():
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, of: becomes}))
    texts = ["A Castle", "a castle"]
    ids = AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    assert ids[0] != ids[1]
    encoder = HuggingFaceEncoder(str(folder))
    found, _ = encoder.embed_texts(texts, context_length=CONTEXT_LENGTH, official=False)
    assert torch.equal(found[0], found[1])


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
        ("hf:/nowhere", CheckpointError, "hf:/nowhere is no folder, on this machine's disk, of a"),
        ("hf:s3://b/clip", CheckpointError, "hf:s3://b/clip is no folder, on this machine's disk"),
        ("open_clip:ViT-B-16", ConfigError, "is not of the form open_clip:ARCHITECTURE:CHECKPOINT"),
        ("/nowhere", CheckpointError, "there is no model at /nowhere"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(model: str, error: type[Exception], told: str):
    with pytest.raises(error, match=told):
        encoder_of(model)


def test_a_folder_without_its_tokenizer_is_refused(tmp_path: Path):
    folder = make_tiny_clip(tmp_path / "clip")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"can't be loaded|can't tell castle from garden"):
        encoder_of(f"hf:{folder}")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"can't be loaded|can't tell castle from garden"):
        encoder_of(f"hf:{folder}")


def test_a_folder_whose_weights_are_named_otherwise_is_refused(tmp_path: Path):
    folder = make_tiny_clip(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    save_file({f"module.{name}": value for name, value in weights.items()}, folder / "w")
    (folder / "w").rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights .*logit_scale.*were its keys"):
        encoder_of(f"hf:{folder}")
    weights["text_projection.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"can't be loaded|lacks 1 weights"):
        encoder_of(f"hf:{folder}")


def test_the_same_folder_has_the_same_digest_elsewhere_and_another_one_another(tmp_path: Path):
    folder = make_tiny_clip(tmp_path / "clip")
    digest = encoder_of(f"hf:{folder}").digest
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / ".cache").mkdir()
    (copy / ".cache" / "of_the_hub").write_text("x")
    assert encoder_of(f"hf:{copy}").digest == digest
    weights = load_file(folder / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert encoder_of(f"hf:{copy}").digest != digest


def test_transforms_are_told_without_their_places_in_memory():
    def convert() -> None:
        pass

    told = _told_transforms([convert, 3])
    assert "convert" in told
    assert "0x" not in told


def test_open_clip_is_told_to_be_missing():
    if importlib.util.find_spec("open_clip"):
        pytest.skip("open_clip is installed")
    with pytest.raises(ConfigError, match="needs open_clip, which does not import here"):
        encoder_of("open_clip:ViT-B-16:openai")


def test_a_model_of_open_clip_gives_what_open_clip_gives(tmp_path: Path):
    open_clip = pytest.importorskip("open_clip")
    tower = {"layers": 1, "width": 32}
    text = {**tower, "context_length": 16, "vocab_size": 49408, "heads": 2}
    image = {**tower, "image_size": 32, "head_width": 16, "patch_size": 16}
    architecture = {"embed_dim": 16, "vision_cfg": image, "text_cfg": text}
    (tmp_path / "tiny.json").write_text(json.dumps(architecture))
    open_clip.add_model_config(tmp_path)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny")
    torch.save(model.eval().state_dict(), tmp_path / "tiny.pt")
    encoder = encoder_of(f"open_clip:tiny:{tmp_path / 'tiny.pt'}")
    texts = ["a castle", "", "a " * 14, "a " * 15]
    found, is_cut = encoder.embed_texts(texts, context_length=16, official=False)
    path = make_urban1k(tmp_path) / "Urban1k" / "image" / "5.jpg"
    seen = encoder.embed_images([path.read_bytes()], ["5.jpg"])
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer("tiny")(texts))
        pictured = model.encode_image(preprocess(Image.open(path).convert("RGB"))[None])
    torch.testing.assert_close(found, normalize(expected, dim=-1))
    torch.testing.assert_close(seen, normalize(pictured, dim=-1))
    assert is_cut.tolist() == [False, False, False, True], "with a start and an end"
    shorter, is_cut = encoder.embed_texts(texts, context_length=9, official=False)
    ids = open_clip.get_tokenizer("tiny")(texts, context_length=9)
    with torch.no_grad():
        expected = model.encode_text(torch.nn.functional.pad(ids, (0, 7)))
    torch.testing.assert_close(shorter, normalize(expected, dim=-1))
    assert is_cut.tolist() == [False, False, True, True]
    name = f"open_clip:tiny:{tmp_path}/tiny.pt"
    lines = [
        "import open_clip",
        f"open_clip.add_model_config({str(tmp_path)!r})",
        "from lotlip_platform.eval_models import encoder_of",
        f"print(encoder_of({name!r}).digest)",
    ]
    told = subprocess.check_output([sys.executable, "-c", "\n".join(lines)], text=True)
    assert told.split()[-1] == encoder.digest, "in another process"
    with pytest.raises(CheckpointError, match="can't be loaded"):
        encoder_of(f"open_clip:tiny:{tmp_path / 'nothing.pt'}")


@pytest.mark.usefixtures("mlflow_file")
def test_the_command_prints_the_table(
    tmp_path: Path, model_folder: Path, scenes_folder: Path, capsys: pytest.CaptureFixture[str]
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
    scenes = ["--bench", f"scenes={scenes_folder}", "--samples", "40"]
    code, out, _ = run("--bench", f"docci={tmp_path}", *scenes)
    assert code == 0
    lines = out.splitlines()
    heading = lines.index("Data sets: recall@1, image to text / text to image")
    assert lines[heading + 1].split() == [
        "model",
        "protocol",
        "scenes,",
        "long",
        "scenes,",
        "short",
    ]
    assert "* of scenes 40 images of 60 were asked" in out
    code, out, _ = run("--bench", f"docci={tmp_path}", *scenes, "--json")
    assert code == 0
    results = json.loads(out)["models"][0]["results"]
    asked = [(one["benchmark"], one["protocol"]["name"]) for one in results]
    assert asked == [("docci", "official"), ("docci", "clean"), ("scenes", "clean")]
    wrong: Sequence[tuple[Sequence[str], str]] = (
        (["--bench", "urban1k=" + str(tmp_path)], "has no caption/*.txt; get it from https://"),
        (["--bench", "urban1k=/nowhere"], "/nowhere is empty or does not exist"),
        (["--bench", "urban=x"], "there is no benchmark urban: choose from retrieval, scenes, dci"),
        (
            ["--bench", f"docci={tmp_path}", "--context", "-1"],
            "context_length=-1 must be 0 or more",
        ),
        (["--bench", f"docci={tmp_path}", "--workers", "-1"], "num_workers=-1 must be 0 or more"),
        (["--bench", f"docci={tmp_path}", "--samples", "3"], "num_samples is for data sets"),
        (["--bench", "scenes=x"], "partial is for published benchmarks"),
        (["--bench", "docci=s3://nowhere/x"], "nowhere"),
        ([], "; a model needs a benchmark: --bench NAME=URI"),
        (["--bench", f"docci={tmp_path}", "--context", "2"], "context_length must be 5 or more"),
        (["--bench", f"docci={tmp_path}", "--cache", __file__], "Not a directory; choose another"),
        (["--bench", f"docci={tmp_path}", "--cache", "s3://nowhere/x"], "nowhere"),
        (["--bench", f"docci={__file__}"], "test_eval_suite.py is a file: give the folder that"),
        (["benches.dci=x"], "benches.dci=x is for a config, and there is no config "),
    )
    for arguments, told in wrong:
        code, out, error = run(*arguments)
        assert (code, out) == (1, "")
        assert told in error
        assert error.count("\n") == 1

    config = tmp_path / "eval.yaml"
    config.write_text(f"model: {model_folder}\nbenches: {{docci: {tmp_path}}}\npartial: true\n")
    code = main(["eval", str(config), f"cache={tmp_path / 'cache'}", "protocols=[clean]", "--json"])
    out, _ = capsys.readouterr()
    assert code == 0
    (asked,) = json.loads(out)["models"][0]["results"]
    assert (asked["benchmark"], asked["num_images"]) == ("docci", 12)
    assert main(["eval", str(config), "--partial"]) == 1
    assert "partial is given as an option, but" in capsys.readouterr().err
