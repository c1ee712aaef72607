"""What boto3's errors mean to a user: one line that says what is wrong, where, and what to do.

Errors are told apart by S3's error code or, without one, by the name of their class.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from lotlip.errors import DataError

TRANSIENT_CODES = frozenset(
    {
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestTimeout",
        "RequestTimeTooSlow",
        "TooManyRequests",
        "429",
    }
)
ENVIRONMENT_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REFUSED = f"credentials refused ({{code}}): check {ENVIRONMENT_KEYS} and their rights"
_UNREACHABLE = "no answer from the endpoint {endpoint}: is it running, is AWS_ENDPOINT_URL right?"
_OVERLOADED = "the endpoint {endpoint} is overloaded ({code}): try again later"
_EXPIRED = "the session token has expired: log in again, then renew AWS_SESSION_TOKEN"
_MEANINGS = {
    "NoSuchBucket": "bucket {bucket!r} does not exist at {endpoint}: create it or check the name",
    "InvalidBucketName": "{bucket!r} is not a valid bucket name: check the name",
    "NoSuchKey": "the object does not exist: check the name",
    "404": "the object does not exist: check the name",
    "412": "the object was changed while it was in use: start again",
    "PreconditionFailed": "the object was changed while it was in use: start again",
    "416": "the object was changed while it was in use: start again",
    "InvalidRange": "the object was changed while it was in use: start again",
    "403": _REFUSED,
    "AccessDenied": _REFUSED,
    "InvalidAccessKeyId": _REFUSED,
    "SignatureDoesNotMatch": _REFUSED,
    "InvalidToken": _REFUSED,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "400": "request refused, perhaps an expired session token or a wrong region: log in again",
    "QuotaExceeded": "the store's quota is used up: free some space or raise the quota",
    "503": _OVERLOADED,
    "SlowDown": _OVERLOADED,
    "ServiceUnavailable": _OVERLOADED,
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "301": "the bucket lies in another region: set AWS_DEFAULT_REGION",
    "PermanentRedirect": "the bucket lies in another region: set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket lies in another region: set AWS_DEFAULT_REGION",
    "NoCredentialsError": f"no credentials found: set {ENVIRONMENT_KEYS} (or AWS_PROFILE)",
    "PartialCredentialsError": f"incomplete credentials: set both {ENVIRONMENT_KEYS}",
    "ProfileNotFound": "AWS_PROFILE names a profile that does not exist: correct or unset it",
    "EndpointConnectionError": _UNREACHABLE,
    "ConnectTimeoutError": _UNREACHABLE,
    "ReadTimeoutError": "the endpoint {endpoint} stopped answering: check it and the network",
    "ValueError": "{text}: correct AWS_ENDPOINT_URL",
}


@dataclass(frozen=True)
class Place:
    """Where an S3 call went."""

    bucket: str
    key: str = ""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}"


def code_of(error: BaseException) -> str:
    """S3's code of the error, or the name of its class."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code") or type(error).__name__)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the error, if the server answered at all."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode")


def endpoint_url() -> str | None:
    """The endpoint that the environment sets for S3, if any."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def meaning(error: BaseException, place: Place) -> str:
    """What is wrong and what to do, in one line, without the place."""
    code = code_of(error)
    text = " ".join(str(error).split())
    template = _MEANINGS.get(code) or f"{type(error).__name__}: {{text}}"
    endpoint = endpoint_url() or "AWS"
    return template.format(code=code, text=text, bucket=place.bucket, endpoint=endpoint)


def explained(error: BaseException, place: Place, verb: str) -> DataError:
    """The error as the user's, e.g. "cannot read s3://bucket/key: ..."."""
    return DataError(f"cannot {verb} {place.uri}: {meaning(error, place)}")
