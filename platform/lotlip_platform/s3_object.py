"""One S3 object as `ResumingReader` asks for it: which faults another attempt may mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import urllib3.exceptions
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.parsers import ResponseParserError

from lotlip_platform.s3_errors import TRANSIENT_CODES, Place, code_of, explained, meaning, status_of
from lotlip_platform.s3_reader import ChangedError, Interrupted, ObjectVersion

NETWORK_FAULTS = (
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    OSError,
)


@dataclass(frozen=True)
class S3Object:
    """One object as `ResumingReader` asks for it."""

    client: Any
    place: Place

    @property
    def uri(self) -> str:
        return self.place.uri

    def stat(self) -> ObjectVersion:
        with self._sorting_faults():
            head = self.client.head_object(Bucket=self.place.bucket, Key=self.place.key)
            if "ContentLength" not in head or "ETag" not in head:
                raise Interrupted("the server does not tell the object's size and ETag")
            return ObjectVersion(head["ContentLength"], head["ETag"])

    def open_at(self, position: int, version: ObjectVersion) -> S3Body:
        with self._sorting_faults():
            answer = self.client.get_object(
                Bucket=self.place.bucket,
                Key=self.place.key,
                Range=f"bytes={position}-",
                IfMatch=version.etag,
            )
        wanted = f"bytes {position}-{version.num_bytes - 1}/{version.num_bytes}"
        if answer.get("ContentRange") != wanted:
            answer["Body"].close()
            raise Interrupted(
                f"asked for {wanted!r}, the server sent {answer.get('ContentRange')!r}"
            )
        return S3Body(answer["Body"], self.place)

    @contextmanager
    def _sorting_faults(self) -> Iterator[None]:
        try:
            yield
        except NETWORK_FAULTS as error:
            raise Interrupted(meaning(error, self.place)) from error
        except ClientError as error:
            if (status_of(error) or 0) >= 500 or code_of(error) in TRANSIENT_CODES:
                raise Interrupted(meaning(error, self.place)) from error
            if status_of(error) == 404 and self._bucket_is_missing():
                missing = ClientError({"Error": {"Code": "NoSuchBucket"}}, "HeadBucket")
                raise explained(missing, self.place, "read") from error
            told = explained(error, self.place, "read")
            is_changed = status_of(error) in (412, 416)
            raise (ChangedError(str(told)) if is_changed else told) from error
        except BotoCoreError as error:
            raise explained(error, self.place, "read") from error

    def _bucket_is_missing(self) -> bool:
        # A HEAD answers 404 without saying whether the object or the bucket is missing.
        try:
            self.client.head_bucket(Bucket=self.place.bucket)
        except ClientError as error:
            return status_of(error) == 404
        except NETWORK_FAULTS:
            return False
        return False


@dataclass(frozen=True)
class S3Body:
    """The body of one response, with boto3's faults as `Interrupted`."""

    stream: Any
    place: Place

    def read(self, num_bytes: int) -> bytes:
        try:
            return self.stream.read(num_bytes)
        except NETWORK_FAULTS as error:
            raise Interrupted(meaning(error, self.place)) from error

    def close(self) -> None:
        self.stream.close()
