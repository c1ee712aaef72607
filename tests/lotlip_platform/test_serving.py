"""`lotlip serve`: a real service under Ray Serve, with a real MLflow server and images in S3."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

import pytest
import ray
import torch
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from servers import end_session, free_port

import lotlip
from lotlip.captions import split_sentences
from lotlip.data.manifest import read_manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import read_samples
from lotlip.data.store import Store
from lotlip.errors import ClusterError, ConfigError
from lotlip.evaluate.embed import embed_images, embed_texts
from lotlip.export import save
from lotlip.model import LoTLIP
from lotlip_platform.alias_history import AliasHistory
from lotlip_platform.cli import main
from lotlip_platform.datasets import make_scenes
from lotlip_platform.registry import register
from lotlip_platform.serve_config import ServeConfig
from lotlip_platform.serving import application, serving
from lotlip_platform.storage import ensure_bucket, open_store
from lotlip_platform.tracking import Server, connect

JOB = Path(__file__).parents[2] / "jobs" / "serve.py"
NAME = "served"
DATA = "s3://served/scenes"
TEXT = "A red castle stands in the middle. Two white birds are above it. The sky is dark."


KUBERNETES = Path(__file__).parents[2] / "infra" / "kubernetes"


@dataclass(frozen=True)
class Service:
    url: str
    process: subprocess.Popen[str]
    server: Server
    store: Store
    samples: list[Sample]
    models: dict[str, LoTLIP]

    def get(self, path: str) -> Any:
        return answered(self.url + path)

    def post(self, path: str, body: Any) -> Any:
        return answered(self.url + path, json.dumps(body).encode())

    def wait_for(self, **wanted: str) -> None:
        """Until v1/model says so."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            about = self.get("/v1/model")
            if all(re.search(text, about[name]) for name, text in wanted.items()):
                return
            time.sleep(0.2)
        raise AssertionError(about)


