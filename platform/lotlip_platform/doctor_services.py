"""Whether S3, MLflow, Ray and the local services can be reached, and whether the clock is right."""

from __future__ import annotations

import email.utils
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lotlip.errors import ClusterError
from lotlip_platform.finding import Finding
from lotlip_platform.local_services import home, services
from lotlip_platform.ray_address import check_answers
from lotlip_platform.s3_errors import ENVIRONMENT_KEYS, endpoint_url
from lotlip_platform.service_process import is_healthy
from lotlip_platform.storage import open_store

TIMEOUT_S = 4.0
CLOCK_WARNING_S, CLOCK_ERROR_S = 60.0, 900.0  # S3 refuses requests that are 15 minutes off
EARLIEST_TIME = 1_750_000_000  # this software is younger
UNREACHABLE = (OSError, ValueError, HTTPException)
KEY_LETTERS = 4  # of an access key id: enough to know it again


def checks(store_uri: str = "") -> dict[str, Callable[[], Finding]]:
    """What to look at over the network, by name; each may take `TIMEOUT_S` and a little more."""
    looks: dict[str, Callable[[], Finding]] = {"local services": local_services, "S3": s3}
    if store_uri:
        looks["store"] = lambda: round_trip(store_uri)
    return looks | {"MLflow": mlflow, "Ray": ray, "clock": clock}


def local_services() -> Finding:
    """Raises: ConfigError if their record is damaged."""
    name = "local services"
    alive = services()
    if not alive:
        return Finding(name, "ok", "none runs; lotlip up starts S3, MLflow and Ray on this machine")
    silent = [service for service in alive.values() if not is_healthy(service)]
    if silent:
        logs = home() / "logs" / f"{silent[0].name}.log"
        found = ", ".join(f"{service.name} at {service.url} does not answer" for service in silent)
        return Finding(name, "error", found, f"lotlip down, then lotlip up; see {logs}")
    return Finding(name, "ok", ", ".join(f"{s.name} at {s.url}" for s in alive.values()))


def s3() -> Finding:
    endpoint, identity = endpoint_url(), _identity()
    if not endpoint and not identity:
        return Finding("S3", "ok", "not set up: data sets and runs lie in local folders")
    found = f"{endpoint or 'AWS'} as {identity or 'nobody'}"
    try:
        _date_of(_endpoint())
    except UNREACHABLE as error:
        advice = "start it (lotlip up starts a local one) or correct AWS_ENDPOINT_URL"
        return Finding("S3", "error", f"{found}: {_reason(error)}", advice)
    if not identity:
        return Finding("S3", "warning", found, f"set {ENVIRONMENT_KEYS}, or AWS_PROFILE")
    return Finding("S3", "ok", f"{found}: answers")


def round_trip(store_uri: str) -> Finding:
    """Write, read and remove a small object. Raises: DataError, ConfigError."""
    store = open_store(store_uri)
    if store_uri.startswith("s3://"):
        try:
            _date_of(_endpoint())
        except UNREACHABLE:
            # boto3 would try for half a minute.
            found = f"{store.uri} not tried: S3 does not answer"
            return Finding("store", "error", found, "mend what the line about S3 says")
    name = f".lotlip-doctor-{uuid.uuid4().hex}"
    data = uuid.uuid4().bytes
    begin = time.monotonic()
    store.write(name, data)
    try:
        same = store.read(name) == data
    finally:
        store.delete(name)
    if not same or store.exists(name):
        what = "gave back other bytes than were written" if not same else "keeps what is deleted"
        return Finding("store", "error", f"{store.uri} {what}", "use another store for runs")
    took = time.monotonic() - begin
    return Finding(
        "store", "ok", f"wrote, read and removed an object in {store.uri} ({took:.2f} s)"
    )


def mlflow(uri: str = "") -> Finding:
    # Importing it takes seconds, and a broken one must not keep the doctor away.
    from lotlip_platform.tracking import tracking_uri

    uri = tracking_uri(uri)
    if uri.startswith(("http://", "https://")):
        try:
            _get(f"{uri.rstrip('/')}/health").close()
        except UNREACHABLE as error:
            advice = (
                "start it (lotlip up starts a local one), or correct or unset MLFLOW_TRACKING_URI"
            )
            return Finding("MLflow", "error", f"{uri}: {_reason(error)}", advice)
        return Finding("MLflow", "ok", f"{uri} answers")
    if uri.startswith("sqlite:///"):
        path = Path(unquote(uri.removeprefix("sqlite:///")))
        if path.exists():
            return Finding("MLflow", "ok", f"local file {path}")
        return Finding("MLflow", "ok", f"local file {path}, made by the first run")
    return Finding("MLflow", "ok", f"{uri}, not tried")


def ray() -> Finding:
    """Connects to the port only: Ray's own client would start processes or wait for minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        return Finding("Ray", "ok", "no RAY_ADDRESS: commands start a local one for themselves")
    if address == "auto":
        return Finding("Ray", "ok", "RAY_ADDRESS=auto: commands look for one on this machine")
    try:
        check_answers(address)
    except ClusterError as error:
        found, _, advice = str(error).partition("; " if "; " in str(error) else ": ")
        return Finding("Ray", "error", found, advice)
    return Finding("Ray", "ok", f"{address} accepts connections")


def clock() -> Finding:
    """This machine's time, against that of the S3 endpoint if one is set."""
    now = time.time()
    if now < EARLIEST_TIME:
        found = time.strftime("%Y-%m-%d is in the past", time.gmtime(now))
        return Finding("clock", "error", found, "set the clock: S3 refuses wrong times")
    endpoint = endpoint_url()
    try:
        other = _date_of(endpoint) if endpoint else None
    except UNREACHABLE:
        other = None  # the line about S3 says why
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if other is None:
        return Finding("clock", "ok", shown)
    off = abs(now - other)
    if off < CLOCK_WARNING_S:
        return Finding("clock", "ok", f"{shown}, as the S3 endpoint has it")
    found = f"{shown}, {off:.0f} s off that of the S3 endpoint"
    state = "error" if off >= CLOCK_ERROR_S else "warning"
    return Finding("clock", state, found, "set the clock, best by NTP: S3 refuses wrong times")


def _endpoint() -> str:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return endpoint_url() or f"https://s3.{region}.amazonaws.com"


def _identity() -> str:
    """Whose credentials boto3 will find, without the secret; empty if none are in sight."""
    if profile := os.environ.get("AWS_PROFILE"):
        return f"profile {profile}"
    if key := os.environ.get("AWS_ACCESS_KEY_ID"):
        return f"key {key[:KEY_LETTERS]}…"
    if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return "the web identity of this machine"
    for name, usual in (
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        ("AWS_CONFIG_FILE", "~/.aws/config"),
    ):
        path = Path(os.environ.get(name) or usual).expanduser()
        if path.is_file():
            return f"the default profile of {path}"
    return ""


def _date_of(url: str) -> float | None:
    """The time that a server says it is, whatever else it answers below 500. Raises: OSError."""
    try:
        with _get(url) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise
        date = error.headers["Date"]
    return email.utils.parsedate_to_datetime(date).timestamp() if date else None


def _get(url: str) -> HTTPResponse:
    """Raises: OSError, ValueError."""
    parts = urlsplit(url)
    # urllib takes user:password@ for a part of the host's name.
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return urllib.request.urlopen(plain.geturl(), timeout=TIMEOUT_S)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"it answers with HTTP status {error.code}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    return str(getattr(reason, "strerror", None) or reason)
