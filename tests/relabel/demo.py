"""`make relabel-demo`: scenes captioned by a server and by a LLaVA, with one kill -9 in the middle.

    demo.py [--scenes 2000] [--sweep]

On what `lotlip up` starts: shards in S3, Ray, MLflow. The server describes what it does not see,
and the LLaVA has random weights: the paths are real, the words not. Exit code 1 if a caption is
missing or doubled, or if more was paid for twice than what was in flight. With --sweep a
sweep trains on the new shards, with one captioner and with both.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

from caption_server import MODEL, CaptionServer, describe
from tiny_llava import make_tiny_llava

from lotlip_platform.local_services import use_local_services

LOTLIP = (sys.executable, "-P", "-m", "lotlip_platform")
IN_FLIGHT = 16
PATIENCE_S = 600.0


def lotlip(*arguments: str) -> None:
    """Run a command, as users do."""
    print("$ lotlip", *arguments, flush=True)
    subprocess.run([*LOTLIP, *arguments], check=True)


def relabel_killed(arguments: tuple[str, ...], server: CaptionServer, after: int) -> None:
    """Kill the command, and all that it started, with -9 when so many questions were asked."""
    print("$ lotlip", *arguments, flush=True)
    process = subprocess.Popen([*LOTLIP, *arguments], start_new_session=True)
    deadline = time.monotonic() + PATIENCE_S
    while len(server.asked) < after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    print(f"kill -9, after {len(server.asked):,} questions", flush=True)


def by_endpoint(root: str, server: CaptionServer) -> tuple[str, ...]:
    """The arguments that caption with the server."""
    return (
        *("relabel", "relabel/endpoint", "name=described", f"store={root}/runs"),
        *(f"source={root}/scenes", f"target={root}/described", "captioner.name=describer"),
        *(f"captioner.endpoint.url={server.url}", f"captioner.endpoint.model={MODEL}"),
        *(f"captioner.endpoint.concurrency={IN_FLIGHT}", "account.num_endpoint_gpus=0"),
        "account.price_per_million_output_tokens=0.6",
    )


def by_llava(root: str, model: Path) -> tuple[str, ...]:
    """The arguments that caption with the LLaVA, which speaks no English."""
    return (
        *("relabel", "relabel/llava", "name=tiny", f"store={root}/runs"),
        *(f"source={root}/described", f"target={root}/both", "captioner.name=tiny"),
        *(f"captioner.huggingface.model={model}", "captioner.huggingface.dtype=float32"),
        *("generation.max_tokens=24", "audit.min_tokens=0", "audit.max_repetition=1"),
        *("audit.languages=[]", "audit.max_asks=1", "audit.max_dropped_share=0.5"),
        "cluster.num_workers=2",
        *("cluster.gpus_per_worker=0", "cluster.cpus_per_worker=1"),
    )


def counts(root: str, server: CaptionServer, num_scenes: int) -> bool:
    """Print what there is; whether it is what there ought to be."""
    from lotlip.data.manifest import read_manifest
    from lotlip.data.shards import read_samples
    from lotlip_platform.shard_ledger import ShardLedger
    from lotlip_platform.storage import open_store

    store = open_store(f"{root}/both")
    manifest = read_manifest(store)
    keys: Counter[str] = Counter()
    captions: dict[str, list[str]] = {"describer": [], "tiny": []}
    ledger = ShardLedger(open_store(f"{root}/runs/tiny"))
    dropped = sum(1 for record in ledger.rejected() if "draw" in record)
    for sample in read_samples(store, manifest):
        keys[sample.key] += 1
        for name, found in captions.items():
            found += [sample.long[name]] if name in sample.long else []
    asked = Counter(one.what for one in server.asked)
    twice = sum(asked.values()) - len(asked)
    right = {describe(what) for what in asked}
    rows = {
        "scenes": (len(keys), num_scenes),
        "scenes that are there twice": (sum(keys.values()) - len(keys), 0),
        "captions by the server": (len(captions["describer"]), num_scenes),
        "of them what it said of an image": (len(right & set(captions["describer"])), num_scenes),
        "captions by the LLaVA": (len(captions["tiny"]), num_scenes - dropped),
        "images of which it said nothing": (dropped, num_scenes - len(captions["tiny"])),
        f"questions paid for twice, at most {IN_FLIGHT}": (twice, min(twice, IN_FLIGHT)),
    }
    print()
    for name, (found, wanted) in rows.items():
        print(f"{name:<44}{found:>7,}{'' if found == wanted else f'   WRONG: {wanted:,}'}")
    print(json.dumps({name: found["num"] for name, found in manifest.captions.items()}))
    return all(found == wanted for found, wanted in rows.values())


def sweep_on(root: str, folder: Path) -> None:
    """Train on the new shards as they are, once for each choice of captioners."""
    keys = {
        "data.train": f"{root}/both",
        "data.features": f"{root}/features",
        "scenes.uri": "''",
        "eval.data": f"{root}/scenes",
        "eval.num_samples": "100",
        "train.num_samples": "512",
        "cluster.num_workers": "1",
    }
    lines = "".join(f"  {key}: {value}\n" for key, value in keys.items())
    sweep = folder / "captioner.yaml"
    sweep.write_text(
        f"name: captioner-of-choice\nstore: {root}/sweeps\ntrain: train/scenes\nset:\n{lines}"
        "arms:\n  describer:\n    captions.captioners: [describer]\n"
        "  both:\n    captions.captioners: [describer, tiny]\n"
    )
    lotlip("sweep", str(sweep))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--sweep", action="store_true")
    arguments = parser.parse_args()
    lotlip("up")
    use_local_services()
    root = f"s3://lotlip/relabel-demo-{int(time.time())}"
    server = CaptionServer(seconds=0.05)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = make_tiny_llava(Path(folder) / "tiny-llava")
            number = arguments.scenes
            size = f"--shard-size={max(1, number // 8)}"
            lotlip("data", "scenes", f"{root}/scenes", "--samples", str(number), size)
            relabel_killed(by_endpoint(root, server), server, after=number // 2)
            lotlip(*by_endpoint(root, server))
            lotlip(*by_llava(root, model))
            lotlip("data", "check", f"{root}/both")
            is_right = counts(root, server, number)
            if arguments.sweep:
                sweep_on(root, Path(folder))
    finally:
        server.end()
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
