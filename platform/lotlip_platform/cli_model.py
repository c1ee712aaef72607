"""The verbs `precompute`, `train`, `profile`, `eval`, `search`, `attention` and
`convert-official`."""

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
    from lotlip_platform.eval_config import SuiteConfig
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

    _add_eval(verbs)

    search = verbs.add_parser("search", help="find images by a long description")
    search.add_argument("model", help=MODEL_HELP)
    search.add_argument("uri", help="the data set to search")
    search.add_argument("--text", required=True)
    search.add_argument("--hits", type=int, default=8, metavar="N")
    search.add_argument("--samples", type=int, default=0, help="the first so many; default all")
    search.add_argument("--out", type=Path, default=Path("search.png"), metavar="PNG")
    search.add_argument("--json", action="store_true")
    search.set_defaults(run=_search)

    attention = verbs.add_parser(
        "attention", help="show which words of a caption the corner tokens look at"
    )
    attention.add_argument("model", help=MODEL_HELP)
    attention.add_argument("--text", required=True, help="the caption")
    attention.add_argument(
        "--out", type=Path, default=Path("attention.png"), metavar="FILE", help=".png or .html"
    )
    attention.set_defaults(run=_attention)

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


def _add_eval(verbs: Any) -> None:
    evaluate = verbs.add_parser("eval", help="put a model to benchmarks")
    evaluate.add_argument(
        "model",
        help=f"{MODEL_HELP}; hf:FOLDER, open_clip:ARCH:FILE; or a config such as eval/paper, with "
        "key=value in place of options",
    )
    add_overrides(evaluate, "benches.dci=s3://mine/dci")
    evaluate.add_argument(
        "--bench",
        action="append",
        default=[],
        metavar="NAME=URI",
        help="scenes or retrieval with a data set, or a published one with the folder of its files "
        "(docs/evaluation.md)",
    )
    evaluate.add_argument(
        "--protocol",
        action="append",
        default=[],
        choices=("official", "clean"),
        help="official: captions split as the authors' code does; clean: whole (default: both for "
        "published benchmarks, clean for data sets)",
    )
    evaluate.add_argument(
        "--context", type=int, default=0, metavar="TOKENS", help="default 128 and 512"
    )
    evaluate.add_argument("--against", default="", metavar="MODEL", help="compare in pairs")
    evaluate.add_argument("--samples", type=int, default=0, help="of a data set, the first so many")
    evaluate.add_argument(
        "--partial", action="store_true", help="take what is there of a published benchmark"
    )
    evaluate.add_argument("--workers", type=int, default=0, help="Ray workers; default: none")
    evaluate.add_argument("--cache", default="", metavar="URI", help="where features are kept")
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(run=_eval)


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
    from lotlip_platform.eval_suite import evaluate_suite
    from lotlip_platform.eval_table import report_text
    from lotlip_platform.progress import Bars, say

    config = _suite_config(arguments)
    with closing(Bars()) as bars:
        suite = evaluate_suite(config, bars.show, say)
    if arguments.json:
        print(json.dumps({**suite.as_json(), "run_id": suite.run_id}, indent=1))
        return
    print(report_text(suite.models, suite.differences))
    print(f"run {suite.run_id or 'not yet'}")


def _suite_config(arguments: argparse.Namespace) -> SuiteConfig:
    from lotlip_platform.config import load_config, shipped_configs
    from lotlip_platform.eval_config import SuiteConfig

    given = {
        "benches": benches_of(arguments.bench),
        "protocols": tuple(arguments.protocol),
        "context_length": arguments.context,
        "num_samples": arguments.samples,
        "partial": arguments.partial,
        "against": arguments.against,
        "cache": arguments.cache,
        "num_workers": arguments.workers,
    }
    if not (arguments.model.endswith(".yaml") or arguments.model in shipped_configs()):
        ours = ", ".join(name for name in shipped_configs() if name.startswith("eval/"))
        no_config = f"there is no config {arguments.model} (shipped ones: {ours})"
        if arguments.overrides:
            raise ConfigError(
                f"{arguments.overrides[0]} is for a config, and {no_config}; with a model give "
                "options"
            )
        if not arguments.bench:
            raise ConfigError(f"{no_config}; a model needs a benchmark: --bench NAME=URI")
        return SuiteConfig(model=arguments.model, **given)
    if options := [name for name, value in given.items() if value]:
        raise ConfigError(
            f"{options[0]} is given as an option, but {arguments.model} is a config: give "
            f"{options[0]}=... instead"
        )
    return load_config(SuiteConfig, arguments.model, arguments.overrides)


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


def _attention(arguments: argparse.Namespace) -> None:
    suffix = arguments.out.suffix.lower()
    if suffix not in (".png", ".html"):
        raise ConfigError(f"--out {arguments.out} must end in .png or .html")
    if not arguments.text.strip():
        raise ConfigError("--text is empty: give a caption")
    if arguments.model.startswith(("hf:", "open_clip:")):
        raise ConfigError(
            f"{arguments.model}: attention is drawn for models of this project, which have corner "
            "tokens"
        )
    from lotlip.evaluate.attention_view import attention_figure, view_attention
    from lotlip_platform.attention_page import attention_page
    from lotlip_platform.cli_data import write_out
    from lotlip_platform.progress import say
    from lotlip_platform.registry import fetch
    from lotlip_platform.search import cut_note

    model = fetch(arguments.model)
    if note := cut_note(model, arguments.text):
        say(note)
    view = view_attention(model, arguments.text)
    if suffix == ".html":
        write_out(arguments.out, attention_page(view).encode(), "page")
    else:
        write_out(arguments.out, attention_figure(view))


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
