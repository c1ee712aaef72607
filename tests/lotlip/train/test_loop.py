from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lotlip.captions import CaptionConfig
from lotlip.data.manifest import Manifest, read_manifest, write_manifest
from lotlip.data.order import OrderConfig
from lotlip.data.pipeline import DataConfig, Source
from lotlip.data.sample import Sample
from lotlip.data.shards import write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, DataError, LotlipError
from lotlip.images import AugmentConfig
from lotlip.model import PRESETS, LoTLIP, ModelConfig
from lotlip.tokenizer import Tokenizer
from lotlip.train.loop import LoopConfig, Step, train_steps
from lotlip.train.optim import OptimConfig, make_optimizer
from lotlip.train.state import TrainState, from_bytes, to_bytes

TINY = PRESETS["tiny"]
OPTIM = OptimConfig(lr=3e-3, warmup_steps=5)
GLOBAL_BATCH = 32
STEPS_PER_EPOCH = 9


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def source(scene_store: FolderStore, scene_tokenizer: Tokenizer) -> Source:
    return source_of(scene_store, scene_tokenizer)


def source_of(store: FolderStore, tokenizer: Tokenizer) -> Source:
    return Source(
        store=store,
        manifest=read_manifest(store),
        tokenizer=tokenizer,
        captions=CaptionConfig(sentences_per_sub_caption=2),
        augment=AugmentConfig(),
        order=OrderConfig(num_streams=4, shuffle_window=32),
        image_size_px=32,
        global_batch=GLOBAL_BATCH,
        seed=1,
    )