def answered(url: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def move(server: Server, number: int) -> None:
    history = AliasHistory(server, NAME)
    history.move(
        "champion",
        number,
        action="promote",
        because="a test",
        known=history.changes("champion"),
        before=history.version("champion"),
    )


def changed(model: LoTLIP, tower: str) -> LoTLIP:
    """Another model: one of its towers has learned something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in getattr(model, tower).parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module")
def service(
    s3_endpoint: str,
    mlflow_server: str,
    model_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """Three versions, of which 1 is champion; 2 has read other texts, 3 seen other images."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as environment:
        for name, text in {
            "AWS_ENDPOINT_URL": s3_endpoint,
            "AWS_ACCESS_KEY_ID": "lotlip",
            "AWS_SECRET_ACCESS_KEY": "lotlip",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": mlflow_server,
            "LOTLIP_HOME": str(folder / "home"),
        }.items():
            environment.setenv(name, text)
        ensure_bucket(DATA)
        make_scenes(DATA, num_samples=300, shard_size=200, on_progress=lambda done, total: None)
        store = open_store(DATA)
        samples = list(read_samples(store, read_manifest(store)))
        server = connect(mlflow_server)
        models = {}
        for number, tower in enumerate(("", "text_tower", "image_tower"), start=1):
            model = lotlip.load(model_folder)
            models[f"models:/{NAME}/{number}"] = changed(model, tower) if tower else model
            save(model, folder / str(number))
            run_id = server.client.create_run("0").info.run_id
            assert register(server, run_id, str(folder / str(number)), name=NAME) == number
        move(server, 1)
        port = free_port()
        command = [sys.executable, str(JOB), f"models:/{NAME}@champion"]
        command += ["--index", DATA, "--config", "serve/default", f"port={port}", "poll_s=0.5"]
        command += ["max_body_mb=2", "max_image_mp=1"]
        process = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    assert process.stdout is not None
    said = process.stdout.readline()
    if not said:
        raise AssertionError(process.communicate(timeout=30)[1])
    assert said == f"models:/{NAME}/1 searches 300 images: http://127.0.0.1:{port}\n"
    yield Service(f"http://127.0.0.1:{port}", process, server, store, samples, models)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def expected(service: Service, version: str, text: str) -> list[tuple[str, float]]:
    """All images, best first, by the definition."""
    model = service.models[version]
    features = embed_images(model, [sample.image for sample in service.samples])
    scores = features @ embed_texts(model, [text])[0]
    order = scores.argsort(descending=True, stable=True).tolist()
    return [(service.samples[index].key, float(scores[index])) for index in order]


def test_a_search_finds_the_images_that_fit_best(service: Service) -> None:
    found = service.post("/v1/search", {"text": TEXT, "hits": 5})
    assert found["version"] == f"models:/{NAME}/1"
    assert found["sentences"] == split_sentences(TEXT)
    assert found["note"] == ""
    wanted = expected(service, found["version"], TEXT)[:5]
    assert [hit["key"] for hit in found["hits"]] == [key for key, _ in wanted]
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == pytest.approx([score for _, score in wanted], abs=1e-5)
    by_key = {sample.key: sample for sample in service.samples}
    for hit in found["hits"]:
        sample = by_key[hit["key"]]
        assert hit["caption"] == sample.short
        with urllib.request.urlopen(f"{service.url}/{hit['image']}") as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
            assert answer.read() == sample.image


def test_each_image_has_the_sentence_that_fits_it_best_of_all_images(service: Service) -> None:
    found = service.post("/v1/search", {"text": TEXT, "hits": 20})
    model = service.models[found["version"]]
    features = embed_images(model, [sample.image for sample in service.samples])
    scores_SN = embed_texts(model, split_sentences(TEXT)) @ features.T
    excess_SN = scores_SN - scores_SN.mean(dim=1, keepdim=True)
    places = {sample.key: place for place, sample in enumerate(service.samples)}
    for hit in found["hits"]:
        wanted = excess_SN[:, places[hit["key"]]]
        assert hit["sentence_scores"] == pytest.approx(wanted.tolist(), abs=1e-5)
        assert hit["sentence"] == int(wanted.argmax())
    assert len({hit["sentence"] for hit in found["hits"]}) > 1


def test_texts_and_images_are_embedded_by_one_model(service: Service) -> None:
    images = [sample.image for sample in service.samples[:3]]
    texts = [TEXT, "a castle", TEXT * 20]
    sent = [base64.b64encode(image).decode() for image in images]
    found = service.post("/v1/embed", {"texts": texts, "images": sent})
    model = service.models[found["version"]]
    for name, wanted in (
        ("text_embeddings", embed_texts(model, texts)),
        ("image_embeddings", embed_images(model, images)),
    ):
        torch.testing.assert_close(torch.tensor(found[name]), wanted, atol=1e-5, rtol=0)


def test_a_description_that_is_not_read_to_its_end_is_told(service: Service) -> None:
    found = service.post("/v1/search", {"text": "castle " * 100, "hits": 1})
    assert "the model reads 96: its end is left out" in found["note"]


def png_of(width: int, height: int) -> str:
    """The header of a picture of any size, and hardly any pixels; in base64."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    encoded = b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    return base64.b64encode(encoded).decode()


@pytest.mark.parametrize(
    "path, body, status, reason",
    [
        ("search", {"text": " \n"}, 422, "text is empty"),
        ("search", {"text": "a" * 20_001}, 422, "text has 20,001 characters, at most 20,000"),
        ("search", {"text": "a", "hits": 0}, 422, "hits=0 must be from 1 to 100"),
        ("search", {"text": "a", "hits": 101}, 422, "hits=101 must be from 1 to 100"),
        ("search", {"text": "a", "hits": "ten"}, 422, "hits: Input should be a valid integer"),
        ("search", {"txt": "a"}, 422, "text: Field required"),
        ("search", {"text": "a", "wanted": 3}, 422, "wanted: Extra inputs are not permitted"),
        ("search", {"text": "castle \ud800"}, 422, "text: character 7 is half of one"),
        ("search", [], 422, "the body: Input should be a valid dictionary"),
        ("embed", {}, 422, "0 texts and 0 images: 1 to 64 are taken together"),
        ("embed", {"texts": ["a"] * 65}, 422, "65 texts and 0 images: 1 to 64"),
        ("embed", {"texts": ["a", ""]}, 422, "texts.1 is empty"),
        ("embed", {"texts": ["a", 1]}, 422, "texts.1: Input should be a valid string"),
        ("embed", {"images": ["!"]}, 422, "images.0 is not base64"),
        ("embed", {"images": ["AAAA"]}, 422, "images.0: image does not decode"),
        ("embed", {"images": [png_of(1001, 1000)]}, 422, "image of 1001 x 1000 px is too large"),
        ("embed", {"images": [png_of(10**6, 10**6)]}, 422, "images.0: image"),
        ("embed", {"images": [png_of(64, 64)]}, 422, "images.0: image does not decode"),
        ("embed", {"texts": ["a" * 10_000_000]}, 413, "the body has more than 2,000,000 bytes"),
        ("nothing", {}, 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(
    service: Service, path: str, body: Any, status: int, reason: str
) -> None:
    with pytest.raises(HTTPError) as refused:
        service.post(f"/v1/{path}", body)
    assert refused.value.code == status
    told = json.load(refused.value)
    assert set(told) == {"error"}
    assert reason in told["error"]
    assert "\n" not in told["error"]


@pytest.mark.parametrize(
    "body, status, reason",
    [
        (b"{", 422, "the body is not JSON"),
        (b"", 422, "the body: Field required"),
        (b'{"text": "\xff\xfe"}', 400, "There was an error parsing the body"),
        (b"[" * 100_000, 400, "There was an error parsing the body"),
    ],
)
def test_what_is_not_json_is_refused(service, body, status, reason) -> None:
    with pytest.raises(HTTPError) as refused:
        answered(f"{service.url}/v1/search", body)
    assert refused.value.code == status
    assert reason in json.load(refused.value)["error"]


def test_a_body_that_does_not_tell_its_size_is_limited_too(service: Service) -> None:
    connection = HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    chunks = (b"a" * 100_000 for _ in range(30))
    connection.request("POST", "/v1/embed", chunks, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.load(answer) == {"error": "the body has more than 2,000,000 bytes"}
    connection.close()


@pytest.mark.parametrize("host, status", [("evil.example", 400), ("localhost:1", 200)])
def test_only_this_machines_names_are_answered(service: Service, host: str, status: int) -> None:
    """A page of evil.example, whose name came to mean 127.0.0.1, must not read our images."""
    connection = HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    connection.request("GET", "/v1/model", headers={"Host": host})
    assert connection.getresponse().status == status
    connection.close()


def test_an_image_of_another_data_set_is_not_taken_for_one_of_this(service: Service) -> None:
    with pytest.raises(HTTPError) as refused:
        service.get("/v1/images/3?of=0123456789abcdef")
    assert refused.value.code == 404
    assert "0123456789abcdef is another data set" in json.load(refused.value)["error"]


@pytest.mark.parametrize("number", ["300", "-1", "99999999999999999999"])
def test_an_image_that_is_not_there_is_told(service: Service, number: str) -> None:
    with pytest.raises(HTTPError) as refused:
        service.get(f"/v1/images/{number}")
    assert refused.value.code == 404
    assert f"there is no image {number}: {DATA} has 300" in json.load(refused.value)["error"]


def test_probes_and_prometheus_are_answered(service: Service) -> None:
    assert service.get("/health") == {"status": "alive"}
    assert service.get("/ready")["status"] == "ready"
    service.post("/v1/search", {"text": TEXT})
    with urllib.request.urlopen(f"{service.url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
    counts = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["lotlip_requests"].samples
    }
    assert counts["/health", "200"] >= 1
    assert counts["/v1/search", "200"] >= 1
    assert all(sample.labels["replica"] for sample in families["lotlip_requests"].samples)
    assert families["lotlip_index_images"].samples[0].value == 300
    assert "lotlip_request_seconds" in families
    assert families["lotlip_model"].samples[0].labels["version"].startswith(f"models:/{NAME}/")


@pytest.mark.browser
def test_a_browser_shows_the_pictures_with_their_sentences(
    service: Service, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1500"]
    command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=15000"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    address = f"{service.url}/?{urlencode({'text': TEXT, 'hits': 12})}"
    dump = [*command, "--dump-dom", address]
    page = subprocess.run(dump, capture_output=True, text=True, check=True, timeout=120).stdout
    found = service.post("/v1/search", {"text": TEXT, "hits": 12})
    assert f"{found['version']} searches 300 pictures of {DATA}" in page
    assert re.findall(r'<img src="([^"]+)"', page) == [
        hit["image"].replace("&", "&amp;") for hit in found["hits"]
    ]
    assert re.findall(r"<b>([\d.-]+)</b>", page) == [f"{hit['score']:.3f}" for hit in found["hits"]]
    told = [int(number) - 1 for number in re.findall(r'class="chip"[^>]*>(\d+)</span>', page)]
    sentences = list(range(len(found["sentences"])))
    assert told == sentences + [hit["sentence"] for hit in found["hits"]]
    assert "lost" not in re.findall(r'<li class="([^"]*)"', page)
    shot = [*command, f"--screenshot={tmp_path}/page.png", address]
    subprocess.run(shot, capture_output=True, check=True, timeout=120)
    with Image.open(tmp_path / "page.png") as picture:
        # Pictures, not empty frames: many colours below the form.
        colours = picture.convert("RGB").crop((0, 400, 1300, 1500)).getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 1000


def test_when_the_alias_moves_no_request_fails_and_none_meets_two_models(service: Service) -> None:
    wanted = {
        version: [key for key, _ in expected(service, version, TEXT)[:5]]
        for version in service.models
    }
    assert len({tuple(keys) for keys in wanted.values()}) == 3
    found: list[Any] = []
    failed: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                found.append(service.post("/v1/search", {"text": TEXT, "hits": 5}))
            except Exception as error:  # noqa: BLE001 (whatever it is, it must not happen)
                failed.append(error)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        for number in (2, 3):
            time.sleep(0.5)
            move(service.server, number)
            service.wait_for(version=f"/{number}$", problem="^$")
        time.sleep(0.5)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert failed == []
    assert {answer["version"] for answer in found} == set(service.models)
    for answer in found:
        assert [hit["key"] for hit in answer["hits"]] == wanted[answer["version"]]


def test_a_version_that_does_not_load_leaves_the_one_that_is_served(service: Service) -> None:
    before = service.get("/v1/model")["version"]
    client = service.server.client
    run_id = client.create_run("0").info.run_id
    broken = client.create_model_version(NAME, f"runs:/{run_id}/model", run_id=run_id)
    move(service.server, int(broken.version))
    service.wait_for(problem=f"models:/{NAME}/{broken.version}")
    assert service.get("/v1/model")["version"] == before
    assert service.post("/v1/search", {"text": TEXT, "hits": 1})["version"] == before
    with urllib.request.urlopen(f"{service.url}/metrics") as answer:
        assert b'lotlip_reloads_total{outcome="failed"' in answer.read()
    move(service.server, 1)
    service.wait_for(version="/1$", problem="^$")


def test_an_image_that_cannot_be_read_is_told_as_the_stores_fault(service: Service) -> None:
    """Behind the reloads: nothing but this image needs the shard any more."""
    store = service.store
    shard = store.read("shard-000001.tar")
    store.delete("shard-000001.tar")
    try:
        with pytest.raises(HTTPError) as refused:
            service.get("/v1/images/250")
        assert refused.value.code == 502
        assert "shard-000001.tar" in json.load(refused.value)["error"]
    finally:
        store.write("shard-000001.tar", shard)
    with urllib.request.urlopen(f"{service.url}/v1/images/250") as answer:
        assert answer.read() == service.samples[250].image


def test_the_service_ends_when_it_is_told_to(service: Service) -> None:
    """The last test of the service."""
    service.process.send_signal(signal.SIGTERM)
    _, error = service.process.communicate(timeout=60)
    assert service.process.returncode == 0
    assert error.endswith("no longer served\n")
    host, port = service.url.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port))):
        pass


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    "model, data, keys, reason",
    [
        ("MODEL", "NOTHING", (), "has no manifest.json"),
        ("models:/a/b/c", "SCENES", (), "not of the form NAME@ALIAS or NAME/VERSION"),
        ("models:/absent@champion", "SCENES", (), "has no registered model absent"),
        ("NOTHING", "SCENES", (), "has no config.json"),
        ("MODEL", "SCENES", ("prt=1",), "did you mean port"),
        ("MODEL", "SCENES", ("port=0",), "port=0 must be from 1 to 65535"),
        ("MODEL", "SCENES", ("max_image_mp=101",), "max_image_mp=101"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(
    model_folder, scenes_folder, tmp_path, capfd, model, data, keys, reason
) -> None:
    named = {"MODEL": str(model_folder), "SCENES": str(scenes_folder), "NOTHING": str(tmp_path)}
    arguments = [named.get(model, model), "--index", named[data]]
    assert main(["serve", *arguments, "--config", "serve/default", *keys]) == 1
    error = capfd.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_a_cluster_that_cannot_hold_the_service_is_told(own_ray, model_folder, scenes_folder):
    config = ServeConfig(num_replicas=999)
    with (
        pytest.raises(ClusterError, match="num_replicas=999 needs 999 CPUs, the cluster has 2"),
        serving(str(model_folder), str(scenes_folder), config),
    ):
        pass


def test_a_port_that_is_taken_is_told(own_ray, model_folder, scenes_folder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=f"port {port} is taken where Ray Serve is to listen"),
            serving(str(model_folder), str(scenes_folder), ServeConfig(port=port)),
        ):
            pass


def test_replicas_share_the_requests_and_tell_their_metrics_together(
    own_ray, model_folder, scenes_folder, monkeypatch
) -> None:
    config = ServeConfig(port=free_port(), num_replicas=2, cpus_per_replica=0.5)
    monkeypatch.chdir(model_folder.parent)  # replicas have a folder of their own
    with serving(model_folder.name, str(scenes_folder), config) as running:
        assert running.version == str(model_folder)
        for _ in range(40):
            answered(f"{running.url}/v1/search", json.dumps({"text": TEXT}).encode())
        with urllib.request.urlopen(f"{running.url}/metrics") as answer:
            families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
        for port, reason in (
            (free_port(), f"listens on 127.0.0.1:{config.port} already"),
            (config.port, "another lotlip serve runs on this cluster"),
        ):
            other = ServeConfig(port=port)
            with (
                pytest.raises(ClusterError, match=reason),
                serving(str(model_folder), str(scenes_folder), other),
            ):
                pass
        answered(f"{running.url}/v1/search", json.dumps({"text": TEXT}).encode())
    counts = {
        sample.labels["replica"]: sample.value
        for sample in families["lotlip_requests"].samples
        if sample.labels["route"] == "/v1/search"
    }
    assert len(counts) == 2
    assert sum(counts.values()) == 40


@pytest.mark.slow
def test_ray_serve_itself_runs_what_the_manifest_for_kubernetes_says(
    service: Service, s3_endpoint: str, mlflow_server: str, tmp_path: Path
) -> None:
    manifest = yaml.safe_load((KUBERNETES / "serve" / "rayservice.yaml").read_text())
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    application["args"] |= {"model": f"models:/{NAME}@champion", "index": DATA}
    application["args"]["features"] = str(tmp_path / "features")
    application["deployments"][0]["num_replicas"] = 1
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "lotlip",
        "AWS_SECRET_ACCESS_KEY": "lotlip",
        "MLFLOW_TRACKING_URI": mlflow_server,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ADDRESS": "local",  # not the one that ran here last, which may be gone
    }
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("serve"), "run", "serve.yaml"],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        there = replace(service, url=f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 120
        found: dict[str, Any] = {}
        while not found and time.monotonic() < deadline and process.poll() is None:
            time.sleep(1)
            with suppress(OSError):
                found = there.post("/v1/search", {"text": TEXT, "hits": 5})
        assert found, (tmp_path / "serve.log").read_text()[-3000:]
        wanted = expected(service, found["version"], TEXT)[:5]
        assert [hit["key"] for hit in found["hits"]] == [key for key, _ in wanted]
    finally:
        process.terminate()  # not SIGINT, which a shell's background job ignores, and all it starts
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        end_session(process.pid)
        process.wait()


def test_a_manifest_that_lacks_something_says_what() -> None:
    for args, told in (
        ({"index": DATA}, "model is missing"),
        ({"model": "m", "index": DATA}, "features is missing"),
        ({"model": "m", "index": DATA, "features": "f"}, "allowed_hosts is empty"),
        ({"model": "m", "index": DATA, "featurs": "f"}, "featurs"),
    ):
        with pytest.raises(ConfigError, match=told):
            application(args)
