"""The verbs `data scenes`, `data check`, `data stats` and `data show`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, DataError
from lotlip.ingest.rows import FORMATS
from lotlip_platform.progress import say

if TYPE_CHECKING:
    from lotlip.tokenizer import Tokenizer

_AGREED_SAMPLES, _PAGE_SAMPLES = 1000, 24
_LONGEST = 10_000
"""Tokens of a caption that are counted."""


def add_verbs(verbs: Any) -> None:
    data = verbs.add_parser("data", help="make data sets, check them, look at them")
    actions = data.add_subparsers(required=True, metavar="ACTION")

    scenes = actions.add_parser("scenes", help="procedural scenes: shards and a manifest")
    scenes.add_argument("destination", metavar="DEST", help="a folder or s3://BUCKET/PREFIX")
    scenes.add_argument("--samples", type=int, required=True, metavar="N")
    scenes.add_argument("--split", choices=("train", "validation", "test"), default="train")
    scenes.add_argument("--seed", type=int, default=0)
    scenes.add_argument("--shard-size", type=int, default=1000, metavar="N")
    scenes.add_argument(
        "--captioners",
        action="store_true",
        help="long captions by three captioners with habits and errors, too",
    )
    scenes.set_defaults(run=_scenes)

    _add_ingest(actions)

    check = actions.add_parser("check", help="every shard, sample and image, against the manifest")
    check.add_argument("uri")
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check)

    stats = actions.add_parser("stats", help="captioners compared: numbers, a picture, a page")
    stats.add_argument("uri")
    stats.add_argument("--samples", type=int, default=0, help="the first so many; default all")
    stats.add_argument(
        "--tokenizer", default="", metavar="T", help="lengths in its tokens: a BERT folder or name"
    )
    stats.add_argument(
        "--model", default="", metavar="M", help="how captions agree with images and each other"
    )
    stats.add_argument("--out", type=Path, default=Path("stats.png"), metavar="PNG")
    stats.add_argument("--page", type=Path, metavar="HTML", help="with captions to read")
    stats.add_argument("--json", action="store_true")
    stats.set_defaults(run=_stats)

    show = actions.add_parser("show", help="a contact sheet: images with their captions")
    show.add_argument("uri")
    show.add_argument("--samples", type=int, default=12, metavar="N")
    show.add_argument("--start", type=int, default=0, metavar="N", help="the first sample to show")
    show.add_argument("--out", type=Path, default=Path("samples.png"), metavar="PNG")
    show.set_defaults(run=_show)


def _add_ingest(actions: Any) -> None:
    ingest = actions.add_parser(
        "ingest", help="published captions and their images: shards and a manifest; it resumes"
    )
    ingest.add_argument("source", metavar="SRC", help="a caption file, or a folder of them")
    ingest.add_argument("target", metavar="DEST", help="a folder or s3://BUCKET/PREFIX")
    ingest.add_argument("--format", required=True, help=", ".join(FORMATS))
    ingest.add_argument(
        "--images", required=True, metavar="I", help="url, a folder of images, or FOLDER/*.tar"
    )
    ingest.add_argument(
        "--columns",
        default="",
        metavar="TARGET=COLUMN,...",
        help="of csv, jsonl and parquet: image=url,short=caption,long.llava=text,sha256=hash",
    )
    ingest.add_argument("--shard-size", type=int, default=1000, metavar="N", help="rows of one")
    ingest.add_argument("--strip", default="", metavar="PREFIX", help="of the images' paths")
    ingest.add_argument("--longest-side", type=int, default=0, metavar="PX", help="shrink to this")
    ingest.add_argument("--origin", default="", help="recorded as the samples' source")
    ingest.add_argument("--licence", default="", help="recorded as the samples' licence")
    ingest.add_argument(
        "--download",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of --images url: requests_per_s, per_host, concurrency, timeout_s, max_attempts, "
        "max_bytes, user_agent, private_hosts",
    )
    ingest.add_argument("--json", action="store_true")
    ingest.set_defaults(run=_ingest)


def write_out(path: Path, content: bytes, what: str = "picture", *, option: str = "--out") -> None:
    """Files wholly or not at all. Raises: ConfigError, DataError if it can't be written."""
    is_stream = path.is_symlink() or path.absolute().parts[1] in ("dev", "proc")  # /dev/stdout
    if not is_stream and (path.is_file() or (path.parent.is_dir() and not path.exists())):
        FolderStore(path.parent).write(path.name, content)
    else:
        try:
            path.write_bytes(content)
        except OSError as error:
            raise ConfigError(
                f"cannot write {option} {path}: {error.strerror}; choose another place"
            ) from error
    say(f"{what}  {path}")