def new_state(config: ModelConfig = TINY, *, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = LoTLIP(config)
    return TrainState(model, make_optimizer(model, OPTIM))


def run(
    state: TrainState,
    source: Source,
    *,
    num_steps: int,
    stop_after: int | None = None,
    optim: OptimConfig = OPTIM,
    max_bad_fraction: float = 0.0,
    precision: str = "fp32",
    compile: bool = False,
) -> list[Step]:
    loop = LoopConfig(
        num_samples=num_steps * GLOBAL_BATCH,
        global_batch=GLOBAL_BATCH,
        precision=precision,  # type: ignore[arg-type]
        compile=compile,
    )
    data = DataConfig(train=source.store.uri, max_bad_fraction=max_bad_fraction)
    steps: list[Step] = []
    for step in train_steps(state, source, loop=loop, optim=optim, data=data):
        steps.append(step)
        if step.step == stop_after:
            break
    return steps


def with_dropout(rate: float) -> ModelConfig:
    return replace(TINY, text=replace(TINY.text, dropout=rate))


def numbers(steps: list[Step]) -> list[tuple[float, ...]]:
    return [(s.step, s.epoch, s.loss, s.grad_norm, s.lr, s.scale, s.num_tokens) for s in steps]


def test_steps_are_numbered_and_measured(source: Source) -> None:
    steps = run(new_state(), source, num_steps=20)
    assert [step.step for step in steps] == list(range(1, 21))
    assert [step.epoch for step in steps] == [k // STEPS_PER_EPOCH for k in range(20)]
    assert all(step.num_samples == GLOBAL_BATCH and step.bad == () for step in steps)
    assert all(0 <= step.data_wait_s <= step.step_s for step in steps)
    assert all(step.num_tokens > 2 * GLOBAL_BATCH * 4 for step in steps)
    assert 3.2 < steps[0].loss < 4.5, "about log(32) = 3.47 before anything is learnt"


def test_the_loss_falls_below_that_of_guessing(
    scene_samples: list[Sample], scene_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    # 300 scenes take the tiny preset far longer than a test may; 32 can be learnt by heart.
    store = FolderStore(tmp_path)
    shard = write_shard(store, "shard.tar", scene_samples[:GLOBAL_BATCH])
    write_manifest(store, Manifest(shards=(shard,)))
    source = replace(source_of(store, scene_tokenizer), augment=AugmentConfig(min_crop_area=1.0))
    config = replace(TINY, image=replace(TINY.image, stem="conv", pool="mean"))
    optim = OptimConfig(lr=1e-3, warmup_steps=5)
    steps = run(new_state(config), source, num_steps=40, optim=optim)
    assert steps[0].loss > math.log(GLOBAL_BATCH) - 0.2
    assert sum(step.loss for step in steps[-5:]) / 5 < math.log(GLOBAL_BATCH) - 0.4


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(source: Source) -> None:
    once = run(new_state(), source, num_steps=3)
    assert numbers(run(new_state(), source, num_steps=3)) == numbers(once)
    other = run(new_state(), replace(source, seed=2), num_steps=3)
    assert other[0].loss != once[0].loss


@pytest.mark.parametrize("stop_after", [4, STEPS_PER_EPOCH, 13])
def test_a_run_that_was_stopped_continues_bit_for_bit(source: Source, stop_after: int) -> None:
    config = with_dropout(0.1)
    whole_state, stopped = new_state(config), new_state(config)
    whole = run(whole_state, source, num_steps=15)
    before = run(stopped, source, num_steps=15, stop_after=stop_after)
    resumed = new_state(config, seed=99)
    from_bytes(resumed, [to_bytes(stopped)], "the saved state")
    torch.rand(7)  # other random numbers drawn meanwhile change nothing
    after = run(resumed, source, num_steps=15)
    assert numbers(before + after) == numbers(whole)
    for name, value in whole_state.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_sigmoid_loss_falls_its_bias_moves_and_is_resumed(source: Source) -> None:
    config = replace(TINY, loss="sigmoid")
    state = new_state(config)
    steps = run(state, source, num_steps=12)
    assert steps[-1].loss < 0.8 * steps[0].loss
    assert state.model.logit_bias is not None
    assert abs(float(state.model.logit_bias.detach()) + 10.0) > 1e-3
    stopped = new_state(config)
    run(stopped, source, num_steps=12, stop_after=5)
    resumed = new_state(config, seed=1)
    from_bytes(resumed, [to_bytes(stopped)], "memory")
    assert numbers(run(resumed, source, num_steps=12)) == numbers(steps[5:])


def test_a_run_that_is_at_its_end_does_nothing(source: Source) -> None:
    state = new_state()
    run(state, source, num_steps=2)
    assert run(state, source, num_steps=2) == []


def test_dropout_is_on_while_training_and_in_a_locked_tower_everything_is_off(
    source: Source,
) -> None:
    dropped = run(new_state(with_dropout(0.5)), source, num_steps=1)
    assert dropped[0].loss != run(new_state(), source, num_steps=1)[0].loss
    state = new_state(replace(TINY, image=replace(TINY.image, locked_layers=-1)))
    state.model.eval()
    before = {k: v.clone() for k, v in state.model.state_dict().items()}
    run(state, source, num_steps=2)
    assert not any(module.training for module in state.model.image_tower.modules())
    assert state.model.text_tower.training
    changed = {k for k, v in state.model.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(name.startswith("image_tower.") for name in changed)
    assert any(name.startswith("text_tower.") for name in changed)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(source: Source) -> None:
    state = new_state()
    assert len(run(state, source, num_steps=9, stop_after=3)) == 3
    with torch.no_grad():
        state.model.text_projection.weight[0, 0] = float("nan")
    kept = state.model.text_tower.state_dict()
    kept = {name: value.clone() for name, value in kept.items()}
    with pytest.raises(LotlipError, match=r"^step 4: the loss is nan, .* lower optim.lr=0.003 or"):
        run(state, source, num_steps=9)
    assert state.step == 3
    for name, value in state.model.text_tower.state_dict().items():
        assert torch.equal(value, kept[name]), "no weight may be spoiled"


def test_steps_that_are_not_finite_can_be_skipped_and_change_nothing(source: Source) -> None:
    state, calls = new_state(), 0

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return grad * math.nan if calls in (3, 5) else grad

    state.model.text_projection.weight.register_hook(spoil)
    weights = [{k: v.clone() for k, v in state.model.state_dict().items()}]
    loop = LoopConfig(num_samples=9 * GLOBAL_BATCH, global_batch=GLOBAL_BATCH, max_skipped_steps=2)
    data = DataConfig(train="here", order=source.order)
    skipped = []
    for step in train_steps(state, source, loop=loop, optim=OPTIM, data=data):
        skipped.append(step.num_skipped)
        weights.append({k: v.clone() for k, v in state.model.state_dict().items()})
    assert skipped == [0, 0, 1, 1, 2, 2, 2, 2, 2]
    for place in range(8):  # the last step's learning rate is 0
        same = all(torch.equal(weights[place][k], weights[place + 1][k]) for k in weights[0])
        assert same == (place in (2, 4))
    calls = 0
    state.step = 0
    with pytest.raises(LotlipError, match=r"^step 3: the loss is "):
        list(train_steps(state, source, loop=loop, optim=OPTIM, data=data))


def test_a_learning_rate_far_too_high_ends_in_that_error(source: Source) -> None:
    optim = OptimConfig(lr=1e30, warmup_steps=0)
    with pytest.raises(LotlipError, match=r"^step \d+: the loss is .*lower optim.lr=1e\+30"):
        run(new_state(), source, num_steps=9, optim=optim)


def test_the_gradient_norm_is_that_before_clipping(source: Source) -> None:
    clipped = run(new_state(), source, num_steps=2, optim=replace(OPTIM, max_grad_norm=1e-3))
    free = run(new_state(), source, num_steps=2, optim=replace(OPTIM, max_grad_norm=0))
    assert clipped[0].grad_norm == free[0].grad_norm > 1e-2
    assert clipped[1].loss != free[1].loss


def test_bf16_trains_as_well(source: Source) -> None:
    exact = run(new_state(), source, num_steps=12)
    rounded = run(new_state(), source, num_steps=12, precision="bf16")
    assert rounded[0].loss != exact[0].loss
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=0.1)


@pytest.mark.slow  # half a minute for the C++ compiler
@pytest.mark.filterwarnings("default")  # the compiler warns of its own ways
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++, not found here")
@pytest.mark.parametrize(
    ("precision", "dropout", "closeness"), [("fp32", 0, 1e-4), ("bf16", 0.1, 0.3)]
)
def test_compiled_towers_train_as_well(
    source: Source, precision: str, dropout: float, closeness: float
) -> None:
    config = with_dropout(dropout)  # which the compiler draws in its own way
    plain = run(new_state(config), source, num_steps=6, precision=precision)
    compiled = run(new_state(config), source, num_steps=6, precision=precision, compile=True)
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=closeness)


def test_without_a_compiler_train_compile_is_refused_in_one_line(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: object) -> None:
        raise RuntimeError("no\ncompiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"train\.compile=true: torch can't compile here \(Run"):
        run(new_state(), source, num_steps=1, compile=True)


@pytest.fixture
def spoilt(scene_store: FolderStore, tmp_path: Path) -> FolderStore:
    """The data set with every sample of its shards 1 and 2, 60 of 300, without a short caption."""
    folder = tmp_path / "spoilt"
    shutil.copytree(scene_store.root, folder)
    for name in ("shard-000001.tar", "shard-000002.tar"):
        path = folder / name
        path.write_bytes(path.read_bytes().replace(b'"short"', b'"shirt"'))
    return FolderStore(folder)


def test_too_many_bad_samples_stop_the_run_and_are_listed(
    spoilt: FolderStore, scene_tokenizer: Tokenizer
) -> None:
    source = replace(source_of(spoilt, scene_tokenizer), order=OrderConfig(num_streams=4))
    with pytest.raises(DataError) as caught:
        run(new_state(), source, num_steps=9, max_bad_fraction=0.05)
    text = str(caught.value)
    assert "\n" not in text
    found = re.match(r"(\d+) bad samples in epoch 0, more than data.max_bad_f", text)
    assert found
    assert int(found[1]) > 15
    assert "bad_samples.jsonl" in text
    listed = re.findall(
        r"shard-00000[12].tar\[(\d+)\]: sample (\d+): its json has no text 'short'", text
    )
    assert len(listed) == 5
    firsts = [60 if int(key) < 71 else 71 for _, key in listed]
    assert [int(index) for index, _ in listed] == [
        int(key) - first for (_, key), first in zip(listed, firsts, strict=True)
    ]


def test_below_the_limit_training_goes_on_and_each_epoch_counts_anew(
    spoilt: FolderStore, scene_tokenizer: Tokenizer
) -> None:
    source = replace(source_of(spoilt, scene_tokenizer), order=OrderConfig(num_streams=4))
    state = new_state()
    steps = run(state, source, num_steps=2 * STEPS_PER_EPOCH, max_bad_fraction=0.2)
    num_bad = sum(len(step.bad) for step in steps)
    assert state.num_used == 2 * STEPS_PER_EPOCH * GLOBAL_BATCH - num_bad
    for epoch in (0, 1):
        num_bad = sum(len(step.bad) for step in steps if step.epoch == epoch)
        assert 60 - 12 <= num_bad <= 60
    assert all(step.num_samples == GLOBAL_BATCH for step in steps)


def test_two_processes_give_the_losses_of_one(
    scene_store: FolderStore, scene_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    shutil.copytree(scene_store.root, folder)
    scene_tokenizer.save(folder / "tokenizer")
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes().replace(b'"short"', b'"shirt"', 5))
    outputs = together(folder)
    result = json.loads(outputs[0])
    alone = result["alone"]
    assert len(alone["loss"]) == 5
    for shared in (result["together"], result["in parts"]):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        assert shared["num_bad"] == alone["num_bad"]


def test_a_worker_without_bad_samples_lists_those_of_the_others(
    scene_store: FolderStore, scene_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    shutil.copytree(scene_store.root, folder)
    scene_tokenizer.save(folder / "tokenizer")
    path = folder / "shard-000005.tar"  # in the half that worker 1 reads
    path.write_bytes(path.read_bytes().replace(b'"short"', b'"shirt"'))
    first, second = together(folder, "0.05")
    assert first == second
    assert len(re.findall(r"shard-000005.tar\[\d+\]: sample \d+: its json has", first)) == 5
    assert "bad_samples.jsonl" in first


def together(folder: Path, *arguments: str) -> list[str]:
    """What two workers print that train on a data set."""
    script = Path(__file__).with_name("loop_worker.py")
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank), "2", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    return [out for out, _ in outputs]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "train.num_samples=0 must be 1 or more"),
        ({"num_samples": 31}, "train.num_samples=31 is less than one batch of .*=32"),
        ({"save_every_steps": 0}, "train.save_every_steps=0 must be 1 or more"),
        ({"seed": -1}, "train.seed=-1 must be 0 or more"),
        ({"long_weight": 0.0}, "train.long_weight=0.0 must be above 0"),
    ],
)
def test_a_loop_that_cannot_run_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoopConfig(**{"num_samples": 100, "global_batch": 32, **change})  # type: ignore[arg-type]
