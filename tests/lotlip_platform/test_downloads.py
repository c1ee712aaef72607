"""Images from a web that does what webs do."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from image_server import ImageServer

from lotlip.data.scenes import make_sample
from lotlip.errors import ConfigError
from lotlip_platform import downloads
from lotlip_platform.downloads import DownloadConfig, Fetched, download, num_downloaders

IMAGES = {f"{i}.jpg": make_sample(0, i).image for i in range(40)}


@pytest.fixture
def web() -> Iterator[ImageServer]:
    server = ImageServer(IMAGES, seconds=0.02)
    yield server
    server.end()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_FIRST_PAUSE_S", 0.02)


def fetch(urls: list[str], num_workers: int = 1, **values: Any) -> list[Fetched]:
    config = DownloadConfig(**{"private_hosts": True, "timeout_s": 1.0, **values})
    return list(download(urls, config, num_workers=num_workers))


def test_images_come_whole_and_by_their_rows(web: ImageServer):
    found = fetch([f"{web.url}/ok/{i}.jpg" for i in range(40)])
    assert [one.content for one in found] == list(IMAGES.values())
    assert {one.kind for one in found} == {""}
    assert web.most_in_flight <= 4, "per_host"


@pytest.mark.parametrize(
    "path, kind, num_asked",
    [
        ("ok/none.jpg", "status 404", 1),
        ("slow/1.jpg", "timeout", 3),
        ("round/1.jpg", "redirects", 6),
        ("noai/1.jpg", "forbidden", 1),
    ],
)
def test_what_does_not_come_tells_why(web: ImageServer, path: str, kind: str, num_asked: int):
    (found,) = fetch([f"{web.url}/{path}"])
    assert (found.content, found.kind) == (b"", kind)
    assert found.reason
    assert web.asked[f"/{path}"] == num_asked


@pytest.mark.parametrize("kind", ["moved", "busy", "later"])
def test_what_passes_is_waited_for(web: ImageServer, kind: str):
    began_s = time.monotonic()
    (found,) = fetch([f"{web.url}/{kind}/3.jpg"])
    assert found.content == IMAGES["3.jpg"]
    assert (time.monotonic() - began_s > 1) == (kind == "later"), "Retry-After: 1"


def test_an_image_that_breaks_off_is_fetched_again(web: ImageServer):
    (found,) = fetch([f"{web.url}/cut/3.jpg"], max_attempts=1)
    assert (found.kind, found.content) == ("connection", b"")


def test_hosts_that_are_not_there_are_told(web: ImageServer, dead_url: str):
    found = fetch([f"{dead_url}/1.jpg", "http://nobody.invalid/1.jpg"], max_attempts=1)
    assert [one.kind for one in found] == ["connection", "host"]


@pytest.mark.parametrize(
    "url", ["ftp://x/1.jpg", "file:///etc/passwd", "http:///1.jpg", "x", "http://[::1/x", "http://"]
)
def test_what_is_no_address_is_not_asked(url: str):
    (found,) = fetch([url])
    assert found.kind == "address"


def test_a_foreign_file_cannot_ask_for_what_only_the_cluster_reaches(web: ImageServer):
    port = web.url.rpartition(":")[2]
    urls = [
        *(f"{web.url}/ok/1.jpg", f"http://localhost:{port}/ok/1.jpg"),
        *("http://169.254.169.254/latest", "http://[::1]/", "http://10.0.0.1/", "http://0.0.0.0/"),
        *("http://[::ffff:100.100.100.200]/", "http://[64:ff9b::a9fe:a9fe]/"),
        *("http://[2002:7f00:1::]/", f"http://①27.0.0.1:{port}/ok/1.jpg"),
    ]
    found = fetch(urls, private_hosts=False)
    assert {one.kind for one in found} == {"address"}
    assert "no public address" in found[0].reason
    assert not web.asked


def test_a_redirect_cannot_either(web: ImageServer, monkeypatch: pytest.MonkeyPatch):
    real = downloads._problem
    monkeypatch.setattr(
        downloads, "_problem", lambda url, private: real(url, str(url).startswith(web.url))
    )
    (found,) = fetch([f"{web.url}/inside/1.jpg"], private_hosts=False)
    assert (found.kind, found.reason) == ("address", "169.254.169.254 is no public address")


def test_a_host_that_wants_peace_for_long_gets_it(web: ImageServer):
    found = fetch([f"{web.url}/away/{i}.jpg" for i in range(40)], per_host=1)
    assert web.asked.total() == 1
    assert [one.kind for one in found] == ["status 429"] + ["busy"] * 39
    assert found[1].reason.startswith("127.0.0.1 wants nobody to ask for another ")


def test_a_look_up_that_fails_for_now_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def fail(host: str, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    (found,) = fetch(["http://images.example/1.jpg"])
    assert (found.kind, asked) == ("look-up", ["images.example"] * 3)


def test_large_ones_are_not_taken(web: ImageServer):
    (found,) = fetch([f"{web.url}/ok/1.jpg"], max_bytes=1000)
    assert (found.kind, found.reason) == ("size", "more than 1,000 bytes")


def test_limits_are_kept_and_shared_among_workers(web: ImageServer):
    fetch([f"{web.url}/ok/{i}.jpg" for i in range(20)], num_workers=2, requests_per_s=40)
    times_s = web.times_s
    assert times_s[-1] - times_s[0] > 0.9, "20 a second"
    assert web.most_in_flight <= 2


@pytest.mark.parametrize(
    "values, key",
    [
        ({"concurrency": 0}, "download.concurrency=0"),
        ({"per_host": 0}, "download.per_host=0"),
        ({"requests_per_s": -1.0}, r"download.requests_per_s=-1\.0"),
        ({"timeout_s": 0.0}, r"download.timeout_s=0\.0"),
    ],
)
def test_a_wrong_value_names_its_key(values, key: str):
    with pytest.raises(ConfigError, match=key):
        DownloadConfig(**values)


def test_waiting_for_a_turn_is_no_part_of_the_time_an_image_may_take():
    slow = ImageServer(IMAGES, seconds=0.3)
    try:
        found = fetch([f"{slow.url}/ok/{i}.jpg" for i in range(12)], per_host=2, timeout_s=0.8)
    finally:
        slow.end()
    assert {one.kind for one in found} == {""}, "twelve of them take 1.8 s"
    assert slow.most_in_flight == 2


def test_no_more_is_fetched_ahead_than_a_few_times_what_is_in_flight(web: ImageServer):
    config = DownloadConfig(private_hosts=True, concurrency=2)
    fetching = download([f"{web.url}/ok/{i}.jpg" for i in range(40)], config)
    next(fetching)
    time.sleep(1.0)
    assert web.asked.total() <= 10
    assert len(list(fetching)) == 39


def test_limits_allow_no_more_workers_than_they_can_be_shared_among():
    assert num_downloaders(DownloadConfig(per_host=4), 64) == 4
    assert num_downloaders(DownloadConfig(concurrency=2), 64) == 2
    assert num_downloaders(DownloadConfig(), 2) == 2
