"""What the user meets at the command line: exit codes, one clear line, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
import torch

from lotlip.data.manifest import read_manifest, write_manifest
from lotlip.data.shards import CaptionCount, read_samples, write_dataset, write_shard
from lotlip.data.store import FolderStore
from lotlip.errors import DataError
from lotlip.model import PRESETS, LoTLIP
from lotlip.model.layouts import official_layout
from lotlip.vocabulary import SPECIAL_PIECES
from lotlip_platform.cli import main
from lotlip_platform.cli_data import write_out
from lotlip_platform.storage import ensure_bucket

LOTLIP = Path(sys.executable).parent / "lotlip"
TEXT = ("--text", "A red castle. Two birds are above it.")
VERBS = (
    *("doctor", "up", "down", "ui", "demo", "data", "train", "eval", "search", "attention"),
    *("convert-official", "trace", "track"),
)
ACTIONS = (("data", "scenes"), ("data", "check"), ("track", "sync"), ("track", "reconcile"))
Fails = Callable[..., str]


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pictures land in an empty folder, signals keep their handlers, and Ray is not needed."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail: exit code 1, one line on stderr, nothing on stdout."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("lotlip: ")
        assert error.count("\n") == 1, error
        return error

    return run


@pytest.fixture
def config(tmp_path: Path, scenes_folder: Path) -> Path:
    """A config that would train, but for what a test changes."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"name: one\nstore: {tmp_path}/runs\nmodel: {{preset: tiny}}\n"
        f"data:\n  train: {scenes_folder}\n"
        "train: {num_samples: 64, global_batch: 16}\n"
        "eval:\n  num_samples: 10\n"
    )
    return path


@pytest.fixture
def bucket(s3_env: str) -> str:
    uri = f"s3://cli-{uuid.uuid4().hex}"
    ensure_bucket(uri)
    return uri


@pytest.fixture
def damaged(scenes_folder: Path, tmp_path: Path) -> Path:
    """The scenes with one byte of a shard's tar header changed."""
    folder = tmp_path / "damaged"
    shutil.copytree(scenes_folder, folder)
    shard = folder / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[2] ^= 1
    shard.write_bytes(content)
    return folder


def is_empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


