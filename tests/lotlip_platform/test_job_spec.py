from pathlib import Path

import pytest

from lotlip.errors import ConfigError
from lotlip_platform.config import load_config
from lotlip_platform.eval_config import SuiteConfig
from lotlip_platform.job_spec import CONFIG, job_spec
from lotlip_platform.job_submission import _check_environment
from lotlip_platform.sweep_config import SweepConfig
from lotlip_platform.train_config import TrainConfig


def test_a_job_carries_its_resolved_config(tmp_path: Path) -> None:
    spec = job_spec("train", "train/scenes", ["name=mine", "optim.lr=0.5"])
    (tmp_path / "config.yaml").write_text(spec.files[CONFIG])
    again = load_config(TrainConfig, str(tmp_path / "config.yaml"))
    assert again == load_config(TrainConfig, "train/scenes", ["name=mine", "optim.lr=0.5"])
    assert spec.name == "mine"
    assert spec.output == "s3://lotlip/runs/mine"


def test_data_sets_that_the_run_makes_need_not_be_there_but_their_place_is_written_to() -> None:
    spec = job_spec("train", "train/scenes", [])
    assert spec.data_sets == ()
    assert spec.stores == ("s3://lotlip/runs", "s3://lotlip/scenes/features", "s3://lotlip/scenes")
    other = job_spec("train", "train/scenes", ["data.train=s3://b/mine"])
    assert other.data_sets == ("s3://b/mine",)
    mine = ["scenes.uri=", "data.train=s3://b/t", "data.features=s3://b/f", "eval.data=s3://b/v"]
    assert job_spec("train", "train/scenes", mine).data_sets == ("s3://b/t", "s3://b/v")


def test_the_place_of_shipped_scenes_is_one_key() -> None:
    spec = job_spec("train", "train/scenes", ["store=s3://b/runs", "scenes.uri=s3://b/scenes"])
    assert spec.stores == ("s3://b/runs", "s3://b/scenes/features", "s3://b/scenes")
    assert "lotlip" not in spec.files[CONFIG].replace("registered_model: lotlip", "").replace(
        "experiment: lotlip", ""
    )


def test_what_is_written_beside_the_run_is_no_folder_of_one_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scenes\.uri=scenes is a folder of one machine"):
        job_spec("train", "train/scenes", ["scenes.uri=scenes", "data.features="])
    with pytest.raises(ConfigError, match=r"data\.features=f is a folder of one machine"):
        job_spec("sweep", "sweep/scenes", ["set.data.features=f"])


def test_precompute_fills_the_folder_of_features() -> None:
    spec = job_spec("precompute", "train/scenes", ["store="])
    assert spec.output == "s3://lotlip/scenes/features"
    assert spec.stores == ("s3://lotlip/scenes/features", "s3://lotlip/scenes")
    with pytest.raises(ConfigError, match=r"data\.features is empty"):
        job_spec("precompute", "train/scenes", ["data.features="])


def test_a_sweep_carries_the_config_that_it_varies_if_it_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = job_spec("sweep", "sweep/scenes", [])
    assert list(shipped.files) == [CONFIG, "train/scenes"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(job_spec("train", "train/scenes", []).files[CONFIG])
    spec = job_spec("sweep", "sweep/scenes", ["train=own.yaml"])
    assert list(spec.files) == [CONFIG, "own.yaml"]
    (tmp_path / CONFIG).write_text(spec.files[CONFIG])
    again = load_config(SweepConfig, CONFIG)
    assert again == load_config(SweepConfig, "sweep/scenes", ["train=own.yaml"])
    monkeypatch.setenv("WHERE", "s3://b/resolved")
    with (tmp_path / "own.yaml").open("a") as file:
        file.write("  # its last group\n")
    text = (tmp_path / "own.yaml").read_text().replace("s3://lotlip/runs", "${oc.env:WHERE}")
    (tmp_path / "own.yaml").write_text(text)
    carried = job_spec("sweep", "sweep/scenes", ["train=own.yaml"]).files["own.yaml"]
    assert "s3://b/resolved" in carried  # what this machine's variables say, and not the cluster's
    with pytest.raises(ConfigError, match="does not lie below this folder"):
        job_spec("sweep", "sweep/scenes", [f"train={tmp_path}/own.yaml"])


def test_a_sweep_asks_for_what_its_trials_ask_for() -> None:
    spec = job_spec("sweep", "sweep/scenes", ["set.cluster.num_workers=3"])
    assert [config.num_workers for config in spec.clusters] == [3]


def test_a_store_on_one_machine_is_refused() -> None:
    for place in ("", "runs", "./runs", "~/runs"):
        with pytest.raises(ConfigError, match="is a folder of one machine: give store=s3://"):
            job_spec("train", "train/scenes", [f"store={place}"])
    with pytest.raises(ConfigError, match=r"data\.features=features is a folder of one machine"):
        job_spec("precompute", "train/scenes", ["data.features=features"])
    assert job_spec("train", "train/scenes", ["store=/shared/runs"]).output == "/shared/runs/scenes"


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "hf_token"]
)
def test_secrets_are_not_given_to_a_job_whose_environment_ray_shows(name: str) -> None:
    with pytest.raises(ConfigError, match="looks like a secret"):
        _check_environment({name: "x"})


def test_variables_of_lotlip_itself_are_refused() -> None:
    _check_environment(
        {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "TOKENIZERS_PARALLELISM": "false"}
    )
    with pytest.raises(ConfigError, match="looks like a secret"):
        _check_environment({"MLFLOW_TRACKING_URI": "https://me:pw@mlflow"})
    for name in ("LOTLIP_JOB", "OMP_WAIT_POLICY"):
        with pytest.raises(ConfigError, match="is set by lotlip itself"):
            _check_environment({name: "x"})


def test_an_evaluation_goes_with_its_config_and_needs_places_that_all_machines_see(
    tmp_path: Path,
) -> None:
    own = ["benches.scenes=s3://b/test", "model=" + 32 * "a", "against=hf:/models/clip"]
    spec = job_spec("eval", "eval/paper", own)
    (tmp_path / "config.yaml").write_text(spec.files[CONFIG])
    again = load_config(SuiteConfig, str(tmp_path / "config.yaml"))
    assert again == load_config(SuiteConfig, "eval/paper", own)
    assert spec.data_sets == ("s3://b/test",)
    assert spec.stores == (spec.output,) == ("s3://lotlip/eval",)
    assert [one.num_workers for one in spec.clusters] == [1]
    for wrong in ("model=runs/a/model", "cache=", "benches.dci=data/dci"):
        with pytest.raises(ConfigError, match="is a folder of one machine"):
            job_spec("eval", "eval/paper", [wrong])
    for wrong in ("hf:clip", "hf:s3://b/clip", "open_clip:ViT-B-16:./mine.pt"):
        with pytest.raises(ConfigError, match="is read from a disk: give a path that begins with"):
            job_spec("eval", "eval/paper", [f"against={wrong}"])
    with pytest.raises(ConfigError, match="is not of the form open_clip:ARCHITECTURE:CHECKPOINT"):
        job_spec("eval", "eval/paper", ["against=open_clip:ViT-B-16"])
    for right in ("open_clip:ViT-B-16:openai", "open_clip:ViT-B-16:/models/a.pt", "models:/a@b"):
        job_spec("eval", "eval/paper", [f"against={right}"])
    with pytest.raises(ConfigError, match=r"tracking\.experiment must not be empty"):
        job_spec("eval", "eval/paper", ["tracking.experiment="])
