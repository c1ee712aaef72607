from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import random
import socket
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError, DataError
from lotlip_platform import s3_reader, storage
from lotlip_platform.s3_object import S3Object
from lotlip_platform.s3_reader import ObjectVersion
from lotlip_platform.storage import S3Store, ensure_bucket, open_store

DATA = random.Random(0).randbytes(700_000)


@pytest.fixture
def store(s3_env: str, tmp_path: Path) -> S3Store:
    uri = f"s3://shards/{tmp_path.name}"
    ensure_bucket(uri)
    store = open_store(uri)
    assert isinstance(store, S3Store)
    return store


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_reader, "LONGEST_PAUSE_S", 0.01)


def first_reads(*faults: str | None, command: str = "GET"):
    left = list(faults)
    return lambda method, path: left.pop(0) if method == command and left else None


def test_an_address_tells_which_store_it_names(tmp_path: Path) -> None:
    s3 = open_store("s3://bucket/some/prefix/")
    assert isinstance(s3, S3Store)
    assert (s3.uri, s3.at("train").uri) == (
        "s3://bucket/some/prefix",
        "s3://bucket/some/prefix/train",
    )
    assert open_store("s3://bucket").uri == "s3://bucket"
    assert isinstance(open_store(str(tmp_path)), FolderStore)
    assert open_store(f"file://{tmp_path}").uri == str(tmp_path)


