"""One of several training processes that talk over gloo; test_loop.py starts them.

    python loop_worker.py FOLDER RANK NUM_WORKERS [MAX_BAD_FRACTION]

FOLDER holds the data set and, in tokenizer/, the tokenizer. Rank 0 trains alone first, and then
prints the losses and gradient norms of both runs, and of one in which each worker computes some
images at a time, and how many bad samples each found, as JSON.
With MAX_BAD_FRACTION there are to be too many: they train together only, and each worker prints
the error it got.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lotlip import distributed
from lotlip.captions import CaptionConfig
from lotlip.data.manifest import read_manifest
from lotlip.data.order import OrderConfig
from lotlip.data.pipeline import DataConfig, Source
from lotlip.data.store import FolderStore
from lotlip.errors import DataError
from lotlip.images import AugmentConfig
from lotlip.model import PRESETS, LoTLIP
from lotlip.tokenizer import Tokenizer
from lotlip.train.loop import LoopConfig, train_steps
from lotlip.train.optim import OptimConfig, make_optimizer
from lotlip.train.state import TrainState


def train(
    folder: Path, num_steps: int, max_bad_fraction: float = 0.1, micro_batch: int = 0
) -> dict[str, list[float]]:
    """Losses, gradient norms and the number of bad samples of all workers in each step."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    model = LoTLIP(PRESETS["tiny"], tokenizer)
    optim = OptimConfig(lr=2e-3, warmup_steps=2)
    store = FolderStore(folder)
    source = Source(
        store=store,
        manifest=read_manifest(store),
        tokenizer=tokenizer,
        captions=CaptionConfig(sentences_per_sub_caption=2),
        augment=AugmentConfig(),
        order=OrderConfig(num_streams=4, shuffle_window=32),
        image_size_px=32,
        global_batch=24,
        seed=1,
    )
    steps = list(
        train_steps(
            TrainState(model, make_optimizer(model, optim)),
            source,
            loop=LoopConfig(
                num_samples=num_steps * 24,
                global_batch=24,
                precision="fp32",
                micro_batch=micro_batch,
            ),
            optim=optim,
            data=DataConfig(train=str(folder), max_bad_fraction=max_bad_fraction),
        )
    )
    bad = distributed.gather_objects([len(step.bad) for step in steps])
    return {
        "loss": [step.loss for step in steps],
        "grad_norm": [step.grad_norm for step in steps],
        "num_bad": [sum(counts) for counts in zip(*bad, strict=True)],
    }


def main(folder: Path, rank: int, num_workers: int, max_bad_fraction: float | None = None) -> None:
    torch.set_num_threads(1)
    alone = train(folder, num_steps=5) if rank == 0 and max_bad_fraction is None else {}
    rendezvous = dist.FileStore(str(folder / "rendezvous"), num_workers)
    dist.init_process_group("gloo", store=rendezvous, rank=rank, world_size=num_workers)
    if max_bad_fraction is None:
        together = train(folder, num_steps=5)
        in_parts = train(folder, num_steps=5, micro_batch=5)
        if rank == 0:
            runs = {"alone": alone, "together": together, "in parts": in_parts}
            sys.stdout.write(json.dumps(runs))
    else:
        try:
            train(folder, num_steps=9, max_bad_fraction=max_bad_fraction)
        except DataError as error:
            sys.stdout.write(str(error))
    # Whoever left early, while the other still talks, aborted in one of twelve runs.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:]))
