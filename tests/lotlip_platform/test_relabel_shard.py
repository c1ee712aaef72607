"""One shard with new captions: what is asked, kept, dropped, and what a kill leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import relabel_a_shard
import yaml
from caption_server import MODEL, Asked, CaptionServer, answer, describe
from tiny_llava import make_tiny_llava

from lotlip.configuration import from_dict, to_dict
from lotlip.data.manifest import Manifest, Shard, read_manifest, write_manifest
from lotlip.data.sample import Sample
from lotlip.data.scenes import make_sample
from lotlip.data.shards import read_samples, shard_name, write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip.export import save
from lotlip.model import PRESETS, LoTLIP
from lotlip.relabel.asking import Answer, Place
from lotlip.tokenizer import Tokenizer
from lotlip_platform.caption_fit import CaptionFit
from lotlip_platform.captioners import captioner_of
from lotlip_platform.relabel_asking import Asking, Work
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_folder import RelabelFolder, Tally
from lotlip_platform.relabel_shard import relabel_shard
from lotlip_platform.relabel_vllm import Answered, NotYetError
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.shard_ledger import Entry, ShardLedger
from lotlip_platform.storage import open_store

Start = Callable[..., CaptionServer]


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[CaptionServer] = []

    def start(**options: Any) -> CaptionServer:
        servers.append(CaptionServer(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def make_source(folder: Path, samples: list[Sample]) -> Manifest:
    store = FolderStore(folder)
    manifest = Manifest(shards=(write_shard(store, shard_name(0), samples),))
    write_manifest(store, manifest)
    return manifest


def config_of(folder: Path, captioner: dict[str, Any], **values: Any) -> RelabelConfig:
    given = {
        "name": "run",
        "store": str(folder / "runs"),
        "source": str(folder / "source"),
        "target": str(folder / "target"),
        "captioner": {"name": "c", **captioner},
        **values,
    }
    return from_dict(RelabelConfig, given)


def endpoint(server: CaptionServer, **values: Any) -> dict[str, Any]:
    return {"endpoint": {"url": server.url, "model": MODEL, "max_attempts": 2, **values}}


def run(config: RelabelConfig, told: list[dict[str, Any]] | None = None) -> Entry:
    work = Work(config=config, folder=f"{config.store}/{config.name}", revision="r1")
    shard = read_manifest(open_store(config.source)).shards[0]
    tell = (told if told is not None else []).append
    return relabel_shard(work, shard, captioner_of(config), tell)


def written(config: RelabelConfig, shard: Shard) -> list[Sample]:
    return list(read_samples(open_store(config.target), Manifest(shards=(shard,))))


def dropped(config: RelabelConfig) -> list[dict[str, Any]]:
    return list(ShardLedger(open_store(f"{config.store}/{config.name}")).rejected())


def scenes(number: int) -> list[Sample]:
    return [make_sample(0, index) for index in range(number)]


def test_each_sample_gets_its_caption_and_how_it_was_made(start: Start, tmp_path: Path):
    make_source(tmp_path / "source", scenes(20))
    server = start()
    config = config_of(tmp_path, endpoint(server), generation={"max_tokens": 99})
    told: list[dict[str, Any]] = []
    entry = run(config, told)
    samples = written(config, entry.shard)
    assert [sample.key for sample in samples] == [sample.key for sample in scenes(20)]
    said = {describe(asked.what) for asked in server.asked}
    assert {sample.long["c"] for sample in samples} == said
    for sample, before in zip(samples, scenes(20), strict=True):
        assert sample.image == before.image
        assert sample.long["scenes"] == before.long["scenes"]
        assert {**sample.extra, "captioned_by": None} == {**before.extra, "captioned_by": None}
        how = sample.extra["captioned_by"]["c"]
        assert how["prompt"] in config.prompts.texts
        assert (how["model"], how["revision"], how["max_tokens"]) == (MODEL, "r1", 99)
    tally = Tally(**entry.counts)
    assert (tally.num_samples, tally.num_captions, tally.num_answers) == (20, 20, 20)
    assert tally.input_tokens == 600 * 20
    assert sum(event.get("input_tokens", 0) for event in told) == tally.input_tokens
    assert entry.captions["long.c"]["num"] == entry.captions["short"]["num"] == 20
    assert dropped(config) == []
    names = FolderStore(tmp_path / "runs" / "run").list()
    assert names == ["shards/shard-000000.json"], "no answers left"


def test_several_captions_of_a_sample_have_names_and_prompts_of_their_own(
    start: Start, tmp_path: Path
):
    make_source(tmp_path / "source", scenes(8))
    prompts = {"per_sample": 2, "texts": {str(i): f"Describe it {i}." for i in range(4)}}
    config = config_of(tmp_path, endpoint(start()), prompts=prompts)
    for sample in written(config, run(config).shard):
        assert set(sample.long) == {"scenes", "c", "c-2"}
        made = sample.extra["captioned_by"]
        assert made["c"]["prompt"] != made["c-2"]["prompt"]


def test_what_fails_the_audit_is_asked_again_with_another_prompt_or_dropped(
    start: Start, tmp_path: Path
):
    make_source(tmp_path / "source", scenes(12))
    image_of = {i: make_sample(0, i).image for i in range(12)}

    def fault(asked: Asked) -> tuple[int, dict[str, str], bytes] | None:
        image = asked.image.partition(";base64,")[2]
        place = next(i for i, known in image_of.items() if _b64(known) == image)
        refused = json.dumps(answer("I'm sorry, I can't assist with that.")).encode()
        others = [a for a in server.asked if a.image == asked.image]
        if place == 3 or (place == 5 and len(others) == 1):
            return 200, {}, refused
        return None

    server = start(fault=fault)
    config = config_of(tmp_path, endpoint(server), audit={"max_dropped_share": 0.5})
    entry = run(config)
    samples = written(config, entry.shard)
    assert len(samples) == 12, "each sample is there, with a new caption or without"
    assert [i for i, sample in enumerate(samples) if "c" not in sample.long] == [3]
    assert entry.reasons["refusal"] == 3
    assert len(server.asked) == 14
    assert len({(a.image, a.prompt) for a in server.asked}) == 14, "never the same question"
    (record,) = dropped(config)
    assert (record["index"], record["reasons"]) == (3, ["length", "refusal"])
    assert record["text"].startswith("I'm sorry")
    names = ("num_captions", "num_dropped", "num_answers")
    assert [entry.counts[name] for name in names] == [11, 1, 14]


def _b64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode()


def test_more_dropped_captions_than_allowed_stop_it_and_cost_no_more(start: Start, tmp_path: Path):
    make_source(tmp_path / "source", scenes(40))
    server = start(fault=lambda asked: (400, {}, b'{"error": {"message": "no images, please"}}'))
    config = config_of(tmp_path, endpoint(server, concurrency=2))
    with pytest.raises(
        DataError, match=r"3 of 40 captions got no answer, more than audit\.max"
    ) as e:
        run(config)
    assert "no images, please" in str(e.value)
    assert len(server.asked) <= 6
    assert not (tmp_path / "target").exists()


def test_samples_that_cannot_be_used_are_recorded(start: Start, tmp_path: Path):
    samples = scenes(30)
    samples[4] = dataclasses.replace(samples[4], image=b"not an image")
    make_source(tmp_path / "source", samples)
    config = config_of(tmp_path, endpoint(start()))
    entry = run(config)
    assert len(written(config, entry.shard)) == 30
    (record,) = dropped(config)
    assert (record["index"], record["key"]) == (4, samples[4].key)
    assert (entry.counts["num_captions"], entry.counts["num_unusable"]) == (29, 1)


def test_the_same_caption_too_often_is_dropped(start: Start, tmp_path: Path):
    make_source(tmp_path / "source", scenes(10))
    same = json.dumps(answer(describe("ab" * 32))).encode()
    server = start(fault=lambda asked: (200, {}, same))
    audit = {"max_duplicates": 4, "max_dropped_share": 0.6}
    config = config_of(tmp_path, endpoint(server), audit=audit)
    entry = run(config)
    assert [("c" in s.long) for s in written(config, entry.shard)] == [True] * 4 + [False] * 6
    assert entry.reasons == {"duplicate": 6}


def start_process(config: RelabelConfig, folder: Path) -> subprocess.Popen[bytes]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    return subprocess.Popen([sys.executable, relabel_a_shard.__file__, str(path)])


def test_after_kill_minus_nine_only_what_was_in_flight_is_asked_again(
    start: Start, s3_env: str, tmp_path: Path
):
    make_source(tmp_path / "source", scenes(120))
    server = start(seconds=0.03)
    from lotlip_platform.storage import ensure_bucket

    ensure_bucket("s3://relabel-kill")
    places = {"store": "s3://relabel-kill/runs", "target": "s3://relabel-kill/target"}
    config = config_of(tmp_path, endpoint(server, concurrency=6), **places)
    for so_far in (25, 60):
        process = start_process(config, tmp_path)
        deadline = time.monotonic() + 60
        while len(server.asked) < so_far and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not FolderStore(tmp_path / "target").list(), "nothing is committed yet"
    entry = run(config)
    asked = Counter(one.what for one in server.asked)
    assert len(asked) == 120
    assert 0 < sum(asked.values()) - 120 <= 2 * 6
    captions = [sample.long["c"] for sample in written(config, entry.shard)]
    assert len(set(captions)) == 120
    undisturbed = dataclasses.replace(config, name="other", target=str(tmp_path / "undisturbed"))
    other = run(undisturbed)
    assert [s.long["c"] for s in written(undisturbed, other.shard)] == captions


def test_greedy_captions_of_a_killed_process_are_those_of_an_undisturbed_one(tmp_path: Path):
    make_source(tmp_path / "source", scenes(60))
    model = make_tiny_llava(tmp_path / "tiny")
    audit = {"min_tokens": 0, "max_repetition": 1.0, "max_asks": 1}
    config = config_of(
        tmp_path,
        {"huggingface": {"model": str(model), "batch_size": 7}},
        generation={"max_tokens": 20},
        audit=audit,
    )
    process = start_process(config, tmp_path)
    answers = FolderStore(tmp_path / "runs" / "run")
    deadline = time.monotonic() + 60
    while len(answers.list("answers/")) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(answers.list("answers/")) < 9
    entry = run(config)
    other = dataclasses.replace(config, name="other", target=str(tmp_path / "undisturbed"))
    assert run(other).shard.sha256 == entry.shard.sha256


def test_a_shard_that_was_written_but_not_committed_is_written_again_without_asking(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_source(tmp_path / "source", scenes(10))
    server = start()
    config = config_of(tmp_path, endpoint(server))

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RelabelFolder, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    first = hashlib.sha256((tmp_path / "target" / shard_name(0)).read_bytes()).hexdigest()
    assert run(config).shard.sha256 == first
    assert len(server.asked) == 10


def test_answers_that_cannot_be_kept_end_it(start: Start, tmp_path: Path):
    make_source(tmp_path / "source", scenes(10))
    config = config_of(tmp_path, endpoint(start()))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run").write_text("in the way")
    with pytest.raises(DataError, match=r"runs/run/.*(Not a directory|File exists)"):
        run(config)


def test_a_model_tells_which_captions_do_not_fit_their_images(start: Start, tmp_path: Path):
    """The model of random weights has opinions; that they are heeded is what is tested."""
    make_source(tmp_path / "source", scenes(20))
    model = save_tiny_model(tmp_path / "model")
    server = start()
    fit = CaptionFit(model)
    texts = [describe(Asked(body_of(s, "Describe it."), 0, 0).what) for s in scenes(20)]
    cosines = fit.similarities(zip((s.image for s in scenes(20)), texts, strict=True))
    middle = sorted(cosines)[10]
    config = config_of(
        tmp_path,
        endpoint(server),
        prompts={"texts": {"one": "Describe it."}},
        audit={
            "model": model,
            "min_similarity": middle,
            "max_asks": 1,
            "max_dropped_share": 0.9,
        },
    )
    entry = run(config)
    assert entry.reasons["similarity"] == 10
    kept = [i for i, s in enumerate(written(config, entry.shard)) if "c" in s.long]
    assert kept == [i for i, cosine in enumerate(cosines) if cosine >= middle]
    assert {record["reasons"][0] for record in dropped(config)} == {"similarity"}


def body_of(sample: Sample, prompt: str) -> dict[str, Any]:
    url = f"data:image/jpeg;base64,{_b64(sample.image)}"
    content = [{"image_url": {"url": url}}, {"text": prompt}]
    return {"messages": [{"content": content}]}


def save_tiny_model(folder: Path) -> str:
    preset = PRESETS["scenes"]
    text = dataclasses.replace(preset.text, vocab_size=300)
    image = dataclasses.replace(preset.image, pretrained="", locked_layers=0)
    model = LoTLIP(dataclasses.replace(preset, text=text, image=image))
    model.tokenizer = Tokenizer.learn(
        [s.long["scenes"] for s in scenes(20)],
        vocab_size=300,
        num_corner_tokens=text.num_corner_tokens,
        context_length=text.context_length,
    )
    save(model, folder)
    return str(folder)


def test_a_shard_that_is_committed_is_not_asked_about_again(start: Start, tmp_path: Path):
    make_source(tmp_path / "source", scenes(10))
    server = start()
    config = config_of(tmp_path, endpoint(server))
    entry = run(config)
    before = (tmp_path / "target" / entry.shard.name).stat().st_mtime_ns
    assert run(config) == entry
    assert len(server.asked) == 10
    assert (tmp_path / "target" / entry.shard.name).stat().st_mtime_ns == before


def test_what_was_refused_for_good_is_remembered_and_the_rest_asked_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_source(tmp_path / "source", scenes(40))
    first: list[str] = []

    def fault(asked: Asked) -> tuple[int, dict[str, str], bytes] | None:
        first[:] = first or [asked.what]
        return (400, {}, b'{"error": {"message": "no"}}') if asked.what == first[0] else None

    server = start(fault=fault)
    config = config_of(tmp_path, endpoint(server))

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RelabelFolder, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    entry = run(config)
    assert len(server.asked) == 40
    assert (entry.counts["num_captions"], entry.counts["num_dropped"]) == (39, 1)


def test_a_run_that_another_process_has_taken_writes_nothing(start: Start, tmp_path: Path):
    make_source(tmp_path / "source", scenes(5))
    config = config_of(tmp_path, endpoint(start()))
    folder = RunFolder(open_store(f"{config.store}/{config.name}"))
    folder.write_owner({"token": "other"})
    shard = read_manifest(open_store(config.source)).shards[0]
    work = Work(config=config, folder=folder.uri, revision="r1", token="mine")
    with pytest.raises(CheckpointError, match="taken over"):
        relabel_shard(work, shard, captioner_of(config), lambda event: None)
    assert not (tmp_path / "target").exists()


def test_a_run_is_by_one_revision_of_the_model(tmp_path: Path):
    folder = RelabelFolder(FolderStore(tmp_path))
    folder.claim_revision("r1")
    folder.claim_revision("r1")
    with pytest.raises(
        ConfigError, match="was begun with revision r1 of the model, which now is r2"
    ):
        folder.claim_revision("r2")


def test_rounds_that_others_answer_are_told_apart(start: Start, tmp_path: Path):
    """What `captioner.vllm` asks of a shard, see `relabel_vllm`."""
    make_source(tmp_path / "source", scenes(6))
    config = config_of(tmp_path, endpoint(start()), audit={"max_dropped_share": 0.5})
    work = Work(config=config, folder=f"{config.store}/{config.name}", revision="r1")
    shard = read_manifest(open_store(config.source)).shards[0]
    log = RelabelFolder(open_store(work.folder)).answers(shard.name)
    refused = Answer(place=Place(0, 2, 0), prompt="detailed", text="I'm sorry, I can't see.")
    texts = [
        Answer(place=Place(0, i, 0), prompt="detailed", text=describe("ab" * 32)) for i in (0, 1)
    ]
    log.keep([refused, *texts]).result()

    def asking(ask: int) -> Asking:
        return Asking(work, shard, Answered(ask), log, lambda event: None)

    assert [r.place.sample for r in asking(0).unanswered(0)] == [3, 4, 5]
    (again,) = asking(1).unanswered(1)
    assert again.place == Place(1, 2, 0)
    with pytest.raises(NotYetError):
        asking(0).ask_all()
    log.close()