# Wrong usage


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "fly",
        "train",
        "train train/scenes --fast",
        "data",
        "data scenes /d",
        "data scenes /d --samples many",
        "data scenes /d --samples 5 --split dev",
        "data fly",
        "eval",
        "eval model --protocol mine",
        "search model /d",
        "convert-official model.pt",
        "down now",
        "down a=b",
        "train train/scenes --fast a=b",
        "track",
        "track send",
    ],
)
def test_wrong_usage_shows_the_usage(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("usage: lotlip")


def test_options_may_stand_before_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    submit = ["jobs", "submit", "train", "train/scenes", "train.seed=1"]
    assert main([*submit, "--address", "http://127.0.0.1:1", "train.fly=1"]) == 1
    assert "unknown key train.fly" in capsys.readouterr().err


def test_overrides_are_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train"])
    assert capsys.readouterr().err.endswith("the following arguments are required: config\n")


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS), *ACTIONS])
def test_every_verb_has_help(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: lotlip")


def test_help_answers_at_once_without_the_large_libraries() -> None:
    program = (
        "import sys\n"
        "from lotlip_platform.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "large = {'torch', 'ray', 'mlflow', 'boto3', 'pandas', 'transformers', 'numpy'}\n"
        "assert not large & set(sys.modules), large & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    began = time.monotonic()
    subprocess.run([LOTLIP, "--help"], check=True, capture_output=True)
    assert time.monotonic() - began < 2.0


def test_the_console_command_ends_with_the_exit_code_and_one_line() -> None:
    done = subprocess.run([LOTLIP, "train", "nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("lotlip: there is no config nowhere; shipped ones: eval/")
    assert done.stderr.count("\n") == 1
    assert subprocess.run([LOTLIP], capture_output=True, check=False).returncode == 2


# Config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lrr=1", "unknown key optim.lrr; did you mean optim.lr?"),
        ("optim.lr=fast", "optim.lr must be a number"),
        ("optim.lr=-1", "optim.lr=-1.0 must be above 0"),
        ("optim.lr=.inf", "optim.lr=inf must be a finite number"),
        ("data.train=[", "lotlip: 'data.train=[' is not a YAML value"),
        ("model.text.pretrained=/bert", "set tokenizer.pretrained to the same"),
        ("optim.lr", "is not of the form key=value"),
        ("model.preset=huge", "model.preset='huge' must be one of"),
        ("data.train=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
        ("data.train=gs://b/x", "no gs:// here"),
        ("store=gs://b/x", "no gs:// here"),
        ("name=../up", "name='../up' must be made of"),
        ("captions.captioners=[nobody]", "no long captions by nobody; it has: scenes"),
        ("train.global_batch=64", "train.global_batch=64 is more than the data set has"),
        ("train.global_batch=12", "must be a multiple of data.order.num_streams=16"),
        ("cluster.num_workers=3", "num_streams"),
        ("cluster.num_workers=0", "cluster.num_workers=0"),
        ("cluster.num_workers=[4,2]", "must be 1 or more, or the fewest and the most"),
        ("cluster.num_workers=[5,7]", "use one of 1, 2, 4, 8, 16"),
        ("cluster.num_workers=two", "cluster.num_workers must be a whole number"),
        ("cluster.num_workers=[a]", "cluster.num_workers[0] must be a whole number"),
        ("checkpoint.keep_best=1", "needs evaluations to tell the best by"),
    ],
)
def test_a_bad_config_is_told_before_anything_is_started_or_written(
    config: Path, tmp_path: Path, fails: Fails, override: str, expected: str
) -> None:
    assert expected in fails("train", config, override)
    assert is_empty(tmp_path / "runs")
    assert is_empty(tmp_path / "here")


def test_a_config_that_is_missing_or_malformed_is_told(tmp_path: Path, fails: Fails) -> None:
    assert "shipped ones: eval/" in fails("train", "train/scened")
    assert "there is no config" in fails("train", tmp_path)
    (tmp_path / "bad.yaml").write_text("name: one\nmodel: [\n")
    assert "bad.yaml: line 3" in fails("train", tmp_path / "bad.yaml")


# Data that isn't there


def commands(uri: str, config: Path, model_folder: Path) -> list[list[str]]:
    """Every command that reads a data set, on the one at `uri`."""
    model = str(model_folder)
    return [
        ["train", str(config), f"data.train={uri}"],
        ["train", str(config), f"eval.data={uri}"],
        ["eval", model, "--bench", f"retrieval={uri}"],
        ["search", model, uri, *TEXT],
        ["data", "check", uri],
        ["data", "stats", uri],
        ["data", "show", uri],
    ]


def check_all_refuse(
    uri: str, expected: str, config: Path, model_folder: Path, fails: Fails
) -> None:
    for command in commands(uri, config, model_folder):
        error = fails(*command)
        assert expected in error
        assert uri in error
    assert is_empty(config.parent / "runs")
    assert is_empty(config.parent / "here")


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_a_folder_without_a_data_set_is_told(
    config: Path, model_folder: Path, tmp_path: Path, fails: Fails, kind: str
) -> None:
    place = tmp_path / "data"
    if kind == "empty":
        place.mkdir()
    elif kind == "file":
        place.write_text("no folder")
    check_all_refuse(str(place), "has no manifest.json", config, model_folder, fails)
    assert place.exists() == (kind != "missing")


def test_an_empty_prefix_is_told(
    bucket: str, config: Path, model_folder: Path, fails: Fails
) -> None:
    check_all_refuse(f"{bucket}/nothing", "has no manifest.json", config, model_folder, fails)


@pytest.mark.usefixtures("s3_env")
def test_a_missing_bucket_is_told(config: Path, model_folder: Path, fails: Fails) -> None:
    expected = "bucket 'no-such-bucket' does not exist"
    check_all_refuse("s3://no-such-bucket/data", expected, config, model_folder, fails)


def test_missing_credentials_are_told(config: Path, model_folder: Path, fails: Fails) -> None:
    check_all_refuse("s3://bucket/data", "no credentials found", config, model_folder, fails)


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """The address of an endpoint that knows nobody: moto lets everybody in."""

    class Refusal(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            body = b"<Error><Code>InvalidAccessKeyId</Code><Message>unknown key</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = refuse

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("s3_env")
def test_refused_credentials_are_told(
    config: Path,
    model_folder: Path,
    fails: Fails,
    refusing_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing_server)
    expected = "credentials refused"
    check_all_refuse("s3://bucket/data", expected, config, model_folder, fails)
    assert expected in fails("data", "scenes", "s3://bucket/data", "--samples", "3")


@pytest.mark.usefixtures("s3_env")
def test_an_endpoint_that_is_down_is_told(
    config: Path, fails: Fails, dead_url: str, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", dead_url)
    expected = f"no answer from the endpoint {dead_url}"
    assert expected in fails("train", config, f"data.train={bucket}/data")
    assert expected in fails("search", f"{bucket}/model", f"{bucket}/data", *TEXT)
    assert expected in fails("data", "scenes", f"{bucket}/data", "--samples", "3")


def test_a_run_folder_in_a_missing_bucket_is_told_before_ray_starts(
    config: Path, fails: Fails, s3_env: str
) -> None:
    assert "does not exist" in fails("train", config, "store=s3://no-such-bucket/runs")


def test_a_place_for_features_that_cannot_be_reached_is_told_before_ray_starts(
    config: Path, scenes_folder: Path, fails: Fails, s3_env: str, tmp_path: Path
) -> None:
    locked = ("model.image.locked_layers=-1", "augment.min_crop_area=1")
    for place, expected in {
        "s3://no-such-bucket/f": "does not exist",
        "gs://f": "no gs://",
    }.items():
        for verb in ("train", "precompute"):
            assert expected in fails(verb, config, *locked, f"data.features={place}")
    assert "data.features is empty" in fails("precompute", config)
    assert is_empty(tmp_path / "runs")


def test_a_held_out_set_that_is_too_small_is_told(
    config: Path, fails: Fails, scenes_folder: Path, tmp_path: Path
) -> None:
    error = fails("train", config, f"eval.data={scenes_folder}", "eval.num_samples=61")
    assert "has 60 samples, eval.num_samples=61 were asked for" in error
    assert is_empty(tmp_path / "runs")


def test_a_manifest_that_is_damaged_is_told(
    damaged: Path, config: Path, model_folder: Path, fails: Fails
) -> None:
    (damaged / "manifest.json").write_text('{"format": ')
    for command in commands(str(damaged), config, model_folder):
        if command[:2] != ["data", "check"]:  # which prints what it finds
            assert "manifest.json is damaged" in fails(*command)
    assert main(["data", "check", str(damaged)]) == 1


def test_a_damaged_shard_is_told_where_it_lies(
    damaged: Path, model_folder: Path, fails: Fails, tmp_path: Path
) -> None:
    for command in (
        ["search", model_folder, damaged, *TEXT],
        ["eval", model_folder, "--bench", f"retrieval={damaged}"],
        ["data", "stats", damaged],
    ):
        assert f"{damaged}/shard-000001.tar" in fails(*command)
    assert is_empty(tmp_path / "here")


def test_a_missing_shard_is_told(
    damaged: Path, model_folder: Path, fails: Fails, tmp_path: Path
) -> None:
    (damaged / "shard-000001.tar").unlink()
    assert "shard-000001.tar does not exist" in fails("search", model_folder, damaged, *TEXT)
    assert is_empty(tmp_path / "here")


def test_samples_that_do_not_fit_a_benchmark_are_told(
    scenes_folder: Path, model_folder: Path, tmp_path: Path, fails: Fails
) -> None:
    old, new = FolderStore(scenes_folder), FolderStore(tmp_path / "plain")
    count = CaptionCount()
    samples = [replace(sample, extra={}) for sample in read_samples(old, read_manifest(old))]
    write_dataset(new, [(write_shard(new, "shard-000000.tar", samples), count)], {})
    assert "lotlip data scenes" in fails("eval", model_folder, "--bench", f"scenes={new.uri}")


def test_a_data_set_without_long_captions_cannot_train_on_them(
    scenes_folder: Path, tmp_path: Path, config: Path, fails: Fails
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(scenes_folder, folder)
    store = FolderStore(folder)
    write_manifest(store, replace(read_manifest(store), captions={"short": {"num": 60}}))
    assert "it has: none" in fails("train", config, f"data.train={folder}")


# MLflow


def test_a_dead_mlflow_server_is_told_where_a_model_is_to_come_from_it(
    fails: Fails, scenes_folder: Path, dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_url)
    for verb in (("eval", "--bench", f"retrieval={scenes_folder}"), ("search", "/d", *TEXT)):
        told = fails(verb[0], "models:/a@candidate", *verb[1:])
        assert f"no MLflow server at {dead_url}" in told


def test_training_starts_without_an_mlflow_server_that_may_come_back(
    config: Path, dead_url: str
) -> None:
    with pytest.raises(AssertionError, match="Ray was started"):
        main(["train", str(config), f"tracking.uri={dead_url}"])


def test_training_does_not_start_with_a_server_that_is_not_mlflow(
    config: Path, fails: Fails, s3_env: str, tmp_path: Path
) -> None:
    told = fails("train", config, f"tracking.uri={s3_env}")
    assert f"no MLflow server at {s3_env} (it answered 404 to /health)" in told
    assert is_empty(tmp_path / "runs")


def test_a_password_in_the_address_of_mlflow_is_never_shown(
    config: Path,
    scenes_folder: Path,
    fails: Fails,
    refusing_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = refusing_server.replace("://", "://user:correct-horse@")
    told = fails("train", config, f"tracking.uri={uri}")
    assert "tracking.uri holds a user name" in told
    assert "correct-horse" not in told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    evaluation = ("eval", "models:/a@candidate", "--bench", f"retrieval={scenes_folder}")
    for command in (("train", config), evaluation):
        told = fails(*command)
        assert f"no MLflow server at {refusing_server} (it answered 403 to /health)" in told
        assert "correct-horse" not in told


# Models


@pytest.mark.parametrize("model", ["no-such-folder", "~/no-such-folder", "a/b@c"])
def test_a_model_that_is_not_there_is_told(model: str, scenes_folder: Path, fails: Fails) -> None:
    assert "no such folder" in fails("search", model, scenes_folder, *TEXT)
    assert "no such folder" in fails("eval", model, "--bench", f"scenes={scenes_folder}")


def test_a_file_a_foreign_folder_and_a_damaged_model_are_told(
    model_folder: Path, scenes_folder: Path, tmp_path: Path, fails: Fails
) -> None:
    def search(model: Path) -> str:
        error = fails("search", model, scenes_folder, *TEXT)
        assert str(model) in error
        return error

    file = tmp_path / "model.pt"
    file.write_bytes(b"PK")
    assert "is a file" in search(file)
    search(scenes_folder)
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        for damage in ("missing", "torn", "nonsense"):
            model = tmp_path / f"{damage}-{name}"
            shutil.copytree(model_folder, model)
            content = (model / name).read_bytes()
            (model / name).unlink()
            if damage != "missing":
                (model / name).write_bytes(content[:-40] if damage == "torn" else b"\xff[1]")
            search(model)
    assert is_empty(tmp_path / "here")


def test_a_model_that_mlflow_does_not_have_is_told(
    mlflow_server: str, scenes_folder: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    for model in ("models:/nobody@candidate", "models:/nobody/1", "f" * 32):
        assert model in fails("search", model, scenes_folder, *TEXT)


def test_a_conversion_that_fails_writes_nothing(tmp_path: Path, fails: Fails) -> None:
    destination = tmp_path / "export"
    file = tmp_path / "model.pt"
    file.write_bytes(b"no checkpoint")
    fails("convert-official", tmp_path / "none.pt", destination, "--bert", tmp_path)
    fails("convert-official", file, destination, "--bert", tmp_path)
    assert "must be one of" in fails("convert-official", file, destination, "--preset", "huge")
    assert "no gs:// here" in fails("convert-official", file, "gs://b/x", "--bert", tmp_path)
    assert not destination.exists()
    assert is_empty(tmp_path / "here")


def test_a_conversion_leaves_a_destination_alone_that_holds_something(
    tmp_path: Path, fails: Fails
) -> None:
    destination = tmp_path / "export"
    destination.mkdir()
    (destination / "mine").write_text("mine")
    told = fails("convert-official", tmp_path / "model.pt", destination, "--bert", tmp_path)
    assert f"{destination} holds something already: choose another DEST" in told
    assert [path.name for path in destination.iterdir()] == ["mine"]


# Arguments


@pytest.mark.parametrize("bench", ["retrieval", "=x", "retrieval=", "coco=/d"])
def test_a_bad_bench_is_told(model_folder: Path, fails: Fails, bench: str) -> None:
    fails("eval", model_folder, "--bench", bench)


def test_a_bench_that_is_given_twice_is_told(model_folder: Path, fails: Fails) -> None:
    told = fails("eval", model_folder, "--bench", "retrieval=/a", "--bench", "retrieval=/b")
    assert "--bench retrieval is given twice, with /a and /b" in told


def test_bad_numbers_are_told(model_folder: Path, scenes_folder: Path, fails: Fails) -> None:
    bench = f"retrieval={scenes_folder}"
    fails("search", model_folder, scenes_folder, *TEXT, "--hits", "0")
    fails("search", model_folder, scenes_folder, *TEXT, "--samples", "-1")
    fails("eval", model_folder, "--bench", bench, "--samples", "-1")
    fails("eval", model_folder, "--bench", bench, "--samples", "61")
    fails("data", "stats", scenes_folder, "--samples", "-1")
    fails("data", "show", scenes_folder, "--samples", "0")
    fails("data", "show", scenes_folder, "--start", "60")
    fails("data", "show", scenes_folder, "--start", "-1")


@pytest.mark.parametrize(
    "options", ["--samples 0", "--samples 5 --seed -1", "--samples 5 --shard-size 0"]
)
def test_scenes_that_cannot_be_made_leave_nothing(
    tmp_path: Path, fails: Fails, options: str
) -> None:
    fails("data", "scenes", tmp_path / "new", *options.split())
    assert not (tmp_path / "new").exists()


def test_a_destination_that_holds_another_data_set_is_left_alone(
    scenes_folder: Path, fails: Fails
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in scenes_folder.iterdir()}
    assert "holds another data set" in fails("data", "scenes", scenes_folder, "--samples", "5")
    assert before == {path.name: path.stat().st_mtime_ns for path in scenes_folder.iterdir()}


def test_an_empty_text_is_told(model_folder: Path, scenes_folder: Path, fails: Fails) -> None:
    assert "--text is empty" in fails("search", model_folder, scenes_folder, "--text", " ")


def test_a_picture_that_cannot_be_written_is_told(
    model_folder: Path, scenes_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "none" / "a.png")
    for command in (
        ["search", str(model_folder), str(scenes_folder), *TEXT, "--out", out],
        ["data", "show", str(scenes_folder), "--out", out],
        ["data", "stats", str(scenes_folder), "--out", str(tmp_path)],
    ):
        assert main(command) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("lotlip: cannot write --out")


def test_a_picture_is_written_whole_or_to_where_a_link_leads(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "link.png").symlink_to(folder / "target.png")
    for name in ("a.png", "link.png", "target.png"):
        write_out(folder / name, b"picture")
        assert (folder / name).read_bytes() == b"picture"
    assert (folder / "link.png").is_symlink()
    wrote = "from pathlib import Path; from lotlip_platform.cli_data import write_out"
    script = f"{wrote}; write_out(Path('/dev/stdout'), b'picture')"
    with (folder / "out").open("wb") as file:
        subprocess.run([sys.executable, "-c", script], stdout=file, check=True)
    assert (folder / "out").read_bytes() == b"picture"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*free some space"):
            write_out(folder / "a.png", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (folder / "a.png").read_bytes() == b"picture", "the one before"
    assert len(list(folder.iterdir())) == 4


# This machine's disk


@pytest.mark.parametrize("verb", ["down", "ui"])
def test_a_home_that_cannot_be_used_is_told(
    verb: str, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "odd" / "services.json").mkdir(parents=True)
    for home in (tmp_path / "file", tmp_path / "odd"):
        monkeypatch.setenv("LOTLIP_HOME", str(home))
        assert f"cannot read {home}/services.json: " in fails(verb)
    monkeypatch.setenv("LOTLIP_HOME", "/proc")
    assert ("cannot write to /proc: " if verb == "down" else "nothing is running") in fails(verb)


def test_an_error_of_the_disk_that_nobody_foresaw_is_one_line(
    own_environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_environment.mkdir()
    (own_environment / "logs").write_text("in the way")
    assert main(["up", "s3"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"lotlip: {own_environment}/logs: File exists"


def test_a_check_without_room_for_copies_says_so_and_blames_no_shard(scenes_folder: Path) -> None:
    command = f"ulimit -f 8; exec {LOTLIP} data check {scenes_folder}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("lotlip: cannot copy shard-000000.tar to ")
    assert done.stderr.endswith("File too large; make room, or set TMPDIR to a folder elsewhere\n")


# What works


def test_data_eval_and_search_work_end_to_end(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tmp_path / "data")
    assert main(["data", "scenes", data, "--samples", "12", "--split", "test"]) == 0
    assert "12 samples in 1 shards" in capsys.readouterr().out
    evaluation = ["eval", str(model_folder), "--bench", f"scenes={data}"]
    assert main([*evaluation, "--json"]) == 0
    (asked,) = json.loads(capsys.readouterr().out)["models"][0]["results"]
    assert asked["num_images"] == 12
    assert main(evaluation) == 0
    assert "long_text_to_image_r1" in capsys.readouterr().out
    assert main(["search", str(model_folder), data, *TEXT, "--hits", "3"]) == 0
    assert "score" in capsys.readouterr().out
    assert Path("search.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_corner_tokens_look_at_is_drawn(
    model_folder: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    look = ["attention", str(model_folder), *TEXT]
    assert main(look) == 0
    assert Path("attention.png").read_bytes().startswith(b"\x89PNG")
    assert main([*look, "--out", "a.html"]) == 0
    capsys.readouterr()
    assert main(["attention", str(model_folder), "--text", "A castle. " * 200]) == 0
    assert ", the model reads 96: its end is left out" in capsys.readouterr().err
    page = Path("a.html").read_text()
    assert page.count("<h2>") == 4, "[CLS], two corner tokens, the cosines"
    assert ">castle</span>" in page
    assert "must end in .png or .html" in fails(*look, "--out", "a.pdf")
    assert "--text is empty" in fails("attention", model_folder, "--text", " ")


def test_a_data_set_can_be_checked_and_shown(
    scenes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(scenes_folder)
    assert main(["data", "check", data]) == 0
    assert capsys.readouterr().out.startswith(f"{data}: 60 samples in 2 shards, ")
    assert main(["data", "check", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    assert main(["data", "show", data, "--samples", "3", "--start", "38"]) == 0
    assert capsys.readouterr().err.endswith("picture  samples.png\n")
    assert Path("samples.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_beyond_what_the_model_reads_is_told(
    model_folder: Path, scenes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", str(model_folder), str(scenes_folder), "--text"]
    assert main([*command, "A red castle. " * 40]) == 0
    assert "--text has 164 tokens, the model reads 96: its end is left out\n" in (
        capsys.readouterr().err
    )
    assert main([*command, "A red castle."]) == 0
    assert "--text has" not in capsys.readouterr().err


@pytest.fixture
def official(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint in the authors' layout, of the size of the preset `tiny`, and its BERT."""
    shapes = {name: value.shape for name, value in LoTLIP(PRESETS["tiny"]).state_dict().items()}
    origins = official_layout(shapes, present=()).values()
    state = {key: torch.randn(origin.shape) for origin in origins for key in origin.keys}
    torch.save({"state_dict": state}, tmp_path / "model.pt")
    words = [f"word{number}" for number in range(1024 - len(SPECIAL_PIECES))]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join([*SPECIAL_PIECES, *words]) + "\n")
    return tmp_path / "model.pt", tmp_path / "bert"


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_an_official_checkpoint_is_converted_into_a_model_that_works(
    place: str,
    official: tuple[Path, Path],
    scenes_folder: Path,
    tmp_path: Path,
    bucket: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, bert = official
    destination = f"{bucket}/models/official" if place == "s3" else str(tmp_path / "new" / "one")
    command = ["convert-official", str(checkpoint), destination]
    assert main([*command, "--preset", "tiny", "--bert", str(bert)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{destination}: ")
    assert said.endswith("values, every key accounted for\n")
    assert main(["search", destination, str(scenes_folder), "--text", "word1 word2"]) == 0
    assert is_empty(tmp_path / "here" / "s3:")


@pytest.mark.parametrize("command", ["search", "stats"])
def test_json_is_all_that_json_prints(
    model_folder: Path, scenes_folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    data = str(scenes_folder)
    arguments = {
        "search": ["search", str(model_folder), data, *TEXT],
        "stats": ["data", command, data],
    }
    assert main([*arguments[command], "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_an_interrupt_is_one_line_and_exit_code_130(tmp_path: Path) -> None:
    destination = tmp_path / "many"
    # A shell that runs the tests in the background makes all below it deaf to SIGINT.
    hear = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    command = [
        *(sys.executable, "-c", f"{hear}os.execv(sys.argv[1], sys.argv[1:])"),
        *(LOTLIP, "data", "scenes", destination, "--samples", "100000", "--shard-size", "100000"),
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    processes = {
        number: subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    time.sleep(10)  # until both are at work, also on a busy machine
    for number, process in processes.items():
        with process:
            process.send_signal(number)
            _, error = process.communicate(timeout=30)
        assert process.returncode == 130, error
        assert error.decode().startswith("lotlip: interrupted")
        assert error.count(b"\n") == 1
    assert not (destination / "manifest.json").exists()


def test_a_reader_that_has_seen_enough_is_no_error(scenes_folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "stats.png"
    command = f"{LOTLIP} data stats {scenes_folder} --json --out {picture} | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert "lotlip:" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_the_demo_refuses_to_touch_services_of_the_users_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "company")
    monkeypatch.setattr("lotlip_platform.local_services.up", lambda on_progress: {})
    assert main(["demo"]) == 1
    assert "but AWS_PROFILE in the environment would lead to others" in capsys.readouterr().err


# Traces


def test_a_trace_diff_says_where_two_runs_part(
    tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(name: str, keys: str) -> Path:
        (tmp_path / name).mkdir()
        lines = [
            json.dumps({"step": k, "epoch": 0, "digest": "", "samples": [[key, "short", "00"]]})
            for k, key in enumerate(keys, start=1)
        ]
        (tmp_path / name / "trace.jsonl").write_text("\n".join(lines))
        return tmp_path / name

    a, b, short = write("a", "abcd"), write("b", "abxd"), write("short", "ab")
    assert main(["trace", "diff", str(a), str(a)]) == 0
    assert capsys.readouterr().out == "4 steps, all equal\n"
    assert main(["trace", "diff", str(a), str(short)]) == 0
    assert capsys.readouterr().out == "2 steps, all equal; then the second ends\n"
    told = fails("trace", "diff", a, b)
    assert "part after 2 equal steps: step 3 (epoch 0): 1 of 1 samples differ" in told
    assert "key 'c' against 'x'" in told
    assert "has no trace" in fails("trace", "diff", a, tmp_path)
    (b / "trace.jsonl").write_text("{}")
    assert "trace.jsonl: line 1 is not a step" in fails("trace", "diff", a, b)
