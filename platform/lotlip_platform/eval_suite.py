"""`lotlip eval` on published benchmarks: features, answers, and a run in MLflow."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lotlip.errors import ConfigError
from lotlip.evaluate.encoders import Encoder
from lotlip.evaluate.published.charts import sentences_chart
from lotlip.evaluate.published.measure import Result
from lotlip.evaluate.published.sets import Labelled, Pairs
from lotlip.evaluate.published.suite import PUBLISHED, Protocol, read_published
from lotlip.evaluate.retrieval import Interval
from lotlip_platform import tracking
from lotlip_platform.cluster import connected
from lotlip_platform.embeddings import FeatureCache, embed_here, embed_on_ray
from lotlip_platform.eval_models import encoder_of
from lotlip_platform.eval_published import answer, question
from lotlip_platform.eval_table import is_part, report_markdown
from lotlip_platform.journal import journal
from lotlip_platform.lineage import code_tags
from lotlip_platform.local_services import home
from lotlip_platform.storage import open_store
from lotlip_platform.tracked_run import TrackedRun, open_run

EXPERIMENT = "evaluations"
Asked = Mapping[tuple[str, Protocol], Pairs | Labelled]
Told = Callable[[str, int, int], None]
"""Gets a model, and how many of how many images and texts it has embedded."""


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """What is evaluated, and where."""

    model: str
    """A name that `encoder_of` takes."""
    benches: Mapping[str, str]
    """Where the files of each published benchmark lie."""
    protocols: Sequence[Protocol]
    """By which each is put to the model."""
    partial: bool = False
    """Take a benchmark that isn't all there; the table says so."""
    against: str = ""
    """Another model, which is asked the same; empty: none."""
    cache: str = ""
    """Where features are kept: a folder or s3://BUCKET/PREFIX. Empty: `eval` in the lotlip home."""
    num_workers: int = 0
    """Ray workers that embed; 0: this process does."""
    tracking_uri: str = ""
    """Of the MLflow server; empty: the usual one."""

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ConfigError("--workers must be 0 or more")
        if not self.protocols:
            raise ConfigError("an evaluation needs a protocol: official or clean")


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
    """By result of the first: its shares less the other's on the same questions, in pairs."""
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
    """Put a model, or two, to published benchmarks. Raises: LotlipError.

    That files are missing is told before a model is loaded, and what can't be loaded before
    anything is embedded.
    """
    asked = {
        (name, protocol): read_published(
            open_store(uri), name, official=protocol.official, partial=config.partial
        )
        for protocol in config.protocols
        for name, uri in config.benches.items()
    }
    names = [config.model, *([config.against] if config.against else [])]
    encoders = [encoder_of(name) for name in names]
    with ExitStack() as stack:
        stack.enter_context(connected() if config.num_workers else nullcontext())
        tracked = stack.enter_context(_tracked(config, encoders[0].digest, note))
        models = [
            _evaluated(config, name, encoder, asked, told)
            for name, encoder in zip(names, encoders, strict=True)
        ]
        suite = Suite(models=models, differences=_differences(models))
        _log(tracked.run, suite)
    return replace(suite, run_id=tracked.run_id)


def _evaluated(
    config: SuiteConfig, name: str, encoder: Encoder, asked: Asked, told: Told
) -> Evaluated:
    store = open_store(config.cache or str(home() / "eval"))
    embed = (
        embed_on_ray(
            *(name, encoder.digest, store, config.num_workers),
            tracking.tracking_uri(config.tracking_uri),
        )
        if config.num_workers
        else embed_here(encoder, store)
    )
    cache = FeatureCache(store, encoder.digest, embed)
    questions = [
        question(found, benchmark, protocol, encoder)
        for (benchmark, protocol), found in asked.items()
    ]
    pieces = [piece for one in questions for piece in one.pieces()]
    cache.embed(pieces, lambda done, total: told(name, done, total))
    results = [answer(cache, one) for one in questions]
    return Evaluated(model=name, digest=encoder.digest, results=results)


def _differences(models: Sequence[Evaluated]) -> list[dict[str, Interval]]:
    if len(models) == 1:
        return []
    first, second = models
    return [
        {
            name: answers.beyond(theirs.answers[name])
            for name, answers in ours.answers.items()
            if name in theirs.answers and answers.are_of_the_same(theirs.answers[name])
        }
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
        "protocols": "; ".join(map(str, config.protocols)),
        "partial": config.partial,
    }
    with open_run(
        kept,
        uri=tracking.tracking_uri(config.tracking_uri),
        life=1,
        experiment=EXPERIMENT,
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
    for result in suite.models[0].results:
        asked = result.asked
        # Figures of other protocols, or of a part, must not stand in one column.
        part = "-part" if is_part(result) else ""
        where = f"eval/{asked.benchmark}/{asked.protocol.name}-{asked.context_length}{part}"
        values = {f"{where}/{name}": share.value for name, share in result.shares.items()}
        values |= {f"{where}/{name}": rank.value for name, rank in result.medians.items()}
        run.log_metrics(values, step=0)
        run.log_dataset(asked.benchmark, digest=asked.digest[:32], context=asked.protocol.name)
        if PUBLISHED[asked.benchmark].kind == "long" and not asked.protocol.official:
            picture = sentences_chart(result, PUBLISHED[asked.benchmark].title)
            run.log_file(f"figures/sentences_{asked.benchmark}.png", picture)
    run.log_file("table.md", report_markdown(suite.models, suite.differences).encode())
    run.log_file("results.json", json.dumps(suite.as_json(), indent=1).encode())


def _as_json(result: Result) -> dict[str, Any]:
    about = PUBLISHED[result.asked.benchmark]
    return {
        **asdict(result.asked),
        "of_images": about.num_images,
        "of_texts": about.num_texts,
        "files": about.files,
        "assembly": about.assembly,
        "quirk": about.quirk if result.asked.protocol.official else "",
        "md5": dict(about.md5),
        "source": about.source,
        "metrics": {
            name: {**asdict(share), "num": len(result.answers[name].hits_Q)}
            for name, share in result.shares.items()
        },
        "medians": {name: asdict(rank) for name, rank in result.medians.items()},
        "changes": {name: asdict(change) for name, change in result.changes.items()},
    }
