"""The gate and what moves aliases behind it, against a real MLflow server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.artifacts import load_text

import lotlip
from lotlip.data.manifest import read_manifest
from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, LotlipError, RefusedError, TrackingError
from lotlip.evaluate.retrieval import Interval
from lotlip.export import save
from lotlip_platform.alias_history import AliasHistory, OvertakenError
from lotlip_platform.cli import main
from lotlip_platform.config import build_config, dump_config, load_config
from lotlip_platform.gate import _verdict
from lotlip_platform.gate_config import GateConfig
from lotlip_platform.gate_report import GateReport
from lotlip_platform.promotion import history_of, promote, rollback
from lotlip_platform.registry import make_candidate, register
from lotlip_platform.tracking import Server, connect

NAME = "promoted"
RECALL = "long_text_to_image_r1"


@dataclass(frozen=True)
class Promoted:
    """Registered versions: 1 and 2 are the same model, 3 is another; 4 to 6 have a flaw each."""

    server: Server
    data: str


def registered(server: Server, folder: Path, tags: dict[str, str], data: str, status="FINISHED"):
    client = server.client
    run_id = client.create_run("0", tags=tags).info.run_id
    client.log_param(run_id, "data.train", data)
    number = register(server, run_id, str(folder), name=NAME, card="A card.")
    make_candidate(server, NAME, number, run_id)
    client.set_terminated(run_id, status)
    return number


@pytest.fixture(scope="module")
def promoted(
    mlflow_server: str,
    model_folder: Path,
    scenes_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Promoted:
    server = connect(mlflow_server)
    digest = read_manifest(FolderStore(scenes_folder)).digest
    tags = {"code_version": "a" * 40, "data_manifest": digest, "run_folder": "/runs/one"}
    other = lotlip.load(model_folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.text_tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder, data = tmp_path_factory.mktemp("other") / "model", str(scenes_folder)
    save(other, folder)
    assert registered(server, model_folder, tags, data) == 1
    assert registered(server, model_folder, tags, data) == 2
    assert registered(server, folder, tags, data) == 3
    changed = {**tags, "code_version": f"{'a' * 40}+changes"}
    assert registered(server, model_folder, changed, data) == 4
    gone = {**tags, "data_manifest": "0" * 16}
    assert registered(server, model_folder, gone, data) == 5
    assert registered(server, model_folder, tags, data, "FAILED") == 6
    return Promoted(server, data)


@pytest.fixture(autouse=True)
def same_server(promoted: Promoted, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", promoted.server.uri)
    yield
    client = promoted.server.client  # each test begins without a champion, and without a history
    model = client.get_registered_model(NAME)
    for alias in set(model.aliases) - {"candidate"}:
        client.delete_registered_model_alias(NAME, alias)
    client.delete_registered_model_tag(NAME, "lotlip_history")


def gate(promoted: Promoted, **changes: Any) -> GateConfig:
    benchmark = {
        "data": promoted.data,
        "num_samples": 60,
        "at_least": {RECALL: 0.0},
        "not_worse": [RECALL],
        **changes.pop("benchmark", {}),
    }
    return build_config(
        GateConfig,
        {
            "benchmarks": {"retrieval": benchmark},
            "max_latency_ms": 10_000,
            "tolerance": 0.05,
            **changes,
        },
    )


def put(promoted: Promoted, version: int, **changes: Any) -> GateReport:
    """Promote; the gate's report, whatever it says."""
    reports: list[GateReport] = []
    is_forced = changes.pop("is_forced", False)
    try:
        promote(
            NAME,
            version,
            because="a test",
            config=gate(promoted, **changes),
            is_forced=is_forced,
            on_report=reports.append,
        )
    except RefusedError:
        assert not reports[0].is_passed
    return reports[0]


def champion(promoted: Promoted) -> int:
    return AliasHistory(promoted.server, NAME).version("champion")


def test_the_shipped_gate_is_valid() -> None:
    config = load_config(GateConfig, "promote/default")
    assert config.benchmarks["scenes"].better == (RECALL,)


