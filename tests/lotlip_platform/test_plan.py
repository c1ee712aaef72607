from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lotlip.errors import ConfigError
from lotlip_platform.cli import main
from lotlip_platform.config import build_config
from lotlip_platform.plan import Estimate, Load, estimate, load_of, plan, stops_at
from lotlip_platform.plan_config import PlanConfig
from lotlip_platform.plan_view import figure, table
from lotlip_platform.train_config import TrainConfig

LOAD = Load(
    num_steps=1000,
    num_samples=1_000_000,
    num_shards=100,
    sample_bytes=20_000,
    num_parameters=100_000_000,
    num_trained=50_000_000,
    sample_flops=1e10,
    num_texts=4,
    features_flops=0.0,
)
CLUSTER = PlanConfig(
    num_gpus=(1, 16),
    gpus_per_host=8,
    host_gbit_s=400,
    link_gbit_s=3200,
    gpu="H100",
    mfu=0.5,
    step_overhead_ms=10,
    gpu_hours_per_failure=16,
    restart_s=360,
    price_per_gpu_hour=2,
)


def config(**changes: Any) -> TrainConfig:
    values = {
        "name": "planned",
        "model": {"preset": "tiny"},
        "data": {"train": "nowhere", "order": {"num_streams": 32}},
        "train": {"num_samples": 4_096_000, "global_batch": 4096, "save_every_steps": 100},
        **changes,
    }
    return build_config(TrainConfig, values)


def test_the_case_that_docs_reckon_by_hand() -> None:
    """See docs/scaling.md; D is 32 in preset tiny."""
    one, many = (estimate(config(), CLUSTER, LOAD, n) for n in (1, 16))
    # 4096 x 1e10 FLOP of the towers, 4 x 2 x 32 x 4 x 4096^2 of the logits; 494.5e12 a second.
    assert one.compute_s == pytest.approx((4.096e13 + 1.7180e10) / 494.5e12, rel=1e-4)
    assert (one.gather_s, one.reduce_s) == (0, 0)
    assert one.step_s == pytest.approx(0.082866 + 0.010, rel=1e-4)
    assert many.images_per_gpu == 256
    assert many.compute_s == pytest.approx(0.082866 / 16, rel=1e-4)
    # 15/16 x 4096 x 4 texts x (3 x 4 x 32 + 24) bytes; 15/8 x 4 x 50e6 bytes; 50e9 bytes a second.
    assert many.gathered_bytes == pytest.approx(6_266_880)
    assert many.reduced_bytes == pytest.approx(375e6)
    assert many.gather_s == pytest.approx(0.00012534, rel=1e-4)
    assert many.reduce_s == pytest.approx(0.0075)
    # Two thirds of 5.179 ms hide some of the 7.5 ms.
    assert many.step_s == pytest.approx(0.005179 + 0.010 + 0.000125 + 0.0075 - 0.003453, rel=1e-3)
    assert many.samples_per_s == pytest.approx(4096 / 0.019352, rel=1e-3)
    hours = 1000 * 0.019352 / 3600
    assert many.hours == pytest.approx(hours, rel=1e-3)
    # A failure an hour costs 0.1 h and half of 100 steps.
    assert many.total_hours == pytest.approx(hours * (1 + 0.1 + 50 * 0.019352 / 3600), rel=1e-3)
    assert many.goodput == pytest.approx(1 / (1.1 + 50 * 0.019352 / 3600), rel=1e-3)
    assert many.num_failures == pytest.approx(many.total_hours, rel=1e-6)
    assert many.cost == pytest.approx(16 * many.total_hours * 2)
    assert many.read_bytes_per_s == pytest.approx(many.samples_per_s * 20_000)
    assert many.requests_per_s == pytest.approx(2 * 132 * many.samples_per_s / 1e6)
    assert LOAD.checkpoint_bytes == 4 * 100_000_000 + 8 * 50_000_000


def test_within_a_host_the_links_count_and_between_hosts_the_network() -> None:
    inside, outside = (estimate(config(), CLUSTER, LOAD, n) for n in (8, 16))
    assert inside.reduce_s == pytest.approx(2 * 7 / 8 * 200e6 / 400e9)
    assert outside.reduce_s == pytest.approx(2 * 15 / 16 * 200e6 / 50e9)


def test_what_was_measured_takes_the_place_of_what_is_assumed() -> None:
    measured = replace(CLUSTER, samples_per_s=512.0, gpu="")
    assert estimate(config(), measured, LOAD, 1).compute_s == 8.0
    assert estimate(config(), measured, LOAD, 16).compute_s == 0.5


