"""The verbs `precompute`, `train`, `profile`, `eval`, `search` and `convert-official`."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotlip.errors import ConfigError

if TYPE_CHECKING:
    from lotlip.evaluate.benchmarks import Report
    from lotlip_platform.train_config import TrainConfig

MODEL_HELP = (
    "models:/NAME@ALIAS, models:/NAME/VERSION, an MLflow run id, or an export folder (s3:// too)"
)


def add_verbs(verbs: Any) -> None:
    features = verbs.add_parser(
        "precompute", help="encode images once for all runs with a locked image tower"
    )
    add_config(features)
    features.add_argument("--json", action="store_true")
    features.set_defaults(run=_precompute)

    train = verbs.add_parser("train", help="train from a config; the same command resumes")
    add_config(train)
    train.add_argument("--json", action="store_true", help="print the result as JSON")
    train.set_defaults(run=_train)

    profile = verbs.add_parser("profile", help="where the time of a training step goes")
    add_config(profile)
    profile.add_argument("--steps", type=int, default=10, metavar="N")
    profile.add_argument("--trace", type=Path, default=Path("trace.json"), metavar="JSON")
    profile.add_argument("--json", action="store_true")
    profile.set_defaults(run=_profile)

    evaluate = verbs.add_parser("eval", help="put a model to benchmarks")
    evaluate.add_argument("model", help=MODEL_HELP)
    evaluate.add_argument("--bench", action="append", required=True, metavar="NAME=URI")
    evaluate.add_argument("--samples", type=int, default=0, help="the first so many; default all")
    evaluate.add_argument(
        "--official-text",
        action="store_true",
        help="split captions as the authors' code does, to compare with its figures",
    )
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(run=_eval)

    search = verbs.add_parser("search", help="find images by a long description")
    search.add_argument("model", help=MODEL_HELP)
    search.add_argument("uri", help="the data set to search")
    search.add_argument("--text", required=True)
    search.add_argument("--hits", type=int, default=8, metavar="N")
    search.add_argument("--samples", type=int, default=0, help="the first so many; default all")
    search.add_argument("--out", type=Path, default=Path("search.png"), metavar="PNG")
    search.add_argument("--json", action="store_true")
    search.set_defaults(run=_search)

    convert = verbs.add_parser(
        "convert-official", help="turn the authors' model.pt into an export folder"
    )
    convert.add_argument("checkpoint", type=Path, metavar="model.pt")
    convert.add_argument("destination", metavar="DEST", help="a new folder, or s3://BUCKET/PREFIX")
    convert.add_argument("--preset", default="vit-b-16", help="vit-b-16 (default) or vit-b-32")
    convert.add_argument(
        "--bert", default="bert-base-uncased", help="folder or hub name with its vocabulary"
    )
    convert.set_defaults(run=_convert)


def add_config(verb: argparse.ArgumentParser) -> None:
    """The arguments that `train_config` reads."""
    verb.add_argument("config", help="a YAML file, or a shipped config such as train/scenes")
    add_overrides(verb, "optim.lr=1e-3")


def add_overrides(verb: argparse.ArgumentParser, example: str) -> None:
    verb.add_argument(
        # With a default, or a missing config is told together with what need not be given.
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help=f"e.g. {example}",
    )


def train_config(arguments: argparse.Namespace) -> TrainConfig:
    """A mistake in it is told before what takes long is imported."""
    from lotlip_platform.config import load_config
    from lotlip_platform.train_config import TrainConfig

    return load_config(TrainConfig, arguments.config, arguments.overrides)


def _precompute(arguments: argparse.Namespace) -> None:
    config = train_config(arguments)
    from lotlip_platform.precompute import precompute
    from lotlip_platform.progress import TrainDisplay

    with closing(TrainDisplay(config.name, config.train.num_steps)) as display:
        found = precompute(config, display)
    if arguments.json:
        print(json.dumps(asdict(found), indent=1))
        return
    print(f"{found.uri}: {found.num_samples:,} samples; {found.saving}")


def _train(arguments: argparse.Namespace) -> None:
    config = train_config(arguments)
    from lotlip_platform.evaluate import table
    from lotlip_platform.progress import TrainDisplay
    from lotlip_platform.train import train

    command = shlex.join(["lotlip", "train", arguments.config, *arguments.overrides])
    with closing(TrainDisplay(config.name, config.train.num_steps)) as display:
        result = train(config, display, command=command)
    if arguments.json:
        print(json.dumps(asdict(result), indent=1))
        return
    if result.metrics:
        print(table({config.name: result.metrics}))
    print(f"\nmodel    {result.folder}/model  (weights {result.digest})")
    print(f"run      {result.run_id or 'not yet'} at {result.tracking_uri}")
    if result.model_uri:
        print(f"version  {result.model_uri}, alias candidate")


def _profile(arguments: argparse.Namespace) -> None:
    config = train_config(arguments)
    from lotlip_platform.profiling import profile_training, table
    from lotlip_platform.progress import TrainDisplay

    with closing(TrainDisplay("profile", arguments.steps)) as display:
        found = profile_training(
            config, arguments.trace, num_steps=arguments.steps, on_event=display
        )
    if arguments.json:
        print(json.dumps({**asdict(found), "trace": str(found.trace)}, indent=1))
        return
    print(table(found))
    print(f"trace: {found.trace}, for ui.perfetto.dev")


def _eval(arguments: argparse.Namespace) -> None:
    from lotlip_platform.evaluate import evaluate, table

    if arguments.samples < 0:
        raise ConfigError("--samples must be 0 or more")
    reports = evaluate(
        arguments.model,
        benches_of(arguments.bench),
        num_samples=arguments.samples,
        official_text=arguments.official_text,
    )
    if arguments.json:
        print(json.dumps([_as_json(report) for report in reports], indent=1))
        return
    for report in reports:
        print(f"{report.benchmark}, {report.num_samples} samples, 95% intervals")
        print(table({arguments.model: report.metrics}))


def benches_of(given: Sequence[str]) -> dict[str, str]:
    """Data sets by benchmark, of arguments such as `scenes=s3://b/test`. Raises: ConfigError."""
    benches: dict[str, str] = {}
    for bench in given:
        name, equals, uri = bench.partition("=")
        if not (name and equals and uri):
            raise ConfigError(f"--bench {bench!r} is not of the form NAME=URI")
        if name in benches:
            raise ConfigError(
                f"--bench {name} is given twice, with {benches[name]} and {uri}: run one at a time"
            )
        benches[name] = uri
    return benches


def _as_json(report: Report) -> dict[str, Any]:
    metrics = {name: asdict(interval) for name, interval in report.metrics.items()}
    return {
        "benchmark": report.benchmark,
        "num_samples": report.num_samples,
        "metrics": metrics,
    }


def _search(arguments: argparse.Namespace) -> None:
    from lotlip_platform.cli_data import write_out
    from lotlip_platform.progress import bar, say
    from lotlip_platform.registry import fetch
    from lotlip_platform.search import cut_note, match_table, search, search_sheet

    if arguments.hits < 1 or arguments.samples < 0:
        raise ConfigError("--hits must be 1 or more, --samples 0 or more")
    model = fetch(arguments.model)
    if note := cut_note(model, arguments.text):
        say(note)
    with bar("search", "image") as shown:
        matches = search(
            model,
            arguments.uri,
            arguments.text,
            num_hits=arguments.hits,
            num_samples=arguments.samples,
            on_progress=shown.show,
        )
    sheet = search_sheet(arguments.text, matches, heading=f"{arguments.model} in {arguments.uri}")
    if arguments.json:
        found = [{"key": m.sample.key, "score": m.score, "short": m.sample.short} for m in matches]
        print(json.dumps(found, indent=1))
    else:
        print(match_table(matches))
    write_out(arguments.out, sheet)


def _convert(arguments: argparse.Namespace) -> None:
    from lotlip_platform.conversion import convert

    model = convert(
        arguments.checkpoint,
        arguments.destination,
        bert=arguments.bert,
        preset=arguments.preset,
    )
    num_values = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.destination}: {num_values:,} values, every key accounted for")
