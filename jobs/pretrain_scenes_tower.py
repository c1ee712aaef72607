"""Pretrain the image tower that is shipped for the procedural scenes.

python jobs/pretrain_scenes_tower.py lotlip/assets/scenes-image-tower
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

from lotlip.errors import ConfigError
from lotlip.train.scene_tower import SceneTowerConfig, pretrain, probe, write_tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=SceneTowerConfig.num_epochs)
    parser.add_argument("--scenes", type=int, default=SceneTowerConfig.num_scenes)
    arguments = parser.parse_args()
    try:
        config = SceneTowerConfig(num_epochs=arguments.epochs, num_scenes=arguments.scenes)
    except ConfigError as error:
        raise SystemExit(f"{Path(__file__).name}: {error}") from error
    start = time.perf_counter()
    tower = None
    for step, tower in pretrain(config):  # noqa: B007 - the last one is kept
        if step.step % 20 == 0 or step.step == step.num_steps:
            seconds = time.perf_counter() - start
            line = f"step {step.step}/{step.num_steps}  loss {step.loss:.4f}  {seconds:.0f} s"
            print(line, flush=True)
    assert tower is not None, "the config has at least one step"
    accuracy = probe(tower.eval(), config)
    print("linear probe on held-out scenes:", accuracy)
    write_tower(tower, arguments.folder, about={**asdict(config), "linear_probe": accuracy})


if __name__ == "__main__":
    main()