def test_a_good_version_becomes_champion_and_mlflow_tells_why(promoted: Promoted) -> None:
    report = put(promoted, 1)
    assert report.is_passed, report.table()
    assert champion(promoted) == 1
    changes, aliases = history_of(NAME)
    (change,) = [change for change in changes if change.alias == "champion"]
    assert (change.action, change.before, change.after) == ("promote", 0, 1)
    assert (change.because, change.is_forced, aliases["champion"]) == ("a test", False, 1)
    run = promoted.server.client.get_run(change.gate_run)
    assert run.info.status == "FINISHED"
    assert run.data.tags["gate"] == "passed"
    assert "| retrieval/long_text_to_image_r1 |" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics.keys() == {f"candidate/retrieval/{RECALL}"}
    told = json.loads(load_text(f"runs:/{change.gate_run}/gate.json"))
    assert told["is_passed"] is True
    assert told["config"]["benchmarks"]["retrieval"]["num_samples"] == 60
    version = promoted.server.client.get_model_version(NAME, "1")
    assert version.tags["champion_gate"] == "passed"


def test_equal_models_differ_by_nothing(promoted: Promoted) -> None:
    put(promoted, 1)
    report = put(promoted, 2)
    (row,) = [c for c in report.checks if c.demand.startswith("not worse")]
    assert (row.difference, row.interval, row.verdict) == ("+0.0", "[+0.0, +0.0]", "passed")
    assert row.candidate == row.champion
    assert row.shares["difference"] == 0.0
    assert champion(promoted) == 2
    better = put(promoted, 1, benchmark={"better": [RECALL]})
    assert better.refusals == [f"retrieval/{RECALL}"]
    assert champion(promoted) == 2


@pytest.mark.parametrize(("version", "refused"), [(4, "code"), (5, "training data"), (6, "run")])
def test_a_version_of_doubtful_origin_is_refused(
    promoted: Promoted, version: int, refused: str
) -> None:
    assert put(promoted, version).refusals == [refused]
    assert champion(promoted) == 0


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"max_size_mb": 0.001}, "size"),
        ({"max_latency_ms": 0.001}, "latency"),
        (
            {"benchmark": {"at_least": {"short_text_to_image_r1": 1.0}}},
            "retrieval/short_text_to_image_r1",
        ),
    ],
)
def test_a_version_below_a_demand_is_refused(
    promoted: Promoted, changes: dict[str, Any], refused: str
) -> None:
    assert put(promoted, 1, **changes).refusals == [refused]
    assert champion(promoted) == 0


