"""Captions through Ray Data's stages for language models; an HTTP stage stands where the engine of
vLLM would, which can't be installed here. What goes into the engine and comes out is ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from caption_server import MODEL, Asked, CaptionServer, answer, describe

from lotlip.configuration import from_dict
from lotlip.data.manifest import read_manifest
from lotlip.data.scenes import make_sample
from lotlip.data.shards import read_samples
from lotlip.errors import ConfigError
from lotlip_platform import captioners, relabel_vllm
from lotlip_platform.captioners import captioner_of
from lotlip_platform.datasets import make_scenes
from lotlip_platform.relabel import relabel
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_vllm import check_vllm, from_engine, processor_of, to_engine
from lotlip_platform.storage import open_store

NUM_SAMPLES = 60


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def server() -> Iterator[CaptionServer]:
    server = CaptionServer()
    yield server
    server.end()


@pytest.fixture
def config(tmp_path: Path) -> RelabelConfig:
    make_scenes(
        str(tmp_path / "source"),
        num_samples=NUM_SAMPLES,
        shard_size=30,
        on_progress=lambda *_: None,
    )
    (tmp_path / "model").mkdir()
    vllm = {"model": str(tmp_path / "model"), "batch_size": 8, "shards_at_once": 1}
    given = {
        "name": "by-vllm",
        "store": str(tmp_path / "runs"),
        "source": str(tmp_path / "source"),
        "target": str(tmp_path / "target"),
        "captioner": {"name": "v", "vllm": vllm},
        "audit": {"max_dropped_share": 0.2, "max_asks": 1},
    }
    return from_dict(RelabelConfig, given)


@pytest.fixture
def engine(server: CaptionServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the server where the engine is."""

    def processor(config: RelabelConfig, revision: str) -> Callable[[Any], Any]:
        from ray.data.llm import HttpRequestProcessorConfig, build_processor

        def preprocess(row: dict[str, Any]) -> dict[str, Any]:
            taken = to_engine(row, config)
            body = {"model": MODEL, "messages": taken["messages"], **taken["sampling_params"]}
            return {**{k: row[k] for k in relabel_vllm._OF_QUESTION}, "payload": body}

        def postprocess(row: dict[str, Any]) -> dict[str, Any]:
            response = row["http_response"]
            text = response["choices"][0]["message"]["content"]
            made = {
                **row,
                "generated_text": text,
                "num_generated_tokens": response["usage"]["completion_tokens"],
                "num_input_tokens": response["usage"]["prompt_tokens"],
            }
            out = from_engine(made, config)
            return {**out, "__inference_error__": "engine died" if text == "FAIL" else ""}

        http = HttpRequestProcessorConfig(
            url=f"{server.url}/chat/completions", batch_size=8, concurrency=1
        )
        return build_processor(http, preprocess=preprocess, postprocess=postprocess)

    monkeypatch.setattr(relabel_vllm, "processor_of", processor)
    monkeypatch.setattr(captioners, "check_vllm", lambda: None)


def test_questions_become_captions(config: RelabelConfig, server: CaptionServer, engine: None):
    images = [make_sample(0, i).image for i in range(NUM_SAMPLES)]

    def fault(asked: Asked) -> tuple[int, dict[str, str], bytes] | None:
        import base64
        import json

        image = images.index(base64.b64decode(asked.image.partition(";base64,")[2]))
        if image == 4:
            return 200, {}, json.dumps(answer("I'm sorry, I can't see the image.")).encode()
        if image == 40:
            return 200, {}, json.dumps(answer("FAIL")).encode()
        return None

    server.fault = fault
    result = relabel(config, lambda event: None)
    store = open_store(config.target)
    samples = list(read_samples(store, read_manifest(store)))
    assert len(samples) == NUM_SAMPLES
    assert [i for i, s in enumerate(samples) if "v" not in s.long] == [4, 40]
    said = {describe(asked.what) for asked in server.asked}
    assert {s.long["v"] for s in samples if "v" in s.long} <= said
    assert samples[0].extra["captioned_by"]["v"]["by"] == "vllm"
    assert result.tally.num_captions == NUM_SAMPLES - 2
    assert result.failed["refusal"] == 1
    assert result.failed["no answer"] == 1
    assert len(server.asked) == NUM_SAMPLES
    assert result.account["relabel/input_tokens"] == 600 * (NUM_SAMPLES - 1)
    asked = Counter(one.what for one in server.asked)
    assert max(asked.values()) == 1, "nothing was asked twice"


def test_the_engine_is_set_up_as_the_config_says(config: RelabelConfig):
    processor = processor_of(config, "sha256:1")
    assert callable(processor)
    row = {
        "shard": "s",
        "ask": 0,
        "sample": 3,
        "draw": 0,
        "prompt": "one",
        "text": "Describe.",
        "seed": 5,
        "image": make_sample(0, 3).image,
    }
    taken = to_engine(row, config)
    assert taken["sampling_params"] == {
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 512,
        "seed": 5,
    }
    image, text = taken["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert text == {"type": "text", "text": "Describe."}
    made = {"generated_text": " A castle ", "num_generated_tokens": 512, "num_input_tokens": 600}
    answered = from_engine({**taken, **made}, config)
    assert (answered["answer"], answered["is_whole"]) == ("A castle", False)


def test_without_vllm_that_is_told(config: RelabelConfig, tmp_path: Path):
    with pytest.raises(ConfigError, match="needs vLLM, which is not installed here"):
        check_vllm()
    with pytest.raises(ConfigError, match="needs vLLM"):
        relabel(config, lambda event: None)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match="to try it, give"):
        captioner_of(config)
