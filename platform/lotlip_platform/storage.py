"""Stores in S3 and in local folders, by address. The only module that imports boto3.

Endpoint, region and credentials come from boto3's own chain: AWS_ENDPOINT_URL, AWS_PROFILE, ...
"""

from __future__ import annotations

import io
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lotlip.data.store import FolderStore, Store, Version
from lotlip.errors import ConfigError, DataError
from lotlip_platform.s3_errors import (
    TRANSIENT_CODES,
    Place,
    code_of,
    endpoint_url,
    explained,
    status_of,
)
from lotlip_platform.s3_object import NETWORK_FAULTS, S3Object
from lotlip_platform.s3_reader import ResumingReader

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
CALL_ATTEMPTS = 5
OVERLOADED_ATTEMPTS = 10
"""Where the server is there, but says that it has too much to do: that passes."""
OVERLOADED_PAUSE_S = 4.0
POOL_CONNECTIONS = 32
BUFFER_BYTES = 256 * 1024
CALL_FAULTS = (*NETWORK_FAULTS, BotoCoreError, ClientError, Boto3Error)


def open_store(uri: str) -> Store:
    """The store at `s3://bucket/prefix`, `file:///folder` or a local path. Raises: ConfigError."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if scheme is None:
        if not uri or uri.startswith("s3:"):
            raise ConfigError(f"{uri!r} is not a place: write s3://BUCKET/PREFIX or a local path")
        return FolderStore(uri)
    if scheme[1] == "s3":
        return S3Store(*_split(uri))
    if scheme[1] == "file":
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigError(f"{uri!r} is not a place on this machine: write file:///FOLDER")
        return FolderStore(unquote(parts.path))
    raise ConfigError(f"{uri!r}: no {scheme[1]}:// here; write s3://BUCKET/PREFIX or a local path")


def ensure_bucket(uri: str) -> None:
    """Create the bucket of an S3 address if it is missing. Raises: DataError, ConfigError."""
    bucket, _ = _split(uri)
    client = _Clients(READ_TIMEOUT_S).get(Place(bucket), attempts=CALL_ATTEMPTS)
    region = client.meta.region_name
    options: dict[str, Any] = {}
    if region not in (None, "us-east-1", "aws-global"):
        options = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with _explaining(Place(bucket), "create"):
        try:
            client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if code_of(error) not in ("404", "NoSuchBucket"):
                raise
            _create_bucket(client, bucket, options)


class S3Store:
    """A `Store` below a prefix of a bucket, for several threads, forks and pickling."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
        clients: _Clients | None = None,
    ) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self._clients = clients or _Clients(read_timeout_s)

    def __reduce__(self) -> tuple[Callable[..., S3Store], tuple[str, str, float]]:
        return _restore, (self.bucket, self.prefix, self._clients.read_timeout_s)

    @property
    def uri(self) -> str:
        return Place(self.bucket, self.prefix).uri

    @property
    def num_faults(self) -> int:
        return self._clients.num_faults

    def open(
        self, name: str, *, num_bytes: int | None = None, tag: str = "", start: int = 0
    ) -> BinaryIO:
        place = self._place(name)
        # The reader retries by itself, from where it stands.
        client = self._clients.get(place, attempts=1)
        source = S3Object(client, place)
        reader = ResumingReader(
            source, num_bytes=num_bytes, etag=tag, start=start, on_fault=self._clients.count_fault
        )
        return cast(BinaryIO, io.BufferedReader(reader, BUFFER_BYTES))

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        with self._call(name, "write") as (client, place):
            client.put_object(Bucket=place.bucket, Key=place.key, Body=data)

    def write_file(self, name: str, path: Path) -> None:
        if not Path(path).is_file():
            raise DataError(f"{path} does not exist: nothing to write to {self._place(name).uri}")
        with self._call(name, "write") as (client, place):
            client.upload_file(str(path), place.bucket, place.key)

    def list(self, prefix: str = "") -> list[str]:
        return list(self.versions(prefix))

    def versions(self, prefix: str = "") -> dict[str, Version]:
        base = f"{self.prefix}/" if self.prefix else ""
        place = Place(self.bucket, base + prefix)
        client = self._clients.get(place, attempts=CALL_ATTEMPTS)
        found: dict[str, Version] = {}
        with _explaining(place, "list"):
            pages = client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=place.bucket, Prefix=place.key):
                for entry in page.get("Contents", ()):
                    name = entry["Key"][len(base) :]
                    if name and not name.endswith("/"):  # the folders that web consoles draw
                        found[name] = Version(entry["Size"], entry["ETag"])
        return dict(sorted(found.items()))

    def version(self, name: str) -> Version:
        with self._call(name, "look up") as (client, place):
            answer = client.head_object(Bucket=place.bucket, Key=place.key)
        return Version(answer["ContentLength"], answer["ETag"])

    def exists(self, name: str) -> bool:
        with self._call(name, "look up") as (client, place):
            try:
                client.head_object(Bucket=place.bucket, Key=place.key)
            except ClientError as error:
                if status_of(error) != 404:
                    raise
                # An answer to HEAD has no body: only a listing tells a missing bucket.
                client.list_objects_v2(Bucket=place.bucket, Prefix=place.key, MaxKeys=1)
                return False
            return True

    def age_s(self, name: str) -> float:
        with self._call(name, "look up") as (client, place):
            answer = client.head_object(Bucket=place.bucket, Key=place.key)
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return (now - answer["LastModified"]).total_seconds()

    def delete(self, name: str) -> None:
        with self._call(name, "delete") as (client, place):
            client.delete_object(Bucket=place.bucket, Key=place.key)

    def at(self, folder: str) -> S3Store:
        return S3Store(self.bucket, self._place(folder).key, clients=self._clients)

    def _place(self, name: str) -> Place:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts:
            raise DataError(f"{name!r} is not a name inside {self.uri}")
        return Place(self.bucket, f"{self.prefix}/{name}" if self.prefix else name)

    @contextmanager
    def _call(self, name: str, verb: str) -> Iterator[tuple[Any, Place]]:
        place = self._place(name)
        client = self._clients.get(place, attempts=CALL_ATTEMPTS)
        with _explaining(place, verb):
            yield client, place