def test_embeddings_that_are_not_those_stored_are_refused(
    promoted: Promoted, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = lotlip.export.load

    def damaged(path: str | Path) -> Any:
        model = load(path)
        with torch.no_grad():
            for parameter in model.text_tower.parameters():
                parameter.mul_(1.0001)
        return model

    monkeypatch.setattr("lotlip_platform.registered_version.load", damaged)
    report = put(promoted, 1)
    assert report.refusals == ["embeddings of its probe"]
    (row,) = [check for check in report.checks if check.verdict != "passed"]
    assert row.candidate.startswith("differ by up to ")


def test_an_overruled_gate_is_marked_for_ever(promoted: Promoted) -> None:
    report = put(promoted, 4, is_forced=True)
    assert not report.is_passed
    assert champion(promoted) == 4
    put(promoted, 1)
    forced = [c.is_forced for c in history_of(NAME)[0] if c.alias == "champion"]
    assert forced == [True, False]
    assert promoted.server.client.get_model_version(NAME, "4").tags["champion_gate"] == "forced"


def test_force_is_no_mark_where_the_gate_passes(promoted: Promoted) -> None:
    put(promoted, 1, is_forced=True)
    (change,) = [c for c in history_of(NAME)[0] if c.alias == "champion"]
    assert not change.is_forced


def test_a_rollback_goes_back_one_champion_at_a_time(promoted: Promoted) -> None:
    with pytest.raises(ConfigError, match="no other version of promoted was champion"):
        rollback(NAME, because="nothing yet")
    for version in (1, 2, 3):
        put(promoted, version, tolerance=1.0)
    assert rollback(NAME, because="3 is worse").after == 2
    assert rollback(NAME, because="2 as well").after == 1
    assert champion(promoted) == 1
    with pytest.raises(ConfigError, match="nothing to go to"):
        rollback(NAME, because="1 as well")


def test_one_who_is_overtaken_while_the_gate_runs_is_told(promoted: Promoted) -> None:
    put(promoted, 1)

    def another_is_faster(report: GateReport) -> None:
        put(promoted, 2)

    with pytest.raises(OvertakenError, match=r"moved from version 1 to 2 by .*: 'a test'"):
        promote(
            NAME,
            3,
            because="slow",
            config=gate(promoted, tolerance=1.0),
            on_report=another_is_faster,
        )
    assert champion(promoted) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "nobody"}, TrackingError, "has no registered model nobody"),
        ({"version": 99}, TrackingError, r"no version 99 of promoted; it has: 1, 2, 3, 4, 5, 6"),
        ({"because": " "}, ConfigError, "--because is empty"),
        ({"alias": "a/b"}, ConfigError, "--to a/b can't be an alias"),
        ({"alias": "Latest"}, ConfigError, "--to Latest can't be an alias"),
        ({"alias": "v2"}, ConfigError, "--to v2 can't be an alias"),
    ],
)
def test_mistakes_are_one_line_and_move_nothing(
    promoted: Promoted, arguments: dict[str, Any], error: type[LotlipError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        promote(
            **{
                "name": NAME,
                "version": 1,
                "because": "x",
                "config": gate(promoted),
                **arguments,
            }
        )
    assert "\n" not in str(raised.value)
    assert champion(promoted) == 0


def test_a_benchmark_that_cannot_run_is_refused(promoted: Promoted, tmp_path: Path) -> None:
    report = put(promoted, 1, benchmark={"data": str(tmp_path)})
    assert report.refusals == ["retrieval"]
    assert "has no manifest.json" in report.checks[-1].candidate
    with pytest.raises(ConfigError, match=r"benchmarks\.retrieval has no metric nonsense"):
        put(promoted, 1, benchmark={"better": ["nonsense"]})
    put(promoted, 1)
    with pytest.raises(ConfigError, match="version 1 of promoted is champion already"):
        put(promoted, 1)


def test_a_version_whose_files_are_gone_is_told(promoted: Promoted) -> None:
    client = promoted.server.client
    run = client.create_run("0").info
    source = f"{run.artifact_uri}/model"
    half = client.create_model_version(NAME, source, run_id=run.run_id).version
    try:
        with pytest.raises(TrackingError, match=rf"has no model models:/promoted/{half}: "):
            put(promoted, int(half))
        # As champion it may be replaced, on the record.
        client.set_registered_model_alias(NAME, "champion", str(half))
        assert put(promoted, 1).refusals == ["champion"]
        assert put(promoted, 1, is_forced=True).champion == int(half)
        assert champion(promoted) == 1
    finally:
        client.delete_model_version(NAME, str(half))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tolerance": -0.1}, r"tolerance=-0\.1 must be from"),
        ({"confidence": 1.0}, r"confidence=1\.0 must be from"),
        ({"num_resamples": 3}, "num_resamples=3 must be 100 or more"),
        (
            {"benchmarks": {"imagenet": {"data": "x", "better": ["y"]}}},
            r"benchmarks\.imagenet is no benchmark",
        ),
        ({"benchmarks": {"scenes": {}}}, r"benchmarks\.scenes\.data is missing"),
        ({"benchmarks": {}}, "benchmarks is empty"),
        ({"benchmarks": {"scenes": {"data": "x"}}}, "asks nothing"),
        ({"benchmarks": {"scenes": {"data": "x", "num_samples": -1}}}, "must be 0 or more"),
        ({"benchmarks": {"scenes": {"data": "x", "at_least": {"r": 30}}}}, r"at_least\.r=30"),
    ],
)
def test_a_wrong_gate_is_told(values: dict[str, Any], message: str) -> None:
    asked = {"scenes": {"data": "x", "better": ["y"]}}
    with pytest.raises(ConfigError, match=message):
        build_config(GateConfig, {"benchmarks": asked, **values})


@pytest.fixture
def gate_file(promoted: Promoted, tmp_path: Path) -> str:
    path = tmp_path / "gate.yaml"
    path.write_text(dump_config(gate(promoted)))
    return str(path)


