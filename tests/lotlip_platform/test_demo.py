"""The demo on real parts, smaller than `make demo` runs it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lotlip.errors import ConfigError
from lotlip_platform import demo
from lotlip_platform.train import TrainResult

LOTLIP = str(Path(sys.executable).with_name("lotlip"))


def lotlip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LOTLIP, *arguments], capture_output=True, text=True, timeout=280)


def interrupt_behind_the_first_arm() -> None:
    """Ctrl-C half-way."""
    hear = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    interruptible = [sys.executable, "-c", f"{hear}os.execv(sys.argv[1], sys.argv[1:])"]
    command = [*interruptible, LOTLIP, "demo", "--samples", "1280"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        begun = 0
        for line in process.stderr:
            begun += "waiting for workers" in line
            if begun == 2:
                process.send_signal(signal.SIGINT)
                break
        process.stderr.read()
    assert process.returncode == 130


def test_a_model_that_mlflow_has_not_taken_yet_is_searched_with_from_its_run_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = TrainResult(
        folder="s3://b/runs/one",
        run_id="",
        tracking_uri="http://127.0.0.1:1",
        model_uri="models:/lotlip/1",
        digest="d",
        metrics={},
    )
    assert demo._address(result) == "models:/lotlip/1"
    assert capsys.readouterr().err == ""
    assert demo._address(replace(result, model_uri="")) == "s3://b/runs/one/model"
    assert "the model is not registered in MLflow yet" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("in the way")
    with pytest.raises(ConfigError, match=r"^cannot write .*samples\.png: .*; set LOTLIP_HOME$"):
        demo._write(tmp_path / "demo" / "samples.png", b"")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_the_demo_tells_the_whole_story_and_a_second_run_reuses_it(tmp_path: Path):
    home = Path(os.environ["LOTLIP_HOME"])
    try:
        interrupt_behind_the_first_arm()
        first = lotlip("demo", "--samples", "1280")
        assert first.returncode == 0, first.stderr
        for title in ("LoTLIP, m = 2", "short captions only", "m = 0, long weighted 3x"):
            assert title in first.stdout
        for name in ("samples", "arms", "search"):
            with Image.open(home / "demo" / f"{name}.png") as picture:
                assert picture.width > 500
        assert first.stderr.count("is done: nothing to train") == 1
        assert first.stderr.count("waiting for workers") == 2
        second = lotlip("demo", "--samples", "1280")
        assert second.returncode == 0, second.stderr
        assert second.stderr.count("is done: nothing to train") == 3
        found = lotlip(
            *("search", "models:/lotlip@candidate", "s3://lotlip/demo-1280/test"),
            *("--text", "A red castle.", "--out", str(tmp_path / "found.png")),
        )
        assert found.returncode == 0, found.stderr
        assert len(found.stdout.splitlines()) == 2 + 8  # the table's head and the best eight
        told = first.stdout.rpartition("next: lotlip ")[2].partition("\n\n")[0]
        promoted = lotlip(*shlex.split(told.replace("\\\n", "")), "max_latency_ms=10000")
        assert promoted.returncode == 3, promoted.stderr  # after 20 steps it reads no long texts
        refused = [line for line in promoted.stdout.splitlines() if line.endswith("REFUSED")]
        assert "scenes/long_text_to_image_r1" in {line.split()[0] for line in refused}
    finally:
        ended = lotlip("down")
    assert ended.stdout.strip() == "ended: s3, mlflow, ray"
