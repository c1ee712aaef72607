"""Groups of gloo workers, `python gloo_worker.py FOLDER`: of 1, of 2, of 4.

Each worker takes its rows of the global batch, brings the loss back through the model as the
training loop does, twice, and leaves what it found in FOLDER/{world}-{rank}.safetensors. A worker
alone has no process group.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist

from lotlip import distributed, losses
from lotlip.losses import multi_text_loss, multi_text_sigmoid_loss
from lotlip.model import PRESETS, LoTLIP

WORLDS = (1, 2, 4)
GLOBAL_BATCH = 8
# (corner tokens, captions an image, weight of the long ones, is the image tower locked)
CASES = {
    "plain": (2, 3, 1.0, False),
    "weighted, locked": (1, 3, 0.3, True),
    "no corners": (0, 3, 1.0, False),
    "short only": (2, 1, 1.0, False),
}


def make_model(num_corner_tokens: int, locked: bool) -> LoTLIP:
    torch.manual_seed(0)
    tiny = PRESETS["tiny"]
    text = dataclasses.replace(tiny.text, num_corner_tokens=num_corner_tokens)
    image = dataclasses.replace(tiny.image, projection=True, locked_layers=-locked)
    # Double precision in the towers: what is left of the rounding is that of features and loss.
    return LoTLIP(dataclasses.replace(tiny, text=text, image=image)).double()


def make_batch(num_corner_tokens: int, num_texts: int, step: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    colours = torch.rand(GLOBAL_BATCH, 3, 1, 1, generator=generator)
    images = colours + torch.rand(GLOBAL_BATCH, 3, 32, 32, generator=generator) - 1
    images = images.double()
    ids = torch.randint(5, 1024, (GLOBAL_BATCH, num_texts, 20), generator=generator)
    ids[:, :, 0] = 2
    for corner in range(num_corner_tokens):
        ids[:, :, 1 + corner] = 1024 + corner
    for row in range(GLOBAL_BATCH):  # workers have texts of different lengths
        ids[row, :, 8 + row :] = 0
    return images, ids


def run(case: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """The gradients after the second of two steps without an optimiser, and the losses."""
    num_corner_tokens, num_texts, long_weight, locked = CASES[case]
    model = make_model(num_corner_tokens, locked)
    parallel = distributed.data_parallel(model).train()
    own = slice(rank * GLOBAL_BATCH // world, (rank + 1) * GLOBAL_BATCH // world)
    found = {}
    for step in range(2):
        images, ids = make_batch(num_corner_tokens, num_texts, step)
        image, text = parallel(images[own], ids[own])
        loss = multi_text_loss(image, text, model.scale(), long_weight=long_weight)
        model.zero_grad(set_to_none=True)
        loss.backward()
        found[f"{case}|loss {step}"] = distributed.mean(loss)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"{case}|{name}"] = parameter.grad
    return found


def gather_cases(rank: int, world: int) -> dict[str, torch.Tensor]:
    """The gather by itself: order, layout, the gradient, and what else uses that gradient."""
    # Transposed, so that the rows don't lie one behind the other in memory.
    rows = (torch.arange(6.0).view(2, 3) + 10 * rank).T.requires_grad_()
    other = torch.zeros(3 * world, 2, requires_grad=True)
    later = other * 1.0  # made before the gather, so its gradient is computed after the gather's
    everyone = distributed.gather(rows)
    (everyone + later).backward(torch.full((3 * world, 2), rank + 1.0))
    assert rows.grad is not None
    assert other.grad is not None
    objects = distributed.gather_objects({"rank": rank})
    collected = distributed.collect_objects({"rank": rank})
    assert collected == (objects if rank == 0 else [])
    assert objects == [{"rank": each} for each in range(world)]
    return {
        "gather|rows": everyone.detach(),
        "gather|rows' gradient": rows.grad,
        "gather|the other's gradient": other.grad,
    }


def feature_case(loss: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """A loss by itself, in several tiles: its gradients by features that all differ."""
    losses._TILE = 5 * 64
    image, text, scale, bias = (value.float().requires_grad_() for value in make_features())
    own = slice(rank * len(image) // world, (rank + 1) * len(image) // world)
    if loss == "sigmoid":
        share = multi_text_sigmoid_loss(image[own], text[own], scale, bias, long_weight=0.7)
    else:
        share = multi_text_loss(image[own], text[own], scale, long_weight=0.7)
    share.backward()
    values = {"image": image, "text": text, "scale": scale, "bias": bias}
    found = {name: value.grad for name, value in values.items() if value.grad is not None}
    return {
        f"{loss}|loss": distributed.mean(share),
        **{f"{loss}|{name}": distributed.mean(gradient) for name, gradient in found.items()},
    }


def make_features() -> tuple[torch.Tensor, ...]:
    """Of 64 images with 3 texts each, near enough that the loss is not all chance; scale, bias."""
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(64, 1, 32, generator=generator, dtype=torch.float64)
    text = 0.3 * image + torch.randn(64, 3, 32, generator=generator, dtype=torch.float64)
    image, text = (torch.nn.functional.normalize(part, dim=-1) for part in (image, text))
    scale, bias = torch.tensor([20.0, -7.0], dtype=torch.float64)
    return image[:, 0], text, scale, bias


def work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:
        meeting = f"file://{folder}/meeting-{world}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    found = gather_cases(rank, world)
    for loss in ("softmax", "sigmoid"):
        found |= feature_case(loss, rank, world)
    for case in CASES:
        found |= run(case, rank, world)
    found = {name: value.detach().clone().contiguous() for name, value in found.items()}
    safetensors.torch.save_file(found, folder / f"{world}-{rank}.safetensors")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def main(folder: Path) -> None:
    fork = multiprocessing.get_context("fork")  # torch is imported once for all of them
    for world in WORLDS:
        workers = [fork.Process(target=work, args=(rank, world, folder)) for rank in range(world)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            sys.exit(f"a group of {world} workers failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
