from __future__ import annotations

from pathlib import Path

import pytest

import lotlip
from lotlip.errors import CheckpointError, ConfigError
from lotlip.export import digest
from lotlip_platform.cli import main
from lotlip_platform.model_export import export
from lotlip_platform.registry import fetch
from lotlip_platform.storage import ensure_bucket


@pytest.mark.parametrize("layout", ["lotlip", "hf"])
def test_an_exported_model_is_the_same_model(
    layout, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "exported")
    assert main(["models", "export", str(model_folder), target, "--layout", layout]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert digest(lotlip.load(target)) == digest(lotlip.load(model_folder))


def test_an_export_may_lie_in_s3(s3_env: str, model_folder: Path) -> None:
    ensure_bucket("s3://exported")
    export(str(model_folder), "s3://exported/one", "hf")
    assert digest(fetch("s3://exported/one")) == digest(lotlip.load(model_folder))


def test_the_official_layout_is_a_file_and_its_vocabulary(
    model_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "official"
    assert export(str(model_folder), str(target), "official") == [
        "model.pt",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    with pytest.raises(CheckpointError, match="lotlip convert-official"):
        lotlip.load(target / "model.pt")


def test_nothing_is_overwritten(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds mine\.txt already: take a new folder"):
        export(str(model_folder), str(tmp_path), "lotlip")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