def _scenes(arguments: argparse.Namespace) -> None:
    from lotlip_platform.datasets import make_scenes
    from lotlip_platform.progress import bar

    with bar("scenes", "sample") as shown:
        manifest = make_scenes(
            arguments.destination,
            num_samples=arguments.samples,
            split=arguments.split,
            seed=arguments.seed,
            shard_size=arguments.shard_size,
            captioners=arguments.captioners,
            on_progress=shown.show,
        )
    print(
        f"{arguments.destination}: {manifest.num_samples:,} samples in {len(manifest.shards)} "
        f"shards, {manifest.num_bytes / 1e6:.1f} MB, digest {manifest.digest}"
    )


def _ingest(arguments: argparse.Namespace) -> None:
    from lotlip_platform.config import values_of

    values = {
        "source": arguments.source,
        "target": arguments.target,
        "format": arguments.format,
        "images": arguments.images,
        "columns": _columns(arguments.columns),
        "shard_size": arguments.shard_size,
        "strip": arguments.strip,
        "longest_side_px": arguments.longest_side,
        "origin": arguments.origin,
        "licence": arguments.licence,
        "download": values_of(arguments.download),
    }
    from lotlip.configuration import from_dict
    from lotlip_platform.ingest_config import IngestConfig

    config = from_dict(IngestConfig, values)
    from lotlip_platform.ingest import ingest
    from lotlip_platform.progress import bar

    with bar("ingest", "row") as shown:
        result = ingest(
            config,
            lambda counts: shown.show(counts["rows"], 0, f"{counts['rejected']:,} rejected"),
        )
    if arguments.json:
        print(json.dumps(asdict(result), indent=1))
        return
    print(
        f"{result.uri}: {result.num_written:,} samples in {result.num_shards} shards, digest "
        f"{result.digest}\n{result.num_rows:,} rows = {result.num_written:,} written + "
        f"{result.num_rejected:,} rejected"
    )
    if result.num_rejected:
        reasons = ", ".join(f"{kind} {number:,}" for kind, number in result.reasons.items())
        print(f"rejected for: {reasons}; each with its reason in {result.rejected}")
    if result.hosts:
        hosts = ", ".join(f"{host} {number:,}" for host, number in result.hosts.items())
        print(f"hosts with most images that did not come: {hosts}")


def _columns(text: str) -> dict[str, str]:
    """Raises: ConfigError."""
    pairs = [one.partition("=") for one in text.split(",") if one]
    for name, _, column in pairs:
        if not name or not column:
            raise ConfigError(f"--columns {text!r} is not of the form TARGET=COLUMN,...")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _check(arguments: argparse.Namespace) -> None:
    from lotlip_platform.dataset_checks import check
    from lotlip_platform.progress import bar

    with bar("check", "sample") as shown:
        result = check(arguments.uri, shown.show)
    if arguments.json:
        print(json.dumps(asdict(result), indent=1))
    else:
        print(
            f"{arguments.uri}: {result.num_samples:,} samples in {result.num_shards} shards, "
            f"{result.num_bytes / 1e6:.1f} MB"
        )
        for problem in result.problems:
            print(problem)
    if result.problems:
        raise DataError(f"{arguments.uri} has {len(result.problems)} problems")


def _stats(arguments: argparse.Namespace) -> None:
    from lotlip_platform.caption_agreement import agreement
    from lotlip_platform.caption_page import caption_page, comparison
    from lotlip_platform.dataset_views import stats, stats_figure
    from lotlip_platform.registry import fetch
    from lotlip_platform.tables import aligned

    if arguments.samples < 0:
        raise ConfigError("--samples must be 0 or more")
    model = fetch(arguments.model) if arguments.model else None
    found = stats(
        arguments.uri, num_samples=arguments.samples, tokenizer=_tokenizer(arguments.tokenizer)
    )
    agreed = None
    if model is not None:
        agreed = agreement(arguments.uri, model, num_samples=min(found.num_read, _AGREED_SAMPLES))
    if arguments.json:
        told = {"agreement": asdict(agreed)} if agreed else {}
        print(json.dumps({**found.summary(), **told}, indent=1))
    else:
        print(
            f"{found.uri}: {found.num_samples:,} samples in {found.num_shards} shards, "
            f"{found.num_bytes / 1e6:.1f} MB; of the first {found.num_read:,}:"
        )
        print(aligned(comparison(found, agreed)))
    write_out(arguments.out, stats_figure(found))
    if arguments.page:
        content = caption_page(found, agreed, num_samples=_PAGE_SAMPLES)
        write_out(arguments.page, content.encode(errors="replace"), "page", option="--page")


def _tokenizer(name: str) -> Tokenizer | None:
    """Raises: CheckpointError."""
    if not name:
        return None
    from lotlip.model.pretrained import find_folder
    from lotlip.tokenizer import Tokenizer

    folder = find_folder(name, "--tokenizer")
    return Tokenizer.from_bert(folder, num_corner_tokens=0, context_length=_LONGEST)


def _show(arguments: argparse.Namespace) -> None:
    from lotlip_platform.dataset_views import show

    sheet = show(arguments.uri, num_samples=arguments.samples, start=arguments.start)
    write_out(arguments.out, sheet)
