"""The secrets of infra/compose.yaml, as files: makes those that are missing.

    python3 infra/new_secrets.py                     into infra/secrets
    python3 infra/new_secrets.py --renew ray_token   replaces these; infra/runbook.md says what then

The folder is for its owner alone. The files in it are for all: in each container another user
reads them.
"""

from __future__ import annotations

import argparse
import json
import secrets
from pathlib import Path

FOLDER = Path(__file__).parent / "secrets"
S3_USERS = {"admin": "", "lotlip": "lotlip", "mlflow": "mlflow"}
"""Who may use the object store, and the only bucket that they may use."""


def main() -> None:
    parser = argparse.ArgumentParser(description="make the secrets of infra/compose.yaml")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--renew", action="append", default=[], choices=groups(), metavar="GROUP")
    arguments = parser.parse_args()
    for path in make(arguments.folder, arguments.renew):
        print(f"made {path}")


def groups() -> list[str]:
    return ["postgres", "mlflow_admin", "mlflow_key", "mlflow_user", "ray_token", "grafana", "s3"]


def make(folder: Path, renew: list[str]) -> list[Path]:
    """The files that were written."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    written: list[Path] = []
    for group in groups():
        files = _files(group)
        if group in renew or not all((folder / name).exists() for name in files):
            written += [write(folder / name, text) for name, text in files.items()]
    client = folder / "client.env"
    return [*written, write(client, _client(folder.absolute()))]


def write(path: Path, text: str) -> Path:
    """Whole or not at all, in a file of its own: what mounts the old one keeps the old secret."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(0o444)
    return new.replace(path)


def mlflow_login(user: str, password: str) -> str:
    """As MLflow's client reads it from ~/.mlflow/credentials."""
    return f"[mlflow]\nmlflow_tracking_username = {user}\nmlflow_tracking_password = {password}\n"


def _files(group: str) -> dict[str, str]:
    if group == "s3":
        return _s3()
    if group in ("mlflow_admin", "mlflow_user"):
        user = "admin" if group == "mlflow_admin" else "lotlip"
        return {group: mlflow_login(user, secrets.token_hex(24))}
    return {group: secrets.token_hex(32)}


def _s3() -> dict[str, str]:
    """What the store is told of its users, and for each of them what boto3 reads."""
    identities, files = [], {}
    for user, bucket in S3_USERS.items():
        key, secret = secrets.token_hex(10).upper(), secrets.token_hex(24)
        verbs = ["Read", "Write", "List", "Tagging"]
        actions = [f"{verb}:{bucket}" for verb in verbs] if bucket else ["Admin", *verbs]
        credentials = [{"accessKey": key, "secretKey": secret}]
        identities.append({"name": user, "credentials": credentials, "actions": actions})
        lines = ["[default]", f"aws_access_key_id = {key}", f"aws_secret_access_key = {secret}"]
        files[f"s3_{user}"] = "\n".join([*lines, ""])
    return {"s3_users.json": json.dumps({"identities": identities}, indent=1), **files}


def _client(folder: Path) -> str:
    """For a shell on this machine: set -a; . infra/secrets/client.env; set +a"""
    login = (folder / "mlflow_user").read_text()
    user, password = (line.partition(" = ")[2] for line in login.splitlines()[1:])
    variables = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:8333",
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "s3_lotlip"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
        # Or MLflow's client would fetch artifacts from http://s3:8333, which only containers know.
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "ray_token"),
    }
    return "".join(f"{name}='{value}'\n" for name, value in variables.items())


if __name__ == "__main__":
    main()
