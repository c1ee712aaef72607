from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lotlip.errors import ConfigError
from lotlip.model import PRESETS
from lotlip.model.image_tower import ImageTower
from lotlip.model.pretrained import load_image_tower
from lotlip.train.scene_tower import SceneTowerConfig, pretrain, probe, write_tower

SMALL = SceneTowerConfig(num_scenes=64, num_held_out=64, num_epochs=4, batch=32)


def test_a_tower_learns_and_is_what_a_model_can_start_from(tmp_path: Path) -> None:
    steps = list(pretrain(SMALL))
    assert [step.step for step, _ in steps] == list(range(1, 9))
    assert steps[-1][0].loss < steps[0][0].loss
    tower = steps[-1][1].eval()
    accuracy = probe(tower, SMALL)
    assert accuracy.keys() >= {"kind", "colour", "background", "cell_count"}
    assert all(0 <= value <= 1 for value in accuracy.values())
    write_tower(tower, tmp_path, about={"linear_probe": accuracy})
    assert json.loads((tmp_path / "config.json").read_text())["about"]["linear_probe"] == accuracy
    again = ImageTower(PRESETS["scenes"].image)
    load_image_tower(again, str(tmp_path))
    for name, value in tower.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_same_scenes_give_the_same_tower() -> None:
    first, second = (next(iter(pretrain(SMALL)))[0].loss for _ in range(2))
    assert first == second


@pytest.mark.parametrize("changes", [{"num_epochs": 0}, {"num_scenes": 100}])
def test_too_little_to_learn_from_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        SceneTowerConfig(**changes)