def _restore(bucket: str, prefix: str, read_timeout_s: float) -> S3Store:
    return S3Store(bucket, prefix, read_timeout_s=read_timeout_s)


class _Clients:
    """The boto3 clients of this process, made when first used and made anew after a fork."""

    def __init__(self, read_timeout_s: float) -> None:
        self.read_timeout_s = read_timeout_s
        self.num_faults = 0
        self._own: tuple[int, threading.Lock, dict[int, Any]] = (os.getpid(), threading.Lock(), {})

    def count_fault(self) -> None:
        self.num_faults += 1  # by several threads at once it may be one too few

    def get(self, place: Place, *, attempts: int) -> Any:
        """A client that tries each call `attempts` times. Raises: DataError."""
        if self._own[0] != os.getpid():
            # A lock taken by a thread that the fork left behind would never be released.
            self._own = (os.getpid(), threading.Lock(), {})
        _, lock, clients = self._own
        with lock:
            if attempts not in clients:
                clients[attempts] = self._make(place, attempts)
            return clients[attempts]

    def _make(self, place: Place, attempts: int) -> Any:
        options: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": self.read_timeout_s,
            "retries": {"mode": "standard", "total_max_attempts": attempts},
            "max_pool_connections": POOL_CONNECTIONS,
        }
        endpoint = endpoint_url()
        if endpoint and not _is_aws(endpoint):
            options["s3"] = {"addressing_style": "path"}
            # Other stores refuse or misread the checksums that boto3 adds by default.
            for key in ("request_checksum_calculation", "response_checksum_validation"):
                if f"AWS_{key.upper()}" not in os.environ:
                    options[key] = "when_required"
        try:
            client = boto3.Session().client("s3", config=Config(**options))
        except (BotoCoreError, ValueError) as error:
            raise explained(error, place, "reach") from error
        if attempts > 1:
            client.meta.events.register("needs-retry.s3", self._pause_if_overloaded)
        return client

    def _pause_if_overloaded(self, response: Any, attempts: int, **_: Any) -> float | None:
        """Seconds until another attempt, if boto3 itself would make none."""
        error = ClientError(response[1] if response else {}, "")
        is_overloaded = (status_of(error) or 0) >= 500 or code_of(error) in TRANSIENT_CODES
        if is_overloaded or response is None:
            self.count_fault()
        if is_overloaded and attempts < OVERLOADED_ATTEMPTS:
            return OVERLOADED_PAUSE_S * random.uniform(0.5, 1.0)
        return None


@contextmanager
def _explaining(place: Place, verb: str) -> Iterator[None]:
    try:
        yield
    except CALL_FAULTS as error:
        # upload_file hides S3's answer behind an error of its own.
        cause = error.__context__ if isinstance(error, Boto3Error) else None
        raise explained(cause or error, place, verb) from error


def _create_bucket(client: Any, bucket: str, options: dict[str, Any]) -> None:
    try:
        client.create_bucket(Bucket=bucket, **options)
    except ClientError as error:
        if code_of(error) not in ("BucketAlreadyOwnedByYou", "OperationAborted"):
            raise


def _split(uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise ConfigError(f"{uri!r} is not an S3 address: write s3://BUCKET/PREFIX")
    return bucket, prefix


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
