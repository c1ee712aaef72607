"""`lotlip eval`: a model on benchmarks: features, answers, and a run in MLflow."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lotlip.data.store import Store
from lotlip.errors import DataError
from lotlip.evaluate.encoders import Encoder, LoTLIPEncoder
from lotlip.evaluate.published.charts import sentences_chart
from lotlip.evaluate.published.measure import Result
from lotlip.evaluate.published.suite import PUBLISHED, Protocol, Published, read_published
from lotlip.evaluate.questions import Question, published_question, read_data_set
from lotlip.evaluate.retrieval import Interval
from lotlip_platform import tracking
from lotlip_platform.attention_page import attention_files
from lotlip_platform.cluster import connected
from lotlip_platform.embeddings import FeatureCache, embed_here, embed_on_ray
from lotlip_platform.eval_config import SuiteConfig
from lotlip_platform.eval_models import encoder_of
from lotlip_platform.eval_pieces import answer, put
from lotlip_platform.eval_table import report_markdown
from lotlip_platform.journal import journal
from lotlip_platform.lineage import code_tags
from lotlip_platform.local_services import home
from lotlip_platform.storage import open_store
from lotlip_platform.tracked_run import TrackedRun, open_run

Asked = Mapping[tuple[str, Protocol], Question]
Told = Callable[[str, int, int], None]
"""Gets a model, and how many of how many images and texts it has embedded."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What one model answered."""

    model: str
    digest: str
    """Of its weights."""
    results: Sequence[Result]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """An evaluation."""

    models: Sequence[Evaluated]
    """The model, and the one it was compared with."""
    differences: Sequence[Mapping[str, Interval]] = field(default_factory=list)
    """By result of the first: its shares and medians less the other's, in pairs."""
    run_id: str = ""
    """The MLflow run; empty if the server has not answered yet."""

    def as_json(self) -> dict[str, Any]:
        """For scripts, and to be kept."""
        return {
            "models": [
                {
                    "model": one.model,
                    "digest": one.digest,
                    "results": [_as_json(result) for result in one.results],
                }
                for one in self.models
            ],
            "differences": [
                {name: asdict(interval) for name, interval in of_result.items()}
                for of_result in self.differences
            ],
        }


def evaluate_suite(config: SuiteConfig, told: Told, note: Callable[[str], None]) -> Suite:
    """Put a model, or two, to benchmarks. Raises: LotlipError.

    That files are missing is told before a model is loaded, and what can't be loaded before
    anything is embedded.
    """
    asked = _questions(config)
    names = [config.model, *([config.against] if config.against else [])]
    encoders = [encoder_of(name) for name in names]
    _check_that_it_can_start(config, asked, encoders)
    with ExitStack() as stack:
        stack.enter_context(connected() if config.num_workers else nullcontext())
        tracked = stack.enter_context(_tracked(config, encoders[0].digest, note))
        models = [
            _evaluated(config, name, encoder, asked, told)
            for name, encoder in zip(names, encoders, strict=True)
        ]
        suite = Suite(models=models, differences=_differences(models))
        _log(tracked.run, suite)
        _log_attention(tracked.run, encoders[0], asked)
    return replace(suite, run_id=tracked.run_id)


def _questions(config: SuiteConfig) -> dict[tuple[str, Protocol], Question]:
    asked: dict[tuple[str, Protocol], Question] = {}
    for name, uri in config.benches.items():
        store = open_store(uri)
        if name in PUBLISHED:
            found = read_published(store, name, partial=config.partial)
            for protocol in config.protocols_of(name):
                asked[name, protocol] = published_question(name, found, protocol)
        else:
            question = read_data_set(store, name, config.num_samples)
            for protocol in config.protocols_of(name):
                asked[name, protocol] = replace(question, official=protocol.official)
    return asked


def _check_that_it_can_start(
    config: SuiteConfig, asked: Asked, encoders: Sequence[Encoder]
) -> None:
    """Before a run is opened. Raises: LotlipError for a cache that can't be written, or a number of
    tokens that a model can't read."""
    for encoder in encoders:
        for length in {min(how.context_length, encoder.longest_text) for _, how in asked}:
            encoder.embed_texts(["a"], context_length=length, official=False)
    probe = f"{encoders[0].digest}/{uuid.uuid4().hex}.probe"
    store = _cache(config)
    store.write(probe, b"")
    with suppress(DataError):  # who may write need not be allowed to delete
        store.delete(probe)


def _cache(config: SuiteConfig) -> Store:
    return open_store(config.cache or str(home() / "eval"))


