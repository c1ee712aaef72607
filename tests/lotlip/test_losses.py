"""The loss against a naive one, and its gradient over real gloo workers."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import gloo_worker
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from lotlip import losses
from lotlip.losses import multi_text_loss, multi_text_sigmoid_loss

WORKER = Path(gloo_worker.__file__)


def features(num_images: int = 5, num_texts: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(num_images, 8, generator=generator)
    text = torch.randn(num_images, num_texts, 8, generator=generator)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def naive_loss(image: Tensor, text: Tensor, scale: float, long_weight: float = 1.0) -> float:
    """One exponential after the other, in double precision."""
    num_images, num_texts, _ = text.shape
    total = 0.0
    weights = [1.0] + [long_weight] * (num_texts - 1)
    for n in range(num_texts):
        logits = [
            [scale * float(image[i].double() @ text[j, n].double()) for j in range(num_images)]
            for i in range(num_images)
        ]
        for i in range(num_images):
            row = sum(math.exp(logits[i][j]) for j in range(num_images))
            column = sum(math.exp(logits[j][i]) for j in range(num_images))
            own = math.exp(logits[i][i])
            both = -math.log(own / row) - math.log(own / column)
            total += weights[n] * both / 2 / num_images
    return total / sum(weights)


@pytest.mark.parametrize("num_texts", [1, 2, 7])
def test_the_loss_is_the_mean_over_the_text_features(num_texts):
    image, text = features(num_texts=num_texts)
    got = float(multi_text_loss(image, text, torch.tensor(14.0)))
    assert got == pytest.approx(naive_loss(image, text, 14.0), rel=1e-5)
    each = [
        float(multi_text_loss(image, text[:, [n]], torch.tensor(14.0))) for n in range(num_texts)
    ]
    assert got == pytest.approx(sum(each) / num_texts, rel=1e-5)


def test_images_and_texts_may_change_places():
    image, text = features(num_texts=1)
    scale = torch.tensor(14.0)
    swapped = multi_text_loss(text[:, 0], image[:, None], scale)
    torch.testing.assert_close(multi_text_loss(image, text, scale), swapped)


@pytest.mark.parametrize("long_weight", [0.25, 3.0])
def test_long_weight_counts_every_feature_but_the_first(long_weight):
    image, text = features()
    got = float(multi_text_loss(image, text, torch.tensor(9.0), long_weight=long_weight))
    assert got == pytest.approx(naive_loss(image, text, 9.0, long_weight), rel=1e-5)
    assert got != pytest.approx(naive_loss(image, text, 9.0), rel=1e-3)


def test_a_text_feature_meets_only_those_of_its_own_index():
    image, text = features(num_texts=2)
    scale = torch.tensor(10.0)
    mixed = text.clone()
    mixed[:, 1] = text[[1, 2, 3, 4, 0], 1]
    change = multi_text_loss(image, mixed, scale) - multi_text_loss(image, text, scale)
    alone = multi_text_loss(image, mixed[:, 1:], scale) - multi_text_loss(image, text[:, 1:], scale)
    torch.testing.assert_close(change, alone / 2)


def test_a_perfect_match_costs_nothing_and_chance_costs_log_n():
    same = torch.eye(6)
    assert float(multi_text_loss(same, same[:, None], torch.tensor(100.0))) < 1e-6
    blind = torch.ones(6, 4) / 2
    loss = multi_text_loss(blind, blind[:, None], torch.tensor(100.0))
    assert float(loss) == pytest.approx(math.log(6))


@pytest.fixture(scope="module")
def found_by_workers(tmp_path_factory) -> Path:
    """A folder with what each of several workers found."""
    folder = tmp_path_factory.mktemp("workers")
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = worker.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(worker.pid, signal.SIGKILL)  # its children, too
        raise
    assert worker.returncode == 0, output
    return folder


def load(folder: Path, world: int) -> list[dict[str, Tensor]]:
    return [
        safetensors.torch.load_file(folder / f"{world}-{rank}.safetensors") for rank in range(world)
    ]


@pytest.fixture(scope="module")
def one_process(found_by_workers) -> dict[str, Tensor]:
    return load(found_by_workers, 1)[0]


@pytest.fixture(scope="module", params=[2, 4])
def workers(request, found_by_workers) -> list[dict[str, Tensor]]:
    return load(found_by_workers, request.param)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gradients_are_those_of_all_logits_in_double_precision(one_process, workers, kind):
    inputs = dict(zip(("image", "text", "scale", "bias"), gloo_worker.make_features(), strict=True))
    image, text, scale, bias = (value.requires_grad_() for value in inputs.values())
    loss = torch.zeros((), dtype=torch.float64)
    own = torch.arange(len(image))
    for n, weight in enumerate((1.0, 0.7, 0.7)):
        logits = scale * image @ text[:, n].T
        if kind == "sigmoid":
            signs = 2 * torch.eye(len(image), dtype=torch.float64) - 1
            of_text = -F.logsigmoid(signs * (logits + bias)).sum(dim=1).mean()
        else:
            of_text = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        loss = loss + weight * of_text / 2.4
    loss.backward()
    expected = {name: value.grad for name, value in inputs.items() if value.grad is not None}
    assert ("bias" in expected) == (kind == "sigmoid")
    for found in [one_process, *workers]:
        assert float(found[f"{kind}|loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)
        for name, gradient in expected.items():
            difference = (found[f"{kind}|{name}"] - gradient).norm()
            assert difference < 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_logits_are_made_some_rows_at_a_time(monkeypatch, kind):
    image, text = features(num_images=7, num_texts=3)
    whole, tiled = [], []
    for found, tile in ((whole, 1 << 20), (tiled, 15)):  # 15 / 7: two rows at a time
        monkeypatch.setattr(losses, "_TILE", tile)
        inputs = [value.clone().requires_grad_() for value in (image, text, torch.tensor(30.0))]
        bias = [torch.tensor(-3.0)] if kind == "sigmoid" else []
        of_kind = multi_text_sigmoid_loss if bias else multi_text_loss
        loss = of_kind(*inputs, *bias)
        loss.backward()
        found += [loss.detach(), *(value.grad for value in inputs)]
    for one, other in zip(whole, tiled, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_nothing_overflows_at_the_ends_of_the_scale(scale):
    apart = torch.eye(4)
    image, text = apart.clone().requires_grad_(), -apart[:, None].clone().requires_grad_()
    loss = multi_text_loss(image, text, torch.tensor(scale))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(scale + math.log(3 + math.exp(-scale)))
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize("case", ["plain", "weighted, locked", "no corners", "short only"])
def test_several_workers_have_the_gradient_of_one(one_process, workers, case):
    expected = {n: v for n, v in one_process.items() if n.startswith(f"{case}|")}
    learns_image = f"{case}|image_tower.patch_embed.proj.weight" in expected
    assert learns_image == ("locked" not in case)
    assert f"{case}|logit_scale" in expected
    assert f"{case}|image_projection.weight" in expected
    gradients = {name: value for name, value in expected.items() if "|loss" not in name}
    largest = max(float(value.abs().max()) for value in gradients.values())
    for found in workers:
        assert {n for n in found if n.startswith(f"{case}|")} == set(expected)
        for name, value in expected.items():
            difference = float((found[name] - value).abs().max())
            assert difference < 2e-6 * largest, name  # features are in single precision
            assert difference < 1e-5 * float(value.abs().max()) + 1e-9, name


def test_rows_are_gathered_in_the_order_of_the_ranks(workers):
    expected = torch.cat([torch.arange(6.0).view(2, 3).T + 10 * r for r in range(len(workers))])
    for found in workers:
        assert torch.equal(found["gather|rows"], expected)


def test_the_gradient_of_a_row_is_summed_over_the_workers_that_used_it(workers):
    total = sum(range(1, len(workers) + 1))
    for rank, found in enumerate(workers):
        assert (found["gather|rows' gradient"] == total).all()
        assert (found["gather|the other's gradient"] == rank + 1).all()
