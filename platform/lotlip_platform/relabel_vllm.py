"""Captions by vLLM in process, through Ray Data's stages for language models.

Here rows are questions, not shards: an engine holds hundreds of them at once, of any shards. Their
answers are kept in the store as those of other captioners are, and the shards written from them, a
round of questions after another. Needs vLLM on the workers' GPUs; not run by us with an engine.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from lotlip.data.manifest import Shard, to_shard
from lotlip.errors import ConfigError
from lotlip.images import media_type
from lotlip.relabel.asking import Answer, Keep, Place, Request
from lotlip_platform.ray_data import Unseen, quiet_ray_data, result_of, results
from lotlip_platform.relabel_asking import Asking, Work, answer_tally
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_folder import RelabelFolder, Tally
from lotlip_platform.storage import open_store

Rows = ray.data.Dataset
_OF_QUESTION = ("shard", "ask", "sample", "draw", "prompt")


def check_vllm() -> None:
    """Raises: ConfigError where vLLM is not installed; the workers need it, too."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "captioner.vllm needs vLLM, which is not installed here: pip install vllm, or have it "
            "serve the model elsewhere and give captioner.endpoint.url"
        )


class Answered:
    """A `Captioner` whose answers came before: it knows no others."""

    batch_size = 1

    def __init__(self, ask: int) -> None:
        """`ask` is the last round that was asked."""
        self.ask = ask

    def answer(self, batches: Iterable[Sequence[Request]], keep: Keep) -> None:
        """Nobody answers what is left of rounds that were. Raises: NotYetError for a later one."""
        for (request,) in batches:
            if request.place.ask > self.ask:
                raise NotYetError
            keep(
                [Answer(place=request.place, prompt=request.prompt, error="vLLM gave no answer")]
            ).result()


class NotYetError(Exception):
    """There are questions of a later round."""


def ask_all(work: Work, shards: Sequence[Shard], ask: int, environment: Unseen) -> Iterator[Tally]:
    """Have a round of questions about shards answered and kept; a tally now and then.

    Raises: LotlipError.
    """
    quiet_ray_data()
    rows = [{"shard": json.dumps(asdict(shard))} for shard in shards]
    ask_about: Any = partial(_questions, work=work, ask=ask, environment=environment)
    questions = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ask_about, batch_size=1, batch_format="numpy"
    )
    kept = processor_of(work.config, work.revision)(questions).map_batches(
        partial(_kept, work=work, environment=environment),
        batch_size=work.config.captioner.vllm.batch_size,
        batch_format="pandas",
    )
    for text in results(kept):
        yield Tally(**json.loads(text))


def processor_of(config: RelabelConfig, revision: str) -> Callable[[Rows], Rows]:
    """From questions to answers, by an engine on each worker."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    vllm = config.captioner.vllm
    of_hub = {"revision": revision} if revision and not revision.startswith("sha256:") else {}
    engine = vLLMEngineProcessorConfig(
        model_source=vllm.model,
        engine_kwargs={**of_hub, **vllm.engine},
        batch_size=vllm.batch_size,
        concurrency=config.cluster.num_workers,
        # One question that can't be answered is a caption that is missing, not the end.
        should_continue_on_error=True,
        prepare_multimodal_stage={"enabled": True},
        chat_template_stage={"enabled": True},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
    )
    return build_processor(
        engine,
        preprocess=partial(to_engine, config=config),
        postprocess=partial(from_engine, config=config),
    )


def to_engine(row: Mapping[str, Any], config: RelabelConfig) -> dict[str, Any]:
    """A question as the engine takes it."""
    encoded = bytes(row["image"])
    url = f"data:{media_type(encoded)};base64,{base64.b64encode(encoded).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": str(row["text"])},
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if config.prompts.system:
        messages.insert(0, {"role": "system", "content": config.prompts.system})
    settings = config.generation
    return {
        **{name: row[name] for name in _OF_QUESTION},
        "messages": messages,
        "sampling_params": {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": int(row["seed"]),
        },
    }


def from_engine(row: Mapping[str, Any], config: RelabelConfig) -> dict[str, Any]:
    """What the engine made of a question, as `_kept` takes it."""
    num_tokens = int(row["num_generated_tokens"])
    return {
        **{name: row[name] for name in _OF_QUESTION},
        "answer": str(row["generated_text"]).strip(),
        "is_whole": num_tokens < config.generation.max_tokens,
        "input_tokens": int(row["num_input_tokens"]),
        "output_tokens": num_tokens,
    }


def _questions(
    batch: Mapping[str, Any], work: Work, ask: int, environment: Unseen
) -> Iterator[pa.Table]:
    """Of a round, those about a shard that aren't answered yet."""
    os.environ.update(environment.values)
    shard = to_shard(json.loads(str(batch["shard"][0])))
    answers = RelabelFolder(open_store(work.folder)).answers(shard.name)
    with closing(answers) as log:
        asking = Asking(work, shard, Answered(ask), log, lambda event: None)
        for request in asking.unanswered(ask):
            place = request.place
            yield pa.table(
                {
                    "shard": [shard.name],
                    "ask": [place.ask],
                    "sample": [place.sample],
                    "draw": [place.draw],
                    "prompt": [request.prompt],
                    "text": [request.text],
                    "seed": [request.seed],
                    "image": pa.array([request.image], pa.binary()),
                }
            )


def _kept(batch: Any, work: Work, environment: Unseen) -> pa.Table:
    """Keeps a batch of answers in the store; their tally."""
    os.environ.update(environment.values)
    return result_of(lambda: json.dumps(asdict(_keep(batch, work))))


def _keep(batch: Any, work: Work) -> Tally:
    folder, told = RelabelFolder(open_store(work.folder)), Tally()
    if "__inference_error__" in batch:
        batch = batch[batch["__inference_error__"].fillna("") == ""]
    for shard, rows in batch.groupby("shard"):
        answers = [
            Answer(
                place=Place(int(row.ask), int(row.sample), int(row.draw)),
                prompt=str(row.prompt),
                text=str(row.answer),
                is_whole=bool(row.is_whole),
                input_tokens=int(row.input_tokens),
                output_tokens=int(row.output_tokens),
            )
            for row in rows.itertuples()
        ]
        with closing(folder.answers(str(shard))) as log:
            kept: Future[None] = log.keep(answers)
            kept.result()
        for answer in answers:
            told += answer_tally(answer)
    return told
