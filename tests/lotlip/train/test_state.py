import dataclasses
import math

import pytest
import safetensors.torch
import torch

from lotlip.errors import CheckpointError
from lotlip.losses import multi_text_loss
from lotlip.model import PRESETS, LoTLIP
from lotlip.train.optim import OptimConfig, make_optimizer
from lotlip.train.state import TrainState, from_bytes, to_bytes

TINY = PRESETS["tiny"]
OPTIM = OptimConfig(lr=1e-2)


def make_state(seed: int = 0, *, locked_layers: int = 0, num_corner_tokens: int = 2) -> TrainState:
    torch.manual_seed(seed)
    config = dataclasses.replace(
        TINY,
        image=dataclasses.replace(TINY.image, locked_layers=locked_layers),
        text=dataclasses.replace(TINY.text, num_corner_tokens=num_corner_tokens),
    )
    model = LoTLIP(config).train()
    return TrainState(model=model, optimizer=make_optimizer(model, OPTIM))


def train(state: TrainState, num_steps: int) -> list[float]:
    losses = []
    for _ in range(num_steps):
        generator = torch.Generator().manual_seed(state.step)
        images = torch.rand(4, 3, 32, 32, generator=generator)
        ids = torch.randint(5, 1024, (4, 3, 12), generator=generator)
        image, text = state.model(images, ids)
        loss = multi_text_loss(image, text, state.model.scale())
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        state.model.clamp_scale_()
        state.step += 1
        losses.append(loss.item())
    return losses


def assert_same_weights(one: TrainState, other: TrainState) -> None:
    theirs = other.model.state_dict()
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    "config", [{}, {"locked_layers": -1}, {"locked_layers": 1}, {"num_corner_tokens": 0}]
)
def test_training_goes_on_bit_for_bit_after_a_restart(config):
    uninterrupted = make_state(**config)
    losses = train(uninterrupted, 6)
    interrupted = make_state(**config)
    assert train(interrupted, 3) == losses[:3]
    content = to_bytes(interrupted)
    resumed = make_state(seed=9, **config)
    from_bytes(resumed, [content], "here")
    assert resumed.step == 3
    assert to_bytes(resumed) == content
    assert train(resumed, 3) == losses[3:]
    assert_same_weights(resumed, uninterrupted)
    assert to_bytes(resumed) == to_bytes(uninterrupted)


@pytest.mark.parametrize("num_shares", [2, 3, 7])
def test_shares_are_about_equal_and_give_the_whole_together(num_shares: int):
    state = make_state()
    train(state, 2)
    state.num_used, state.num_bad_in_epoch = 5, 3
    shares = [to_bytes(state, share, num_shares) for share in range(num_shares)]
    assert sum(map(len, shares)) < len(to_bytes(state)) + 200 * num_shares
    largest = max(value.nbytes for value in state.model.state_dict().values())
    assert max(map(len, shares)) < len(to_bytes(state)) / num_shares + largest + 20_000
    resumed = make_state(seed=9)
    from_bytes(resumed, shares[::-1], "here")
    assert to_bytes(resumed) == to_bytes(state)
    assert (resumed.step, resumed.num_used, resumed.num_bad_in_epoch) == (2, 5, 3)
    with pytest.raises(CheckpointError, match=r"^here (lacks|is not a training state)"):
        from_bytes(make_state(), shares[1:], "here")


def test_the_moments_matter():
    """Else the test above could not tell a state without them."""
    whole, without = make_state(), make_state()
    train(whole, 3)
    without.model.load_state_dict(whole.model.state_dict())
    without.step = 3
    train(whole, 1)
    train(without, 1)
    with pytest.raises(AssertionError):
        assert_same_weights(whole, without)


def test_the_bytes_do_not_change_while_training_goes_on():
    state = make_state()
    train(state, 1)
    content = to_bytes(state)
    kept = bytes(content)
    train(state, 1)
    assert content == kept
    assert to_bytes(state) != content


def test_a_state_in_use_goes_back_to_what_was_saved():
    state = make_state()
    start = to_bytes(state)
    losses = train(state, 3)
    from_bytes(state, [start], "here")
    assert state.step == 0
    assert train(state, 3) == losses


def test_what_is_restored_is_a_copy():
    first, second = make_state(1), make_state(2)
    trained = make_state()
    train(trained, 2)
    content = to_bytes(trained)
    from_bytes(first, [content], "here")
    from_bytes(second, [content], "here")
    train(first, 2)
    assert to_bytes(second) == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"garbage" * 10,
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:4],
        lambda content: content + b"\0",
        lambda content: content[:8] + b"\xff" + content[9:],
    ],
)
def test_damaged_bytes_are_an_error_that_says_where(damage):
    state = make_state()
    train(state, 1)
    content = to_bytes(state)
    with pytest.raises(CheckpointError, match=r"^s3://bucket/step-7 is damaged: ") as caught:
        from_bytes(state, [damage(content)], "s3://bucket/step-7")
    assert "\n" not in str(caught.value)
    assert to_bytes(state) == content


def edited(content: bytes, **changes: torch.Tensor | None) -> bytes:
    tensors = safetensors.torch.load(content) | changes
    return safetensors.torch.save({k: v for k, v in tensors.items() if v is not None})


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"step": None}, "is not a training state: it has no step"),
        ({"model.logit_scale": None}, "lacks logit_scale"),
        ({"model.extra": torch.zeros(1)}, "has extra, which this model has no place for"),
        ({"model.logit_scale": torch.zeros(2)}, r"logit_scale has shape \[2\]"),
        ({"optimizer.gone.exp_avg": torch.zeros(1)}, "has moments of parameters that don't learn"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error(changes, message):
    state = make_state()
    train(state, 1)
    with pytest.raises(CheckpointError, match=message):
        from_bytes(make_state(), [edited(to_bytes(state), **changes)], "here")


def test_a_state_of_another_model_is_an_error():
    with pytest.raises(CheckpointError, match=r"corners has shape \[2, 32\], the model needs \[4,"):
        from_bytes(make_state(num_corner_tokens=4), [to_bytes(make_state())], "here")


def test_moments_of_a_tower_that_is_locked_now_are_an_error():
    state = make_state()
    train(state, 1)
    with pytest.raises(CheckpointError, match="resume with the locked layers"):
        from_bytes(make_state(locked_layers=-1), [to_bytes(state)], "here")


def test_the_mean_of_losses_goes_on_where_a_checkpoint_left_it() -> None:
    state = make_state()
    for number, loss in enumerate((0.1, float("nan"), 0.3)):
        mean = state.count_loss(loss, anew=number == 0)
    again = make_state(1)
    from_bytes(again, [to_bytes(state)], "here")
    assert mean == 0.2
    assert again.count_loss(1 / 3, anew=False) == state.count_loss(1 / 3, anew=False)
    assert again.num_losses == 3
    assert again.count_loss(7.0, anew=True) == 7.0
    assert math.isnan(again.count_loss(float("inf"), anew=True))
