"""The policy in infra/ allows what the platform asks of S3, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient

from lotlip.errors import DataError
from lotlip_platform.storage import ensure_bucket, open_store

POLICY = Path(__file__).parents[2] / "infra" / "s3-policy.json"
NEEDS = {
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
}
"""Of the operations of S3's interface, by AWS's service authorization reference."""


@pytest.fixture
def asked(s3_env: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The operations that this process has asked of S3."""
    ensure_bucket("s3://policy")
    operations: set[str] = set()
    call: Any = BaseClient._make_api_call  # pyright: ignore[reportAttributeAccessIssue]

    def noted(self: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:
        operations.add(operation)
        if operation == "UploadPart" and arguments["Key"].endswith("broken"):
            raise ConnectionError("the line was cut")
        return call(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    return operations


def test_all_that_a_store_does_is_allowed_and_all_that_is_allowed_is_done(
    asked: set[str], tmp_path: Path
) -> None:
    store = open_store("s3://policy/prefix")
    large = tmp_path / "large"
    large.write_bytes(b"x" * 20_000_000)  # sent in parts
    store.write("small", b"content")
    store.write_file("large", large)
    with pytest.raises((DataError, ConnectionError)):
        store.write_file("broken", large)
    assert store.read("small") == b"content"
    assert store.list() == ["large", "small"]
    assert store.versions("small")["small"].num_bytes == 7
    assert not store.exists("absent")
    with pytest.raises(DataError):
        store.read("absent")
    store.delete("small")
    assert store.at("folder").list() == []
    allowed = {
        action
        for statement in json.loads(POLICY.read_text())["Statement"]
        for action in statement["Action"]
    }
    assert {NEEDS[operation] for operation in asked} == allowed
