from pathlib import Path

import pytest

from lotlip.errors import ConfigError
from lotlip_platform.config import load_config
from lotlip_platform.redaction import is_secret, redacted, secret_in
from lotlip_platform.train_config import TrainConfig

SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "short")


def test_secrets_of_the_environment_and_users_in_urls_are_taken_out() -> None:
    assert redacted(f"key={SECRET} at http://me:pw@host/x") == "key=*** at http://***@host/x"
    assert redacted("http://me:p/w@host") == "http://***@host"
    assert redacted("a short text, s3://bucket/a@b") == "a short text, s3://bucket/a@b"


def test_secrets_that_clients_read_from_files_are_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert redacted("secret-of-s3 secret-of-mlflow secret-of-ray") == (
        "secret-of-s3 secret-of-mlflow secret-of-ray"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "s3"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    keys = "[default]\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key = secret-of-s3\n"
    (tmp_path / "s3").write_text(keys)
    (tmp_path / "token").write_text("secret-of-ray\n")
    login = "mlflow_tracking_username = lotlip-user\nmlflow_tracking_password = secret-of-mlflow\n"
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(f"[mlflow]\n{login}")
    assert redacted("AKIAEXAMPLE secret-of-s3, lotlip-user secret-of-mlflow secret-of-ray") == (
        "AKIAEXAMPLE ***, lotlip-user *** ***"
    )
    assert secret_in("x=secret-of-s3") == "the value of aws_secret_access_key"
    (tmp_path / "token").write_text("another-token")
    assert redacted("secret-of-ray another-token") == "secret-of-ray ***"


def test_a_variable_is_secret_by_its_name_unless_it_says_where_a_secret_is() -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "hf_token", "PGPASSWD"):
        assert is_secret(name)
    for name in ("RAY_AUTH_TOKEN_PATH", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_URI", "TOKEN_FILE"):
        assert not is_secret(name)


def test_a_config_with_a_secret_is_refused_since_configs_are_recorded(tmp_path: Path) -> None:
    for value, kind in (
        ("http://me:pw@host/data", "a user name in a URL"),
        ("${oc.env:AWS_SECRET_ACCESS_KEY}", "the value of AWS_SECRET_ACCESS_KEY"),
    ):
        with pytest.raises(ConfigError) as told:
            load_config(TrainConfig, "train/scenes", [f"data.train={value}"])
        assert str(told.value) == (
            f"data.train holds {kind}, and configs are recorded: leave it to the environment"
        )
        assert SECRET not in str(told.value)
    assert secret_in("nothing") == ""
