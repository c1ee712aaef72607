"""`make bench-gpu`: training against the GPU's peak, texts and loss against their yardsticks.

Prints a table and writes docs/benchmarks-gpu.md. With BENCH_DEVICE=cpu and --preset tiny it goes
the same way without a GPU, which says nothing but that it goes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import date
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("BENCH_DEVICE", "cuda")
sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

import contrast
import loading
import texts
import torch
from measuring import DEVICE
from reporting import table

from lotlip.data.pipeline import DataConfig
from lotlip.data.store import FolderStore
from lotlip.images import AugmentConfig
from lotlip.model import PRESETS, LoTLIP
from lotlip.train.flops import peak_flops
from lotlip.train.loop import LoopConfig, Step, train_steps
from lotlip.train.optim import OptimConfig, make_optimizer
from lotlip.train.state import TrainState

REPORT = Path(__file__).parents[2] / "docs" / "benchmarks-gpu.md"
SKIPPED = 10
"""Steps at the beginning, which allocate and fill the loader."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="vit-b-16")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--loaders", type=int, default=8, help="processes that decode images")
    parser.add_argument("--compile", action="store_true", help="train.compile")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        sys.exit("make bench-gpu: torch sees no GPU here; `make bench` is for machines without one")
    steps = training(arguments)
    lines = [
        "# Benchmarks on a GPU",
        "",
        f"`make bench-gpu` on {date.today()}: {card()}, torch {torch.__version__}.",
        "",
        f"Training, preset {arguments.preset}, batch {arguments.batch}, 1 short and 1 long caption",
        f"an image, bf16{', compiled' * arguments.compile}, {arguments.steps} steps of which the",
        f"first {SKIPPED} don't count:",
        "",
        *figures(steps),
    ]
    if arguments.preset != "tiny":
        rows = [*texts.rows(), *contrast.rows()]
        lines += [
            "",
            "Seconds until the GPU has done it, fp32, medians of repeats that take turns; memory",
            "is the GPU's:",
            "",
            *table(rows),
        ]
    print("\n".join(lines))
    arguments.report.write_text("\n".join(lines) + "\n")


def card() -> str:
    return torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "no GPU"


def training(arguments: argparse.Namespace) -> list[Step]:
    """Photographs of 512 x 384 px with the captions of scenes, from local shards."""
    config, batch, num_loaders = PRESETS[arguments.preset], arguments.batch, arguments.loaders
    with tempfile.TemporaryDirectory() as folder:
        num_samples = arguments.steps * batch  # one epoch: the next begins with an empty loader
        images = list(islice(cycle(loading.photos(64, 512, 384)), num_samples))
        scenes = loading.Scenes(FolderStore(folder), images, size_px=config.image.image_size_px)
        tokenizer = scenes.tokenizer(config)
        source = scenes.source(tokenizer, AugmentConfig(), batch=batch, num_streams=num_loaders)
        model = LoTLIP(config, tokenizer).to(DEVICE)
        state = TrainState(model, make_optimizer(model, OptimConfig()))
        loop = LoopConfig(
            num_samples=num_samples,
            global_batch=batch,
            precision="bf16",
            compile=arguments.compile,
        )
        data = DataConfig(train=folder, order=source.order, num_loader_processes=num_loaders)
        steps = train_steps(state, source, loop=loop, optim=OptimConfig(), data=data)
        return list(steps)[SKIPPED:]


def figures(steps: list[Step]) -> list[str]:
    seconds = sum(step.step_s for step in steps)
    waited = sum(step.data_wait_s for step in steps)
    flops, peak = sum(step.flops for step in steps) / seconds, peak_flops(DEVICE)
    lines = [
        "| what | measured | goal |",
        "|---|---|---|",
        f"| images/s | {sum(step.num_samples for step in steps) / seconds:,.0f} | - |",
        f"| text tokens/s | {sum(step.num_tokens for step in steps) / seconds:,.0f} | - |",
        f"| TFLOP/s | {flops / 1e12:.2f} | - |",
        f"| MFU | {f'{flops / peak:.1%}' if peak else 'peak not known'} | >= 40% |",
        f"| waiting for data | {waited / seconds:.1%} | < 3% |",
    ]
    if DEVICE.type == "cuda":
        peak_mib = torch.cuda.max_memory_allocated(DEVICE) / 2**20
        lines.append(f"| peak memory, MiB | {peak_mib:,.0f} | - |")
    return lines


if __name__ == "__main__":
    main()
