"""The verb `relabel`."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotlip.errors import ConfigError
from lotlip_platform.cli_model import add_overrides

if TYPE_CHECKING:
    from lotlip_platform.relabel import Relabelled


def add_verbs(verbs: Any) -> None:
    verb = verbs.add_parser(
        "relabel", help="long captions by a multimodal language model; the same command goes on"
    )
    verb.add_argument("config", help="a YAML file, or a shipped config such as relabel/llava")
    add_overrides(verb, "prompts.per_sample=2")
    verb.add_argument(
        "--try",
        dest="num_tried",
        type=int,
        metavar="N",
        help="caption N images on this machine, and show them; nothing is kept",
    )
    verb.add_argument("--out", type=Path, default=Path("captions.png"), metavar="PNG")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    verb.set_defaults(run=_relabel)


def _relabel(arguments: argparse.Namespace) -> None:
    from lotlip_platform.config import load_config
    from lotlip_platform.relabel_config import RelabelConfig

    config = load_config(RelabelConfig, arguments.config, arguments.overrides)
    if arguments.num_tried is not None:
        if arguments.num_tried < 1:
            raise ConfigError(f"--try {arguments.num_tried} must be 1 or more")
        from lotlip_platform.cli_data import write_out
        from lotlip_platform.relabel_trial import try_out

        write_out(arguments.out, try_out(config, num_samples=arguments.num_tried))
        return
    from lotlip_platform.progress import RelabelDisplay
    from lotlip_platform.relabel import relabel

    with closing(RelabelDisplay(config.name)) as display:
        result = relabel(config, display)
    print(json.dumps(asdict(result), indent=1) if arguments.json else _told(result))


def _told(result: Relabelled) -> str:
    tally, account = result.tally, result.account
    lines = [
        f"{result.uri}: {tally.num_samples:,} samples in {result.num_shards} shards, digest "
        f"{result.digest}",
        f"{tally.num_captions:,} captions kept, {tally.num_dropped:,} dropped, "
        f"{tally.num_unusable:,} samples unusable (reasons in {result.folder}/rejected)",
    ]
    if result.failed:
        failed = ", ".join(f"{rule} {number:,}" for rule, number in sorted(result.failed.items()))
        lines.append(f"answers that failed the audit: {failed}")
    lines.append(
        f"{tally.num_attempts:,} requests, {tally.input_tokens:,} tokens in, "
        f"{tally.output_tokens:,} out; {account['relabel/captions_per_worker_s']:.2f} captions a "
        f"worker's second; {account['relabel/gpu_hours']:.2f} GPU hours"
    )
    if account["relabel/cost"]:
        lines.append(
            f"cost {account['relabel/cost']:,.2f}, a million captions "
            f"{account['relabel/cost_per_million']:,.0f}"
        )
    return "\n".join(lines)
