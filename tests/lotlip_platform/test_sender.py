"""Journals and a real MLflow server, with nothing lost and nothing doubled between them."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lotlip_platform import sender as module
from lotlip_platform.journal import Journal
from lotlip_platform.local_services import local_artifacts
from lotlip_platform.sender import Sender
from lotlip_platform.tracking import connect, tracking_uri

COUNT = itertools.count()


@pytest.fixture
def client(mlflow_server: str) -> MlflowClient:
    return connect(mlflow_server).client


@pytest.fixture
def kept(tmp_path: Path) -> Journal:
    return Journal(tmp_path / f"journal-{next(COUNT)}")


def begin(kept: Journal, uri: str, life: int = 1, **changes: Any) -> None:
    options = {"experiment": "tests", "name": "run", "params": {}, "tags": {}, "run_id": ""}
    kept.append("open", life=life, uri=uri, **(options | changes))


def metrics(kept: Journal, step: int, **values: float) -> None:
    kept.append("metrics", step=step, values={f"train/{k}": v for k, v in values.items()})


def send(kept: Journal) -> str:
    """Send with a new sender, as after a restart; the run."""
    assert Sender(kept).send(), kept.sent().trouble
    return kept.sent().run_id


def history(client: MlflowClient, run_id: str, name: str = "train/loss") -> list[Any]:
    points = client.get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in points)


def fill(kept: Journal, uri: str) -> None:
    params = {"optim.lr": "0.1", "captions.captioners": "['a']"}
    begin(kept, uri, params=params, tags={"code_version": "1"})
    metrics(kept, 1, loss=2.0)
    metrics(kept, 2, loss=1.0, lr=0.5)
    for name, content in (("config.yaml", b"name: one\n"), ("figures/curves.png", b"png")):
        kept.append("file", name=name, content=kept.keep(content))
    uri = "s3://bucket/scenes/train"
    kept.append("dataset", uri=uri, digest="abc", context="training")
    kept.append("tags", values={"stopped": "by hand", "long": "x" * 9000})
    kept.append("end", life=1, status="FINISHED", time_ms=1_800_000_000_000)


def check_filled(client: MlflowClient, run: Run) -> None:
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.info.end_time == 1_800_000_000_000
    assert history(client, run.info.run_id) == [(1, 2.0), (2, 1.0)]
    assert run.data.metrics == {"train/loss": 1.0, "train/lr": 0.5}
    assert run.data.params == {"optim.lr": "0.1", "captions.captioners": "['a']"}
    assert run.data.tags["code_version"] == "1"
    assert run.data.tags["stopped"] == "by hand"
    assert len(run.data.tags["long"]) == 5000
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("scenes/train", "abc")
    assert "s3://bucket/scenes/train" in entry.dataset.source
    assert [tag.value for tag in entry.tags] == ["training"]
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["config.yaml", "figures"]


def test_all_that_a_journal_holds_comes_to_the_server(
    kept: Journal, client: MlflowClient, mlflow_server: str, tmp_path: Path
) -> None:
    fill(kept, mlflow_server)
    run_id = send(kept)
    check_filled(client, client.get_run(run_id))
    assert kept.is_sent
    path = client.download_artifacts(run_id, "config.yaml", str(tmp_path))
    assert Path(path).read_bytes() == b"name: one\n"


def test_a_local_database_takes_it_as_well(kept: Journal) -> None:
    fill(kept, tracking_uri())
    client = connect().client
    check_filled(client, client.get_run(send(kept)))
    assert list(local_artifacts().rglob("config.yaml"))


def test_a_local_folder_is_a_data_set_too(
    kept: Journal, client: MlflowClient, mlflow_server: str, tmp_path: Path
) -> None:
    begin(kept, mlflow_server)
    for _ in range(2):
        kept.append("dataset", uri=str(tmp_path), digest="d", context="training")
    (entry,) = client.get_run(send(kept)).inputs.dataset_inputs
    assert str(tmp_path) in entry.dataset.source


@pytest.mark.parametrize("seed", range(3))
def test_a_sender_may_die_at_any_moment_and_nothing_is_doubled(
    kept: Journal, client: MlflowClient, mlflow_server: str, seed: int
) -> None:
    """Its requests fail at random before or after the server has taken them, and the memory of
    what was sent lags behind by as much."""
    chance = random.Random(seed)
    experiment = f"deaths-{seed}-{kept.folder.parent.name}"
    begin(kept, mlflow_server, experiment=experiment, params={"a": "1", "b": "2"})
    for step in range(40):
        metrics(kept, step, loss=step / 8, lr=1.0)
    kept.append("end", life=1, status="FINISHED")

    class Dying(Sender):
        def _deliver(self, portion: list[dict[str, Any]]) -> None:
            if chance.random() < 0.3:
                raise ConnectionError("before")
            super()._deliver(portion)
            if chance.random() < 0.3:
                raise ConnectionError("after")

    for _ in range(200):
        if Dying(kept).send():
            break
        if chance.random() < 0.3:  # killed before it noted anything
            (kept.folder / "sent.json").unlink()
    assert kept.is_sent
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert history(client, run.info.run_id) == [(step, step / 8) for step in range(40)]
    assert run.data.params == {"a": "1", "b": "2"}
    assert run.info.status == "FINISHED"


def test_steps_that_are_trained_again_are_not_doubled(
    kept: Journal, client: MlflowClient, mlflow_server: str
) -> None:
    begin(kept, mlflow_server)
    metrics(kept, 1, loss=4.0)
    metrics(kept, 2, loss=3.0)
    run_id = send(kept)
    begin(kept, mlflow_server, life=2)
    metrics(kept, 2, loss=3.5)  # told before
    metrics(kept, 2, loss=3.6, lr=0.1)
    metrics(kept, 3, loss=2.0)
    assert send(kept) == run_id
    assert history(client, run_id) == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert history(client, run_id, "train/lr") == [(2, 0.1)]


def test_a_run_goes_on_from_another_machine_without_doubled_points(
    kept: Journal, client: MlflowClient, mlflow_server: str, tmp_path: Path
) -> None:
    begin(kept, mlflow_server)
    metrics(kept, 1, loss=4.0)
    run_id = send(kept)
    elsewhere = Journal(tmp_path / "elsewhere" / kept.folder.name)
    begin(elsewhere, mlflow_server, life=2)
    metrics(elsewhere, 1, loss=4.0)
    metrics(elsewhere, 2, loss=3.0)
    assert send(elsewhere) == run_id
    assert history(client, run_id) == [(1, 4.0), (2, 3.0)]


def test_a_life_whose_end_is_noticed_late_does_not_end_the_next(
    kept: Journal, client: MlflowClient, mlflow_server: str
) -> None:
    begin(kept, mlflow_server, life=1, tags={"life": "one"}, params={"a": "1"})
    kept.append("tags", values={"stopped": "by SIGTERM", "continue_with": "lotlip train"})
    begin(kept, mlflow_server, life=2, tags={"life": "two"}, params={"a": "2", "b": "3"})
    kept.append("end", life=1, status="KILLED")
    run = client.get_run(send(kept))
    assert run.info.status == "RUNNING"
    assert run.data.tags["life"] == "two"
    assert not {"stopped", "continue_with"} & run.data.tags.keys()
    assert run.data.params == {"a": "1", "b": "3"}
    kept.append("end", life=2, status="FAILED")
    assert client.get_run(send(kept)).info.status == "FAILED"


def test_a_run_that_is_known_by_its_id_is_continued(
    kept: Journal, client: MlflowClient, mlflow_server: str
) -> None:
    run_id = client.create_run("0").info.run_id
    begin(kept, mlflow_server, run_id=run_id)
    kept.append("end", life=1, status="FINISHED")
    assert send(kept) == run_id


@pytest.mark.parametrize("gone", ["deleted", "of another server"])
def test_a_run_that_is_gone_is_replaced_by_a_new_one(
    kept: Journal, client: MlflowClient, mlflow_server: str, gone: str
) -> None:
    run_id = "0" * 32
    if gone == "deleted":
        run_id = client.create_run("0").info.run_id
        client.delete_run(run_id)
    begin(kept, mlflow_server, run_id=run_id, params={"a": "1"})
    metrics(kept, 1, loss=1.0)
    new = send(kept)
    assert new != run_id
    assert client.get_run(new).data.params == {"a": "1"}
    assert history(client, new) == [(1, 1.0)]


def test_what_the_server_refuses_is_counted_and_the_rest_arrives(
    kept: Journal, client: MlflowClient, mlflow_server: str
) -> None:
    begin(kept, mlflow_server)
    metrics(kept, 1, loss=1.0)
    kept.append("metrics", step=1, values={"bad(name)": 1.0})
    metrics(kept, 2, loss=float("nan"), lr=float("inf"))
    run_id = send(kept)
    sent = kept.sent()
    assert sent.num_refused == 1
    assert "bad(name)" in sent.refused[0]
    assert "\n" not in sent.refused[0]
    assert {"train/loss", "train/lr"} == client.get_run(run_id).data.metrics.keys()
    assert len(history(client, run_id)) == 2


def test_params_that_the_server_refuses_are_trouble_that_is_told(
    kept: Journal, mlflow_server: str
) -> None:
    begin(kept, mlflow_server, params={"bad(name)": "1"})
    assert not Sender(kept).send()
    assert "bad(name)" in kept.sent().trouble


def test_a_deleted_experiment_is_trouble_until_it_is_restored(
    kept: Journal, client: MlflowClient, mlflow_server: str
) -> None:
    deleted = client.create_experiment("deleted")
    client.delete_experiment(deleted)
    begin(kept, mlflow_server, experiment="deleted")
    assert not Sender(kept).send()
    assert "deleted" in kept.sent().trouble
    assert "\n" not in kept.sent().trouble
    client.restore_experiment(deleted)
    send(kept)
    assert kept.sent().trouble == ""


def test_a_server_that_is_away_is_trouble_and_nothing_is_lost(
    kept: Journal, client: MlflowClient, mlflow_server: str, dead_url: str
) -> None:
    begin(kept, dead_url)
    metrics(kept, 1, loss=1.0)
    sender = Sender(kept)
    assert not sender.send()
    assert f"no MLflow server at {dead_url}" in kept.sent().trouble
    lines = kept.folder / "journal.jsonl"
    lines.write_text(lines.read_text().replace(dead_url, mlflow_server))  # it came back
    assert sender.send()
    assert history(client, kept.sent().run_id) == [(1, 1.0)]


def test_many_values_go_in_few_requests(
    kept: Journal, client: MlflowClient, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(kept, mlflow_server)
    for step in range(1200):
        metrics(kept, step, loss=1.0, lr=1.0)
    sizes: list[int] = []
    deliver = module.Sender._deliver

    def counted(self: Sender, portion: list[dict[str, Any]]) -> None:
        sizes.append(len(portion))
        deliver(self, portion)

    monkeypatch.setattr(module.Sender, "_deliver", counted)
    run_id = send(kept)
    assert sizes == [1, 500, 500, 200]
    assert len(history(client, run_id)) == 1200


def test_a_model_is_registered_once_however_often_it_is_told(
    kept: Journal,
    client: MlflowClient,
    mlflow_server: str,
    model_folder: Path,
) -> None:
    begin(kept, mlflow_server)
    kept.append("register", model=str(model_folder), name="sent-once")
    run_id = send(kept)
    assert kept.sent().model_uri == "models:/sent-once/1"
    assert client.get_model_version_by_alias("sent-once", "candidate").run_id == run_id
    (kept.folder / "sent.json").unlink()
    kept.append("register", model=str(model_folder), name="sent-once")
    send(kept)
    assert kept.sent().model_uri == "models:/sent-once/1"


def test_a_model_that_is_gone_is_trouble_in_one_line(
    kept: Journal, mlflow_server: str, tmp_path: Path
) -> None:
    begin(kept, mlflow_server)
    kept.append("register", model=str(tmp_path), name="gone")
    assert not Sender(kept).send()
    assert "not an export folder" in kept.sent().trouble


def test_a_life_that_another_machine_has_followed_says_no_more_of_how_the_run_is(
    kept: Journal, client: MlflowClient, mlflow_server: str, tmp_path: Path
) -> None:
    begin(kept, mlflow_server, life=1)
    metrics(kept, 1, loss=4.0)
    run_id = send(kept)
    here = Sender(kept)
    elsewhere = Journal(tmp_path / "elsewhere" / kept.folder.name)
    begin(elsewhere, mlflow_server, life=2, run_id=run_id, tags={"code_version": "2"})
    metrics(elsewhere, 2, loss=3.0)
    elsewhere.append("end", life=2, status="FINISHED", time_ms=1_800_000_000_000)
    send(elsewhere)
    metrics(kept, 2, loss=3.0)
    metrics(kept, 3, loss=2.0)
    kept.append("tags", values={"code_version": "1"})
    kept.append("file", name="config.yaml", content=kept.keep(b"old"))
    kept.append("end", life=1, status="KILLED")
    assert here.send()
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1_800_000_000_000)
    assert run.data.tags["code_version"] == "2"
    assert history(client, run_id) == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert client.list_artifacts(run_id) == []


def test_a_file_that_is_not_taken_holds_up_nothing_else(
    kept: Journal,
    client: MlflowClient,
    mlflow_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "artifacts").write_bytes(b"in the way")
    place = (tmp_path / "artifacts").as_uri()
    name = f"untaken-{kept.folder.parent.name}"
    client.create_experiment(name, place)
    begin(kept, mlflow_server, experiment=name)
    kept.append("file", name="config.yaml", content=kept.keep(b"name: one"))
    metrics(kept, 1, loss=1.0)
    kept.append("end", life=1, status="FINISHED")
    sender = Sender(kept)
    assert not sender.send()
    run_id = kept.sent().run_id
    assert history(client, run_id) == [(1, 1.0)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert not kept.is_sent
    assert "artifacts" in kept.sent().trouble
    assert not Sender(kept).send()

    def away(uri: str) -> Any:
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(module, "connect", away)
        assert not Sender(kept).send()
    (tmp_path / "artifacts").unlink()
    send(kept)
    assert [found.path for found in client.list_artifacts(run_id)] == ["config.yaml"]
    assert kept.is_sent


def test_a_file_that_is_not_kept_any_more_is_counted_as_refused(
    kept: Journal, mlflow_server: str
) -> None:
    begin(kept, mlflow_server)
    kept.append("file", name="config.yaml", content="gone")
    send(kept)
    assert kept.sent().num_refused == 1
    assert "gone" in kept.sent().refused[0]


def test_what_is_told_of_a_deleted_run_waits_until_it_is_restored(
    kept: Journal, client: MlflowClient, mlflow_server: str
) -> None:
    begin(kept, mlflow_server)
    run_id = send(kept)
    client.delete_run(run_id)
    metrics(kept, 1, loss=1.0)
    assert not Sender(kept).send()
    client.restore_run(run_id)
    assert send(kept) == run_id
    assert history(client, run_id) == [(1, 1.0)]
    assert kept.sent().num_refused == 0


def test_a_model_whose_registration_was_interrupted_becomes_the_candidate(
    kept: Journal,
    client: MlflowClient,
    mlflow_server: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin(kept, mlflow_server)
    kept.append("register", model=str(model_folder), name="interrupted")

    def die(*given: Any) -> None:
        raise ConnectionError("killed")

    kept.append("end", life=1, status="FINISHED", time_ms=1_800_000_000_000)
    with monkeypatch.context() as patch:
        patch.setattr("lotlip_platform.registry.register", die)
        assert not Sender(kept).send()
    with monkeypatch.context() as patch:
        patch.setattr("lotlip_platform.registry.make_candidate", die)
        assert not Sender(kept).send()
    run_id = send(kept)
    ended = client.get_run(run_id).info
    assert (ended.status, ended.end_time) == ("FINISHED", 1_800_000_000_000)
    assert client.get_model_version_by_alias("interrupted", "candidate").run_id == run_id
    assert kept.sent().model_uri == "models:/interrupted/1"


def test_a_memory_of_a_longer_journal_is_not_believed(
    kept: Journal, client: MlflowClient, mlflow_server: str
) -> None:
    begin(kept, mlflow_server)
    metrics(kept, 1, loss=1.0)
    sent = kept.sent()
    sent.offset = 10_000
    kept.write_sent(sent)
    assert history(client, send(kept)) == [(1, 1.0)]
