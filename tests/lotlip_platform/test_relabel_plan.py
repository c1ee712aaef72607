"""What a relabelling takes on larger clusters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lotlip.errors import ConfigError, DataError
from lotlip_platform.cli import main
from lotlip_platform.config import load_config
from lotlip_platform.datasets import make_scenes
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.relabel_plan import CaptionPlanConfig, plan_relabel

GIVEN = ["num_samples=100000000", "sample_bytes=30000"]


def llava(*overrides: str) -> RelabelConfig:
    return load_config(RelabelConfig, "relabel/llava", overrides)


def machines(*overrides: str) -> CaptionPlanConfig:
    return load_config(CaptionPlanConfig, "plan/captions-h100", [*GIVEN, *overrides])


def test_the_case_that_docs_reckon_by_hand():
    load, estimates = plan_relabel(llava(), machines("num_gpus=[1,8]"))
    assert load.question_s == pytest.approx(640 * 14e9 / (0.4 * 989e12), rel=1e-3)
    assert load.answer_s == pytest.approx(150 * (14e9 / 395.6e12 + 14e9 / 2.01e12 / 64), rel=1e-3)
    assert load.captions_per_s == pytest.approx(22.58, abs=0.01)
    one, eight = estimates
    assert one.hours == pytest.approx(105e6 / 22.58 / 3600, rel=1e-3)
    assert eight.hours == pytest.approx(one.hours / 8)
    assert one.cost == eight.cost == pytest.approx(one.hours * 2.5), "the config's price"
    assert one.read_mb_s == pytest.approx(2 * 22.58 / 1.05 * 0.03, rel=1e-3)


def test_what_was_measured_goes_before_what_is_reckoned():
    load, (one,) = plan_relabel(
        llava("prompts.per_sample=1"), machines("captions_per_s=4", "num_gpus=[1]", "again_share=0")
    )
    assert (load.question_s, load.captions_per_s) == (0, 4)
    assert one.hours == pytest.approx(1e8 / 4 / 3600)


def test_tokens_cost_what_the_account_says():
    config = llava(
        "account.price_per_gpu_hour=0",
        "account.price_per_million_input_tokens=0.5",
        "account.price_per_million_output_tokens=2",
    )
    load, (one,) = plan_relabel(config, machines("num_gpus=[1]", "again_share=0"))
    assert load.token_cost == pytest.approx(1e8 * (640 * 0.5 + 150 * 2) / 1e6)
    assert one.cost == pytest.approx(load.token_cost)


def test_what_is_not_given_is_asked_of_the_data_set(tmp_path: Path):
    make_scenes(str(tmp_path), num_samples=10, on_progress=lambda *_: None)
    plan = load_config(CaptionPlanConfig, "plan/captions-h100", [])
    load, _ = plan_relabel(llava(f"source={tmp_path}"), plan)
    assert load.num_samples == 10
    assert load.sample_bytes > 1000
    with pytest.raises(DataError, match="has no manifest"):
        plan_relabel(llava("source=/nowhere"), plan)


def test_the_command_tells_a_relabelling_from_a_run(capsys: pytest.CaptureFixture[str]):
    command = ["plan", "relabel/llava", "--cluster", "plan/captions-h100", *GIVEN]
    assert main(command) == 0
    assert "captions/s a GPU, reckoned: 22.6 ms" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sizes"]) == 8
    assert main(["plan", "relabel/llava", "--cluster", "plan/h100"]) == 1
    assert "unknown key gpus_per_host" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, text",
    [
        ("num_gpus=[0]", r"num_gpus=\[0\]"),
        ("mfu=2", r"mfu=2\.0"),
        ("gpu=ZX81", "gpu='ZX81' with memory_gb_s=3350 does not tell how fast"),
        ("memory_gb_s=0", "does not tell how fast"),
        ("input_tokens=0", r"input_tokens=0\.0"),
    ],
)
def test_a_wrong_value_names_its_key(override: str, text: str):
    with pytest.raises(ConfigError, match=text):
        machines(override)