@pytest.mark.parametrize("uri", ["gs://b/x", "http://h/x", "s3://", "s3:/b/x", "", "file://host/x"])
def test_an_address_of_another_kind_is_a_config_error(uri: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_store(uri)
    assert "\n" not in str(error.value)


def test_objects_can_be_written_listed_read_and_deleted(store: S3Store, tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(DATA * 14)  # above the multipart limit of 8 MiB
    store.write("a/1 ü.tar", b"one")
    store.write_file("a/large.bin", file)
    store.write("empty", b"")
    store.at("a").write("folder/2.tar", b"two")
    assert store.list() == ["a/1 ü.tar", "a/folder/2.tar", "a/large.bin", "empty"]
    assert store.at("a").list("fol") == ["folder/2.tar"]
    assert store.read("a/large.bin") == DATA * 14
    assert store.read("empty") == b""
    assert store.exists("empty")
    store.delete("empty")
    store.delete("empty")
    assert not store.exists("empty")


def test_the_version_of_one_object_is_that_of_the_listing(store: S3Store, tmp_path: Path) -> None:
    for place in (store, FolderStore(tmp_path)):
        place.write("a/b", b"123")
        assert place.version("a/b") == place.versions()["a/b"]
        with pytest.raises(DataError, match="a/c"):
            place.version("a/c")


def test_a_listing_of_many_pages_is_complete(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    names = [f"{number:04d}" for number in range(12)]
    for name in names:
        store.write(name, b"")
    assert store.list() == names


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../other"])
def test_a_name_outside_the_store_is_refused(store: S3Store, name: str) -> None:
    with pytest.raises(DataError, match="is not a name inside"):
        store.read(name)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_store_survives_pickling_and_a_fork(store: S3Store) -> None:
    store.write("x", b"data")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"data"  # noqa: S301
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: queue.put((os.getpid(), store.read("x")))
    )
    child.start()
    child.join(30)
    assert queue.get() == (child.pid, b"data")
    assert b"lotlip" not in pickle.dumps(S3Store("bucket")).replace(b"lotlip_platform", b"")


def test_an_unexpected_size_is_an_error(store: S3Store) -> None:
    store.write("x", DATA)
    store.open("x", num_bytes=len(DATA)).close()
    with pytest.raises(DataError, match=r"s3://shards/.*/x has 700000 bytes, expected 700001"):
        store.open("x", num_bytes=len(DATA) + 1)


def test_a_read_from_the_middle_is_resumed_as_well(
    store: S3Store, faulty, short_pauses: None
) -> None:
    store.write("x", DATA)
    faulty(first_reads("reset", "truncate"))
    with open_store(store.uri).open("x", num_bytes=len(DATA), start=300_001) as file:
        assert file.read() == DATA[300_001:]


@pytest.mark.parametrize(
    "faults",
    [
        ["reset"],
        ["truncate", "reset", "truncate"],
        ["503", "503", "503"],
        ["no_length"],
        ["no_length_cut", "no_length_cut"],
        ["short_length", "short_length"],
    ],
    ids=str,
)
def test_a_broken_read_is_resumed_to_the_exact_bytes(
    store: S3Store, faulty, short_pauses: None, faults: list[str]
) -> None:
    store.write("x", DATA)
    proxy = faulty(first_reads(*faults))
    reading = open_store(store.uri)
    assert reading.read("x") == DATA
    assert proxy.faults == faults
    assert reading.num_faults == len([fault for fault in faults if fault != "no_length"])


def test_a_hanging_server_is_left_and_asked_again(store: S3Store, faulty) -> None:
    store.write("x", DATA)
    proxy = faulty(first_reads("hang"))
    proxy.hang_s = 60.0
    start = time.monotonic()
    assert S3Store(store.bucket, store.prefix, read_timeout_s=0.5).read("x") == DATA
    assert proxy.faults == ["hang"]
    assert time.monotonic() - start < 10


def test_many_faults_at_once_lose_no_byte(store: S3Store, faulty, short_pauses: None) -> None:
    kinds = ("reset", "truncate", "no_length_cut", "short_length", "no_length", "503")
    draw = random.Random(1)
    store.write("x", DATA)

    def choose(method: str, path: str) -> str | None:
        if draw.random() < 0.6:
            return None
        return draw.choice(kinds) if method == "GET" else "503"

    proxy = faulty(choose)
    for _ in range(20):
        assert open_store(store.uri).read("x") == DATA
    assert len(proxy.faults) > 20


def test_a_tar_streams_completely_through_faults(
    store: S3Store, faulty, short_pauses: None
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(200):
            member = tarfile.TarInfo(f"{number}.bin")
            member.size = 3000
            tar.addfile(member, io.BytesIO(DATA[number : number + 3000]))
    store.write("x.tar", buffer.getvalue())
    faulty(first_reads("no_length_cut", "reset", "truncate"))
    with (
        open_store(store.uri).open("x.tar") as file,
        tarfile.open(fileobj=file, mode="r|") as tar,
    ):
        assert [member.name for member in tar] == [f"{number}.bin" for number in range(200)]


def test_an_object_changed_under_the_reader_is_an_error(
    store: S3Store, faulty, short_pauses: None
) -> None:
    store.write("x", DATA)
    faulty(first_reads("truncate"))
    with open_store(store.uri).open("x") as file:
        file.read(1000)
        store.write("x", DATA[::-1])
        with pytest.raises(DataError, match="changed while it was in use"):
            file.read()


def test_more_bytes_than_promised_are_an_error(store: S3Store, faulty, short_pauses: None) -> None:
    store.write("x", DATA)
    faulty(first_reads("surplus"))
    with pytest.raises(DataError, match="goes on after its 700000 bytes"):
        open_store(store.uri).read("x")


def test_a_size_that_the_server_understates_is_never_believed(
    store: S3Store, faulty, short_pauses: None
) -> None:
    store.write("x", DATA)
    faulty(lambda method, path: "short_length" if method == "HEAD" else None)
    with pytest.raises(DataError, match=r"cannot read s3://shards/.*/x on from byte 0"):
        open_store(store.uri).read("x")


@pytest.mark.parametrize("num_bytes", [None, 700_000])
def test_a_size_that_was_understated_once_is_asked_for_again(
    store: S3Store, faulty, short_pauses: None, num_bytes: int | None
) -> None:
    store.write("a.tar", DATA)
    proxy = faulty(first_reads("short_length", command="HEAD"))
    with store.open("a.tar", num_bytes=num_bytes) as file:
        assert file.read() == DATA
    assert proxy.faults == ["short_length"]


def test_an_overloaded_server_gets_more_time_than_one_that_is_not_there(
    store: S3Store, faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("x", DATA)
    monkeypatch.setattr(storage, "CALL_ATTEMPTS", 2)
    monkeypatch.setattr(storage, "OVERLOADED_PAUSE_S", 0.01)
    proxy = faulty(first_reads(*["503"] * 7, command="HEAD"))
    assert open_store(store.uri).exists("x")
    assert proxy.faults == ["503"] * 7
    proxy.choose = first_reads(*["503"] * 99, command="HEAD")
    with pytest.raises(DataError, match=r"cannot look up .*/x: the endpoint .* is overloaded"):
        open_store(store.uri).exists("x")
    assert len(proxy.faults) == 7 + storage.OVERLOADED_ATTEMPTS


def test_a_server_that_never_recovers_ends_in_one_line(
    store: S3Store, faulty, short_pauses: None
) -> None:
    store.write("x", DATA)
    # The first body breaks in the middle; from then on there is none.
    left = ["truncate"]
    proxy = faulty(lambda m, p: (left.pop() if left else "503") if m == "GET" else None)
    with pytest.raises(DataError) as error, open_store(store.uri).open("x") as file:
        file.read()
    text = str(error.value)
    assert f"{store.uri}/x on from byte " in text
    assert "byte 0:" not in text
    assert "is overloaded (503)" in text
    assert "8 attempts" in text
    assert "\n" not in text
    assert len(proxy.faults) == 8


@pytest.mark.parametrize("act", ["open", "read", "exists", "list", "write", "delete"])
def test_an_unreachable_endpoint_is_named(
    store: S3Store, act: str, short_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setattr("lotlip_platform.storage.CALL_ATTEMPTS", 1)
        arguments = {"list": (), "write": ("x", b"")}.get(act, ("x",))
        with pytest.raises(DataError, match=f"no answer from the endpoint {url}"):
            getattr(open_store(store.uri), act)(*arguments)


def test_a_missing_object_and_a_missing_bucket_are_told_apart(store: S3Store) -> None:
    with pytest.raises(DataError, match=r"/no: the object does not exist"):
        store.open("no")
    nowhere = open_store("s3://no-such-bucket/x")
    for act in (lambda: nowhere.read("x"), nowhere.list, lambda: nowhere.write("x", b"")):
        with pytest.raises(DataError, match="bucket 'no-such-bucket' does not exist at http"):
            act()


def test_writing_a_file_to_a_missing_bucket_says_so(s3_env: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match="bucket 'no-such-bucket' does not exist"):
        open_store("s3://no-such-bucket").write_file("x", tmp_path / "file")
    with pytest.raises(DataError, match="does not exist: nothing to write"):
        open_store("s3://no-such-bucket").write_file("x", tmp_path / "missing")


def test_missing_credentials_are_named(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match="no credentials found: set AWS_ACCESS_KEY_ID"):
        open_store(store.uri).read("x")


@pytest.mark.parametrize(
    "variable, value, match",
    [
        ("AWS_PROFILE", "no-such-profile", "AWS_PROFILE names a profile that does not exist"),
        ("AWS_ENDPOINT_URL", "not a url", "AWS_ENDPOINT_URL"),
    ],
)
def test_unusable_settings_are_named(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, match: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(DataError, match=match) as error:
        open_store(store.uri).list()
    assert "\n" not in str(error.value)


def test_ensure_bucket_twice_is_fine(s3_env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    ensure_bucket("s3://new-bucket/some/where")
    ensure_bucket("s3://new-bucket")
    assert open_store("s3://new-bucket").list() == []


def test_many_threads_share_a_store(store: S3Store) -> None:
    for number in range(8):
        store.write(str(number), DATA[number:])
    shared = open_store(store.uri)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(shared.read, [str(number) for number in range(8)]))
    assert read == [DATA[number:] for number in range(8)]


@pytest.mark.parametrize("content", [b"longer than it was", b"s"])
def test_an_object_that_is_rewritten_while_it_is_looked_up_is_read_as_it_is_now(
    store: S3Store, short_pauses: None, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    store.write("state", b"before")
    open_at, times = S3Object.open_at, []

    def rewritten(self: S3Object, position: int, version: ObjectVersion) -> Any:
        if not times:
            times.append(1)
            store.write("state", content)
        return open_at(self, position, version)

    monkeypatch.setattr(S3Object, "open_at", rewritten)
    assert open_store(store.uri).read("state") == content


def test_the_age_of_an_object_is_told_by_the_stores_clock(store: S3Store, tmp_path: Path) -> None:
    for place in (store, FolderStore(tmp_path)):
        place.write("a", b"1")
        assert -1 <= place.age_s("a") < 5
        with pytest.raises(DataError):
            place.age_s("b")
