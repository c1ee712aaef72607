"""From a sweep's config to its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lotlip.errors import ConfigError
from lotlip_platform.config import build_config, dump_config, load_config, shipped_configs
from lotlip_platform.sweep_config import SweepConfig, Trial, trials

BASE = {
    "name": "base",
    "model": {"preset": "tiny"},
    "data": {"train": "data"},
    "train": {"num_samples": 1280},
    "eval": {"data": "held-out"},
}


def trials_of(folder: Path, **changes: Any) -> list[Trial]:
    file = folder / "base.yaml"
    file.write_text(yaml.safe_dump(BASE))
    values = {"name": "sweep", "train": str(file), "space": {"optim.lr": [1e-3]}} | changes
    found, refused = trials(build_config(SweepConfig, values), "runs")
    assert not refused
    return found


def test_every_value_meets_every_other_with_every_seed(tmp_path: Path) -> None:
    space = {"model.text.num_corner_tokens": [0, 2], "captions.sentences_per_sub_caption": [1, 0]}
    found = trials_of(tmp_path, space=space, seeds=[3, 4])
    points = [tuple(trial.point.values()) for trial in found]
    assert points == 2 * [(0, 1), (0, 0), (2, 1), (2, 0)]
    assert [trial.seed for trial in found] == 4 * [3] + 4 * [4]
    first = found[0].config
    assert first.model.text.num_corner_tokens == 0
    assert first.captions.sentences_per_sub_caption == 1
    assert (first.train.seed, first.store, first.name) == (3, "runs", found[0].name)
    assert first.tracking.registered_model == ""
    assert len({trial.name for trial in found}) == 8


def test_what_is_set_is_common_and_an_arm_sets_several_keys(tmp_path: Path) -> None:
    arms = {
        "short only": {"captions": {"num_sub_captions": 0}, "model.text.num_corner_tokens": 0},
        "m = 2": {"model.text.num_corner_tokens": 2},
    }
    found = trials_of(tmp_path, arms=arms, space={}, set={"train": {"num_samples": 640}})
    assert [trial.label for trial in found] == ["short only", "m = 2"]
    short, both = (trial.config for trial in found)
    assert (short.captions.num_sub_captions, both.captions.num_sub_captions) == (0, 1)
    assert (short.model.text.num_corner_tokens, both.model.text.num_corner_tokens) == (0, 2)
    assert {trial.config.train.num_samples for trial in found} == {640}


def test_a_trial_keeps_its_name_whatever_else_is_searched(tmp_path: Path) -> None:
    few = trials_of(tmp_path, space={"optim.lr": [1e-3, 1e-2]})
    more = trials_of(tmp_path, space={"optim.lr": [1e-1, 1e-2, 1e-3]}, seeds=[0, 1])
    assert {trial.name for trial in few} < {trial.name for trial in more}


def test_a_trial_is_the_same_however_its_keys_are_ordered(tmp_path: Path) -> None:
    space = {"optim.lr": [1e-3], "model.text.num_corner_tokens": {"choice": [2]}}
    (one,) = trials_of(tmp_path, space=space)
    (other,) = trials_of(tmp_path, space=dict(reversed(space.items())))
    assert one.name == other.name


def test_draws_stay_the_same_and_lie_in_their_ranges(tmp_path: Path) -> None:
    space = {
        "optim.lr": {"log_uniform": [1e-4, 1e-2]},
        "optim.weight_decay": {"uniform": [0.0, 0.5]},
        "model.text.num_corner_tokens": {"integers": [0, 4]},
        "captions.sentences_per_sub_caption": {"choice": [1, 2, 0]},
    }
    points = [trial.point for trial in trials_of(tmp_path, space=space, num_draws=40)]
    assert points[:10] == [trial.point for trial in trials_of(tmp_path, space=space, num_draws=10)]
    assert all(1e-4 <= point["optim.lr"] <= 1e-2 for point in points)
    assert 10 < sum(point["optim.lr"] < 1e-3 for point in points) < 30
    assert {point["model.text.num_corner_tokens"] for point in points} == {0, 1, 2, 3, 4}
    assert {point["captions.sentences_per_sub_caption"] for point in points} == {0, 1, 2}
    without = {key: value for key, value in space.items() if key != "optim.lr"}
    others = [trial.point for trial in trials_of(tmp_path, space=without, num_draws=40)]
    decays = [point["optim.weight_decay"] for point in others]
    assert decays == [point["optim.weight_decay"] for point in points]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"optim.rl": [1]}}, r"rl=1: unknown key optim.rl; did you mean optim.lr\?"),
        ({"space": {"optim.lr": []}}, "space.optim.lr is an empty list"),
        ({"space": {"optim.lr": 1}}, "space.optim.lr must be a list of values, or one of"),
        ({"space": {"optim.lr": {"normal": [0, 1]}}}, "space.optim.lr must be a list of values"),
        ({"space": {"optim.lr": {"uniform": [1, 0]}}}, "with a < b"),
        ({"space": {"optim.lr": {"log_uniform": [0, 1]}}}, "log_uniform must begin above 0"),
        ({"space": {"x": {"integers": [0.5, 2]}}}, "integers must be whole numbers"),
        ({"space": {"train.seed": [1, 2]}}, "train.seed is set by the sweep itself: give seeds"),
        ({"set": {"tracking": {"uri": "x"}}}, "tracking.uri is set by the sweep itself"),
        ({"arms": {"x": {"name": "y"}}}, "name is set by the sweep itself"),
        ({"space": {}}, "space and arms are both empty"),
        ({"seeds": []}, "seeds=.. must be one or more, all different"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must be one or more, all different"),
        ({"name": "a/b"}, "name='a/b' must be made of letters"),
        ({"num_draws": 0}, "num_draws=0 is too small"),
        ({"early_stopping": {"reduction_factor": 1}}, "reduction_factor=1.0 must be above 1"),
        ({"budget": {"max_hours": -1}}, "budget.max_hours=-1.0 must be 0 or more"),
        ({"early_stopping": {"scheduler": "asha"}}, "train.eval_every_steps=0 leaves nothing"),
        ({"set": {"cluster": {"num_workers": [1, 2]}}}, "must be one number in a sweep"),
        ({"set": {"eval": {"data": ""}}}, "eval.data is empty: a sweep compares"),
        ({"arms": {"x": 3}}, "arms.x must be a group of keys"),
        ({"train": "nowhere"}, "there is no config nowhere"),
    ],
)
def test_what_can_not_be_swept_is_told(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trials_of(tmp_path, **changes)


@pytest.mark.parametrize("name", [n for n in shipped_configs() if n.startswith("sweep/")])
def test_shipped_sweeps_are_whole(name: str) -> None:
    config = load_config(SweepConfig, name)
    found, refused = trials(config, "runs")
    assert found
    assert not refused
    assert build_config(SweepConfig, yaml.safe_load(dump_config(config))) == config


def test_the_demo_is_of_eight_trials() -> None:
    assert len(trials(load_config(SweepConfig, "sweep/scenes"), "runs")[0]) == 8


def test_a_point_whose_values_do_not_go_together_is_refused_and_the_others_are_trained(
    tmp_path: Path,
) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump(BASE))
    space = {"model.text.num_heads": [2, 3], "optim.lr": [1e-3, 1e-2]}
    values = {"name": "sweep", "train": str(file), "space": space}
    found, refused = trials(build_config(SweepConfig, values), "runs")
    assert [trial.point["model.text.num_heads"] for trial in found] == [2, 2]
    assert [one.point["model.text.num_heads"] for one in refused] == [3, 3]
    assert {one.reason for one in refused} == {
        "model.text.num_heads=3 must divide model.text.width=32"
    }
    # A key that doesn't exist is no point: it is told before anything is trained.
    arms = {"right": {"optim.lr": 1e-3}, "wrong": {"optim.rl": 1e-3}}
    with pytest.raises(ConfigError, match=r"wrong: unknown key optim\.rl; did you mean optim\.lr"):
        trials(build_config(SweepConfig, {**values, "space": {}, "arms": arms}), "runs")