@pytest.mark.parametrize(
    "n, problem",
    [
        (3, "train.global_batch=4096 is not a multiple of 3"),
        (64, "data.order.num_streams=32 is not a multiple of 64"),
        (12, "train.global_batch=4096 is not a multiple of 12"),
    ],
)
def test_what_cannot_be_trained_says_why(n: int, problem: str) -> None:
    assert estimate(config(), CLUSTER, LOAD, n) == Estimate(num_gpus=n, problem=problem)


def test_gpus_that_do_not_fill_their_hosts_are_told() -> None:
    hosts_of_six = replace(CLUSTER, gpus_per_host=6)
    assert estimate(config(), hosts_of_six, LOAD, 8).problem == "8 GPUs are no whole hosts of 6"


def test_the_end_of_scaling_is_where_twice_as_many_bring_little() -> None:
    speeds = {1: 100.0, 2: 195.0, 4: 350.0, 8: 500.0, 16: 600.0}
    told = [Estimate(num_gpus=n, samples_per_s=speed) for n, speed in speeds.items()]
    assert stops_at(told) == 4
    assert stops_at(told[:3]) == 0


def test_the_load_is_that_of_the_data_set_and_the_model(scenes_folder: Path, model_folder) -> None:
    data = {"train": str(scenes_folder)}
    load = load_of(config(data=data), CLUSTER)
    assert (load.num_samples, load.num_shards) == (60, 2)
    written = sum(path.stat().st_size for path in scenes_folder.glob("*.tar"))
    assert load.sample_bytes == pytest.approx(written / 60)
    assert load.num_steps == 1000
    assert load.num_texts == 4  # short [CLS]; long [CLS] and two corner tokens
    assert load.num_trained == load.num_parameters > 0
    longer = load_of(config(data=data), replace(CLUSTER, long_tokens=90.0))
    assert longer.sample_flops > load.sample_flops


def test_features_of_a_locked_tower_are_read_and_reckoned_once(scenes_folder: Path) -> None:
    model = {"preset": "tiny", "image": {"locked_layers": -1}}
    data = {"train": str(scenes_folder), "features": "kept"}
    locked = load_of(config(model=model, data=data, augment={"min_crop_area": 1.0}), CLUSTER)
    pixels = load_of(config(model=model, data={"train": str(scenes_folder)}), CLUSTER)
    assert locked.sample_bytes == 4 * 32 + 2560
    assert locked.num_trained < locked.num_parameters
    # What is computed once for each image is not computed for each sample.
    once = locked.features_flops / 60
    assert pixels.sample_flops - locked.sample_flops == pytest.approx(once)
    assert pixels.features_flops == 0


def test_lengths_that_nobody_knows_are_asked_for(scenes_folder: Path) -> None:
    data = {"train": str(scenes_folder)}
    some = config(data=data, captions={"sentences_per_sub_caption": 2})
    with pytest.raises(ConfigError, match="does not tell how long captions are: give long_tokens"):
        load_of(some, CLUSTER)
    assert load_of(some, replace(CLUSTER, long_tokens=40.0)).sample_flops > 0


def test_the_table_and_the_picture_show_all_sizes(scenes_folder: Path) -> None:
    cluster = replace(CLUSTER, num_gpus=(1, 2, 4, 8, 16, 64))
    load, estimates = plan(config(data={"train": str(scenes_folder)}), cluster)
    lines = table(load, estimates, cluster).splitlines()
    assert any(line.startswith("64 GPUs: data.order.num_streams=16 is not") for line in lines)
    assert sum(line.split()[0] in ("1", "2", "4", "8", "16", "64") for line in lines if line) >= 6
    with Image.open(io.BytesIO(figure(estimates, "a plan"))) as picture:
        assert picture.width > 1000


def test_the_command_prints_or_tells_a_script(scenes_folder: Path, tmp_path: Path, capsys) -> None:
    command = ["plan", "train/scenes", f"data.train={scenes_folder}", "data.features="]
    command += ["--cluster", "plan/h100", "num_gpus=[1,8]", "--out", str(tmp_path / "plan.png")]
    assert main(command) == 0
    assert "312 steps over 60 samples" in capsys.readouterr().out
    assert (tmp_path / "plan.png").stat().st_size > 1000
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [size["num_gpus"] for size in told["sizes"]] == [1, 8]
    assert main(["plan", "train/scenes", "--cluster", "plan/h100", "gpu=B9"]) == 1
    assert "gpu='B9' is no card whose peak is known" in capsys.readouterr().err
