"""Published captions and their images, made a data set of, on a real local Ray."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from image_server import ImageServer
from PIL import Image
from webdataset.writer import TarWriter

from lotlip.configuration import from_dict
from lotlip.data.manifest import read_manifest
from lotlip.data.sample import Sample
from lotlip.data.scenes import make_sample
from lotlip.data.shards import read_samples
from lotlip.data.store import FolderStore
from lotlip.errors import ClusterError, ConfigError, DataError
from lotlip_platform import ingest as ingesting
from lotlip_platform.dataset_checks import check
from lotlip_platform.ingest import Ingested, ingest
from lotlip_platform.ingest_config import IngestConfig
from lotlip_platform.ownership import owned
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.shard_ledger import ShardLedger
from lotlip_platform.storage import ensure_bucket, open_store

HEADER = ["image", "raw", "sIB", "lIB", "sSV", "lSV", "sLLA", "lLLA"]
NUM_ROWS = 50


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def write_csv(path: Path, images: list[str]) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(HEADER)
        for number, image in enumerate(images):
            rows.writerow([image, f"alt {number}", *(f"{c} {number}" for c in "abcdef")])
    return path


def config_of(folder: Path, caption_files: Path, place: str, **values: Any) -> IngestConfig:
    given = {
        "format": "dreamlip-csv",
        "source": str(caption_files),
        "images": place,
        "target": str(folder / "target"),
        "shard_size": 20,
        **values,
    }
    return from_dict(IngestConfig, given)


def quiet(counts: Mapping[str, Any]) -> None:
    pass


def samples_of(config: IngestConfig) -> list[Sample]:
    assert check(config.target, lambda *_: None).problems == []
    store = open_store(config.target)
    return list(read_samples(store, read_manifest(store)))


def rejected(result: Ingested) -> dict[int, tuple[str, str]]:
    store = open_store(result.rejected)
    lines = [line for name in store.list() for line in store.read(name).splitlines()]
    records = [json.loads(line) for line in lines]
    return {record["row"]: (record["kind"], record["reason"]) for record in records}


def make_images(folder: Path) -> list[str]:
    """Files of all kinds, and some that are none; their names as rows have them."""
    folder.mkdir(parents=True)
    names = [f"{i:03d}.jpg" for i in range(NUM_ROWS)]
    for i, name in enumerate(names):
        content = make_sample(0, i).image
        if i == 7:
            continue
        if i == 9:
            content = content[: len(content) // 2]
        if i in (11, 12):
            buffer = io.BytesIO()
            Image.open(io.BytesIO(content)).save(buffer, "GIF" if i == 11 else "PNG")
            content = buffer.getvalue()
        (folder / name).write_bytes(content)
    return names


def test_rows_and_files_become_samples_or_are_rejected_with_the_reason(tmp_path: Path):
    names = make_images(tmp_path / "images" / "cc")
    source = write_csv(tmp_path / "a.csv", [f"old/place/cc/{name}" for name in names])
    with source.open("a") as file:
        file.write("bad,row\n")
        for odd in ("../../etc/passwd", "old/place/", "a\0b.jpg", "x" * 300, "http://[x]/1.jpg"):
            file.write(f"{odd},a,b,c,d,e,f,g\n")
    config = config_of(
        tmp_path,
        source,
        str(tmp_path / "images"),
        strip="old/place/",
        origin="cc3m",
        licence="some",
    )
    told: list[Mapping[str, Any]] = []
    result = ingest(config, told.append)
    assert (result.num_rows, result.num_written, result.num_rejected) == (56, 48, 8)
    assert told[-1] == {"rows": 56, "written": 48, "rejected": 8}
    assert result.reasons == {"image": 1, "missing": 2, "path": 4, "row": 1}
    found = rejected(result)
    assert found[7] == ("missing", f"{tmp_path / 'images'} has no cc/007.jpg")
    assert found[9][0] == "image"
    assert found[50] == ("row", "2 columns where there should be 8")
    samples = samples_of(config)
    assert [int(s.key) for s in samples] == [i for i in range(50) if i not in (7, 9)]
    first = samples[0]
    image = make_sample(0, 0).image
    assert first.image == image
    assert (first.short, first.source, first.licence) == ("alt 0", "cc3m", "some")
    assert first.long == {"instructblip": "b 0", "sharegpt4v": "d 0", "llava": "f 0"}
    assert first.extra["image"] == "old/place/cc/000.jpg"
    assert first.extra["sha256"] == hashlib.sha256(image).hexdigest()
    kinds = {int(s.key): s.image_suffix for s in samples}
    assert (kinds[10], kinds[11], kinds[12]) == ("jpg", "jpg", "png"), "GIFs are made JPEGs"
    manifest = read_manifest(open_store(config.target))
    assert [shard.num_samples for shard in manifest.shards] == [18, 20, 10]
    assert manifest.made_by["rejected"] == result.reasons
    assert manifest.captions["long.llava"]["num"] == 48


def test_addresses_are_fetched_and_dead_ones_reported(tmp_path: Path, s3_env: str):
    ensure_bucket("s3://ingest")
    images = {f"{i}.jpg": make_sample(0, i).image for i in range(30)}
    web = ImageServer(images)
    try:
        rows = [
            {
                "url": f"{web.url}/{'gone' if i == 3 else 'page' if i == 5 else 'ok'}/{i}.jpg",
                "text": f"A long caption {i}.",
                "hash": {4: "00", 5: ""}.get(i, hashlib.sha256(images[f"{i}.jpg"]).hexdigest()),
            }
            for i in range(30)
        ]
        source = tmp_path / "a.jsonl"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        config = config_of(
            tmp_path,
            source,
            "url",
            format="jsonl",
            target="s3://ingest/web",
            columns={"image": "url", "long.mine": "text", "sha256": "hash"},
            download={"private_hosts": True},
            longest_side_px=32,
        )
        result = ingest(config, quiet)
    finally:
        web.end()
    assert (result.num_rows, result.num_written) == (30, 27)
    assert result.reasons == {"checksum": 1, "image": 1, "status 404": 1}
    assert rejected(result)[4][1].endswith("the row says 00")
    assert result.hosts == {"127.0.0.1": 3}
    samples = samples_of(config)
    assert max(Image.open(io.BytesIO(samples[0].image)).size) == 32
    assert samples[0].extra["sha256"] == hashlib.sha256(images["0.jpg"]).hexdigest()
    assert web.asked.total() == 30


def test_an_outage_rejects_nothing(tmp_path: Path, dead_url: str):
    source = write_csv(tmp_path / "a.csv", [f"{dead_url}/{i}.jpg" for i in range(30)])
    limits = {"private_hosts": True, "max_attempts": 1, "per_host": 30}
    config = config_of(tmp_path, source, "url", download=limits, shard_size=30)
    with pytest.raises(ClusterError, match=r"none of 30 hosts could be reached .* same command"):
        ingest(config, quiet)
    assert not ShardLedger(FolderStore(tmp_path / "target.ingest")).entries()


def make_tars(folder: Path) -> None:
    folder.mkdir()
    for tar in range(3):
        with TarWriter(str(folder / f"{tar:05d}.tar")) as writer:
            for i in range(tar * 10, tar * 10 + 10):
                about = json.dumps({"url": f"http://x/{i}"}).encode()
                image = make_sample(0, i).image
                writer.write({"__key__": f"{i:05d}", "jpg": image, "json": about})
            writer.write({"__key__": "everywhere", "jpg": make_sample(0, 99).image})
            writer.write({"__key__": f"text-{tar}", "txt": b"no image"})
    bitmap = io.BytesIO()
    Image.open(io.BytesIO(make_sample(0, 98).image)).save(bitmap, "BMP")
    with tarfile.open(folder / "00003.tar", "w", encoding="latin-1") as old:
        for name, content in {"bitmap.bmp": bitmap.getvalue(), "château.jpg": b"\xff"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            old.addfile(member, io.BytesIO(content))


def test_images_in_tars_are_joined_by_name_or_address(tmp_path: Path):
    make_tars(tmp_path / "tars")
    order = [(7 * i) % 40 for i in range(40)]  # ten of them are in no tar
    names = [f"cc/{i:05d}.jpg" if i % 2 else f"http://x/{i}" for i in order]
    names += [names[0], "everywhere.jpg", "bitmap.bmp"]
    source = write_csv(tmp_path / "a.csv", names)
    with source.open("a") as file:
        file.write("bad,row\n")
    config = config_of(tmp_path, source, str(tmp_path / "tars" / "*.tar"), shard_size=4)
    result = ingest(config, quiet)
    assert (result.num_rows, result.num_written, result.num_rejected) == (44, 31, 13)
    assert result.reasons == {"double": 1, "missing": 10, "row": 1, "several": 1}
    lines = open_store(result.rejected).read("without-000000.jsonl").splitlines()
    assert {json.loads(line).get("host") for line in lines} == {None, "x"}
    for sample in samples_of(config):
        row = int(sample.key)
        if row == 42:
            assert sample.image_suffix == "jpg", "made of a bitmap"
            continue
        assert sample.image == make_sample(0, order[row]).image
        assert sample.short == f"alt {row}"
    sizes = [shard.num_samples for shard in read_manifest(open_store(config.target)).shards]
    assert sizes == [*[4, 4, 2] * 3, 1]


def test_a_damaged_tar_ends_it_in_one_line(tmp_path: Path):
    make_tars(tmp_path / "tars")
    whole = (tmp_path / "tars" / "00001.tar").read_bytes()
    (tmp_path / "tars" / "00001.tar").write_bytes(whole[: len(whole) // 2])
    source = write_csv(tmp_path / "a.csv", ["00001.jpg"])
    config = config_of(tmp_path, source, str(tmp_path / "tars" / "*.tar"))
    with pytest.raises(DataError, match=r"00001\.tar is damaged: .*; fetch it again") as error:
        ingest(config, quiet)
    assert "\n" not in str(error.value)


def test_what_is_done_is_not_done_again(tmp_path: Path):
    images = {f"{i}.jpg": make_sample(0, i).image for i in range(60)}
    web = ImageServer(images)
    try:
        source = write_csv(tmp_path / "a.csv", [f"{web.url}/ok/{i}.jpg" for i in range(60)])
        config = config_of(tmp_path, source, "url", download={"private_hosts": True})

        def stop(counts: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ingest(config, stop)
        assert not (tmp_path / "target" / "manifest.json").exists()
        entries = ShardLedger(FolderStore(tmp_path / "target.ingest")).entries()
        assert entries
        result = ingest(config, quiet)
        assert result.num_written == 60
        for shard in entries:
            first = 20 * int(shard.removeprefix("shard-").removesuffix(".tar"))
            assert {web.asked[f"/ok/{i}.jpg"] for i in range(first, first + 20)} == {1}
        digest, asked = result.digest, web.asked.total()
        assert ingest(config, quiet) == result
        assert web.asked.total() == asked
    finally:
        web.end()
    images_again = tmp_path / "again"
    images_again.mkdir()
    for name, content in images.items():
        (images_again / name).write_bytes(content)
    other = config_of(
        tmp_path, source, str(images_again), strip=f"{web.url}/ok/", target=str(tmp_path / "two")
    )
    assert ingest(other, quiet).digest == digest, "the same bytes, wherever images come from"


def test_a_task_that_dies_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = make_images(tmp_path / "images")
    source = write_csv(tmp_path / "a.csv", names)
    config = config_of(tmp_path, source, str(tmp_path / "images"))
    marker = tmp_path / "died"
    real = ingesting._write

    def die_once(*arguments: Any) -> Any:
        import os
        import signal

        if not marker.exists():
            marker.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    monkeypatch.setattr(ingesting, "_write", die_once)
    assert ingest(config, quiet).num_written == 48
    assert marker.exists()


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"source": "/nowhere/a.csv"}, DataError, "/nowhere/a.csv does not exist"),
        ({"source": "/nowhere"}, DataError, "source=/nowhere does not exist"),
        ({"target": "s3://bucket"}, ConfigError, "target=s3://bucket must have a prefix"),
        ({"images": "/nowhere"}, DataError, "images=/nowhere: there is no such folder"),
        ({"images": "/nowhere/*.tar"}, DataError, "there is no such folder"),
        ({"format": "recap-csv"}, DataError, "is no recap-csv: 8 columns"),
        (
            {"format": "csv", "columns": {"image": "i", "short": "raw"}},
            ConfigError,
            "no column 'i'",
        ),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, change: Any, error: Any, text: str):
    (tmp_path / "images").mkdir()
    source = write_csv(tmp_path / "a.csv", ["1.jpg", "2.jpg"])
    config = config_of(tmp_path, source, str(tmp_path / "images"), **change)
    with pytest.raises(error, match=text) as raised:
        ingest(config, quiet)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "target" / "manifest.json").exists()


def test_another_ingest_at_the_same_place_is_refused(tmp_path: Path):
    names = make_images(tmp_path / "images")
    source = write_csv(tmp_path / "a.csv", names)
    config = config_of(tmp_path, source, str(tmp_path / "images"))
    work = FolderStore(tmp_path / "target.ingest")
    with owned(RunFolder(work)), pytest.raises(ConfigError, match="is being worked on"):
        ingest(dataclasses.replace(config, shard_size=30), quiet)
    assert not work.exists("config.json"), "or the first one could not go on"
    ingest(config, quiet)
    with pytest.raises(ConfigError, match="holds an ingest with another shard_size=20"):
        ingest(dataclasses.replace(config, shard_size=30), quiet)
    with source.open("a") as file:
        file.write("more.jpg,a,b,c,d,e,f,g\n")
    with pytest.raises(ConfigError, match=r"holds an ingest with another inputs\.files\.a\.csv="):
        ingest(config, quiet)
    write_csv(source, names)
    manifest = tmp_path / "target" / "manifest.json"
    manifest.rename(tmp_path / "gone")
    with pytest.raises(DataError, match="is no longer what"):
        ingest(config, quiet)
    (tmp_path / "gone").rename(manifest)
    for name in FolderStore(tmp_path / "target.ingest").list():
        (tmp_path / "target.ingest" / name).unlink()
    with pytest.raises(DataError, match="holds another data set"):
        ingest(config, quiet)


@pytest.mark.parametrize(
    "values, text",
    [
        ({"columns": {"image": "a", "short": "b"}}, "columns of format dreamlip-csv are known"),
        ({"format": "csv"}, "columns of format csv must be told"),
        ({"format": "excel"}, "format='excel' must be one of dreamlip-csv"),
        ({"shard_size": 0}, "shard_size=0"),
        ({"longest_side_px": -1}, "longest_side_px=-1"),
    ],
)
def test_a_wrong_value_names_its_key(tmp_path: Path, values: Any, text: str):
    with pytest.raises(ConfigError, match=text):
        config_of(tmp_path, tmp_path / "a.csv", "url", **values)
