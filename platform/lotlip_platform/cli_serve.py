"""The verb `serve`."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any

from lotlip_platform.cli_model import MODEL_HELP


def add_verbs(verbs: Any) -> None:
    serve = verbs.add_parser(
        "serve", help="answer searches over HTTP, with a page for people; Ctrl-C ends it"
    )
    serve.add_argument("model", help=f"{MODEL_HELP}; an alias is followed when it moves")
    serve.add_argument("--index", required=True, metavar="URI", help="the data set to search")
    serve.add_argument(
        "--config",
        nargs="+",
        default=["serve/default"],
        metavar=("CONFIG", "key=value"),
        help="where and how, e.g. serve/default port=8400 num_replicas=2",
    )
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    from lotlip_platform.config import load_config
    from lotlip_platform.serve_config import ServeConfig

    config = load_config(ServeConfig, arguments.config[0], arguments.config[1:])
    from lotlip_platform.progress import bar, say
    from lotlip_platform.serving import serving

    with (
        suppress(KeyboardInterrupt),
        bar("features", "image") as shown,
        serving(arguments.model, arguments.index, config, shown.show, say) as served,
    ):
        print(f"{served.version} searches {served.num_images:,} images: {served.url}", flush=True)
        say("Ctrl-C ends it")
        served.wait()
    say("no longer served")