def _evaluated(
    config: SuiteConfig, name: str, encoder: Encoder, asked: Asked, told: Told
) -> Evaluated:
    store = _cache(config)
    embed = (
        embed_on_ray(
            *(name, encoder.digest, store, config.num_workers),
            tracking.tracking_uri(config.tracking.uri),
        )
        if config.num_workers
        else embed_here(encoder, store)
    )
    cache = FeatureCache(store, encoder.digest, embed)
    parts = [put(one, benchmark, how, encoder) for (benchmark, how), one in asked.items()]
    pieces = [piece for one in parts for piece in one.pieces()]
    try:
        cache.embed(pieces, lambda done, total: told(name, done, total))
        results = [answer(cache, one) for one in parts]
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return Evaluated(model=name, digest=encoder.digest, results=results)


def _differences(models: Sequence[Evaluated]) -> list[dict[str, Interval]]:
    if len(models) == 1:
        return []
    first, second = models
    return [
        ours.answered.beyond(theirs.answered)
        for ours, theirs in zip(first.results, second.results, strict=True)
    ]


@dataclass
class _Tracked:
    run: TrackedRun
    run_id: str = ""


@contextmanager
def _tracked(config: SuiteConfig, digest: str, note: Callable[[str], None]) -> Iterator[_Tracked]:
    """The MLflow run of the evaluation; a server that is away gets it later."""
    kept = journal(uuid.uuid4().hex)
    params = {
        "model": config.model,
        "against": config.against,
        "benchmarks": " ".join(config.benches),
        "protocols": " ".join(config.protocols),
        "context": config.context_length,
        "samples": config.num_samples,
        "partial": config.partial,
    }
    with open_run(
        kept,
        uri=tracking.tracking_uri(config.tracking.uri),
        life=1,
        experiment=config.tracking.experiment,
        name=config.model,
        params=params,
        tags={**code_tags(), "kind": "eval", "weights": digest},
        note=note,
    ) as run:
        tracked = _Tracked(run)
        yield tracked
    tracked.run_id = kept.sent().run_id
    kept.remove_if_sent()


def _log(run: TrackedRun, suite: Suite) -> None:
    first = suite.models[0]
    for place, result in enumerate(first.results):
        run.log_metrics(_metrics(result, "eval"), step=0)
        if len(suite.models) > 1:
            run.log_metrics(_metrics(suite.models[1].results[place], "against"), step=0)
        asked = result.asked
        run.log_dataset(asked.benchmark, digest=asked.digest[:32], context=asked.protocol.name)
        if asked.about.kind == "long" and not asked.protocol.official:
            run.log_file(f"figures/sentences_{asked.benchmark}.png", sentences_chart(result))
    run.log_file("table.md", report_markdown(suite.models, suite.differences).encode())
    run.log_file("results.json", json.dumps(suite.as_json(), indent=1).encode())


def _metrics(result: Result, prefix: str) -> dict[str, float]:
    """Figures of other protocols, or of a part, must not stand in one column."""
    asked, answered = result.asked, result.answered
    part = "-part" if asked.is_part else ""
    where = f"{prefix}/{asked.benchmark}/{asked.protocol.name}-{asked.context_length}{part}"
    found = {**answered.shares, **answered.medians}
    return {f"{where}/{name}": one.value for name, one in found.items()}


def _log_attention(run: TrackedRun, encoder: Encoder, asked: Asked) -> None:
    whole_first = sorted(asked.items(), key=lambda item: item[0][1].official)
    captions = [question.example for _, question in whole_first if question.example]
    if isinstance(encoder, LoTLIPEncoder) and captions:
        for name, content in attention_files(encoder.model, captions[0]).items():
            run.log_file(f"figures/{name}", content)


def _as_json(result: Result) -> dict[str, Any]:
    asked, about, answered = result.asked, result.asked.about, result.answered
    return {
        "benchmark": asked.benchmark,
        "protocol": asdict(asked.protocol),
        "context_length": asked.context_length,
        "num_images": asked.num_images,
        "num_texts": asked.num_texts,
        "of_images": about.num_images,
        "of_texts": about.num_texts,
        "num_cut": asked.num_cut,
        "num_blank": asked.num_blank,
        "splits_sentences": asked.splits_sentences,
        "digest": asked.digest,
        "images_digest": asked.images_digest,
        "files": about.files,
        "md5": dict(about.md5) if isinstance(about, Published) else {},
        "assembly": about.assembly,
        "rules": asked.rules,
        "source": about.source,
        "metrics": {
            name: {**asdict(share), "num": len(answered.answers[name].hits_Q)}
            for name, share in answered.shares.items()
        },
        "medians": {name: asdict(rank) for name, rank in answered.medians.items()},
        "changes": {name: asdict(change) for name, change in answered.changes.items()},
    }