def test_the_commands_promote_tell_and_roll_back(
    promoted: Promoted, gate_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    because = ["--because", "it reads long texts"]
    by_gate = ["--gate", gate_file]
    assert main(["models", "promote", NAME, "--version", "1", *by_gate, *because]) == 0
    out, err = capsys.readouterr()
    head, _, *rows = out.splitlines()
    assert head.split() == (
        ["candidate", "v1", "no", "champion", "yet", "difference", "interval", "demand", "verdict"]
    )
    assert all(row.endswith("passed") for row in rows)
    assert any("not worse by 5 (nothing to compare with)" in row for row in rows)
    assert err.splitlines()[-1] == f"{NAME}@champion: version 1 (was none)"

    refused = ["models", "promote", NAME, "--version", "4", *by_gate, *because]
    assert main(refused) == 3
    out, err = capsys.readouterr()
    assert [row.split()[0] for row in out.splitlines() if row.endswith("REFUSED")] == ["code"]
    assert err.splitlines()[-1].startswith(
        f"lotlip: version 4 of {NAME} is not champion: the gate refused code; its report is run "
    )
    assert main([*refused, "--force", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["is_passed"] is False
    assert err.endswith("(was 1); the gate refused, and was overruled\n")

    assert main(["models", "rollback", NAME, "--because", "second thoughts"]) == 0
    assert capsys.readouterr().out == f"{NAME}@champion: version 1 (was 4)\n"
    assert main(["models", "history", NAME]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    moves = [line for line in lines if " champion " in line]
    assert [move.split()[2] for move in moves] == ["promote", "promote", "rollback"]
    assert "FORCED" in moves[1]
    assert moves[2].endswith("second thoughts")
    assert main(["models", "history", NAME, "--json"]) == 0
    told = [c for c in json.loads(capsys.readouterr().out) if c["alias"] == "champion"]
    assert [change["after"] for change in told] == [1, 4, 1]

    assert main(["models", "list"]) == 0
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith(NAME)]
    assert line.split("  ")[-1].strip() == "candidate: v6, champion: v1"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("promote promoted --version 0 --because x", "--version must be 1 or more"),
        ("promote promoted --version 1 --because x --gate nowhere", "there is no config nowhere"),
        (
            "promote promoted --version 1 --because x --gate promote/default tolerence=1",
            "did you mean tolerance",
        ),
        ("show promoted", "'promoted' is not of the form NAME@ALIAS or NAME/VERSION"),
        ("show promoted@nobody", "promoted has no alias nobody; it has: candidate: v6"),
        ("show promoted/77", "has no version 77 of promoted; it has: 1, 2, 3, 4, 5, 6"),
        ("show nobody@champion", "has no registered model nobody"),
        ("history nobody", "has no registered model nobody"),
        ("rollback nobody --because x", "has no registered model nobody"),
        ("register 00000000000000000000000000000000 m", "is no run of lotlip"),
    ],
)
def test_mistakes_in_commands_are_one_line(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *command.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("low", "high", "least", "verdict"),
    [
        (0.01, 0.03, 0.0, "passed"),
        (-0.01, 0.03, 0.0, "undecided"),
        (-0.03, -0.01, 0.0, "refused"),
        (0.0, 0.0, 0.0, "refused"),  # equal is not better
        (-0.01, 0.03, -0.02, "passed"),
        (-0.03, 0.03, -0.02, "undecided"),
        (-0.05, -0.03, -0.02, "refused"),
    ],
)
def test_a_verdict_says_no_more_than_the_interval(
    low: float, high: float, least: float, verdict: str
) -> None:
    difference = Interval((low + high) / 2, low, high)
    assert _verdict(difference, least, is_enough=True) == verdict
    too_few = "undecided" if verdict == "passed" else verdict
    assert _verdict(difference, least, is_enough=False) == too_few


def test_few_queries_decide_nothing(promoted: Promoted) -> None:
    put(promoted, 1)
    report = put(promoted, 2, tolerance=0.02)  # 60 queries: up to 5% may be worse, unseen
    (row,) = [check for check in report.checks if check.verdict != "passed"]
    assert (row.interval, row.verdict) == ("[+0.0, +0.0]", "undecided")
