"""The users of MLflow's server: needs Python only, on this machine or in a container.

Without options it gives the user lotlip the password that is in its file.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import json
import secrets
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description="the users of MLflow's server")
    parser.add_argument("url", help="of the server")
    parser.add_argument("secrets", type=Path, help="the folder with mlflow_admin and mlflow_user")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--user", metavar="NAME", help="print a new password for this user")
    what.add_argument("--renew-admin", action="store_true", help="also in the file mlflow_admin")
    arguments = parser.parse_args()
    admin_file = arguments.secrets / "mlflow_admin"
    server = Server(arguments.url, *login(admin_file))
    if arguments.renew_admin:
        renew_admin(server, admin_file)
    elif arguments.user:
        password = secrets.token_hex(24)
        server.set_password(arguments.user, password)
        print(password)
    else:
        server.set_password(*login(arguments.secrets / "mlflow_user"))


class Server:
    """MLflow's interface for users."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = f"{url.rstrip('/')}/api/2.0/mlflow/users"
        self._user, self._password = user, password
        self._header = base64.b64encode(f"{user}:{password}".encode()).decode()

    def set_password(self, user: str, password: str) -> None:
        """For a new user, too."""
        body = {"username": user, "password": password}
        if self._ask("GET", f"get?username={urllib.parse.quote(user)}", missing_is_fine=True):
            self._ask("PATCH", "update-password", body)
        else:
            self._ask("POST", "create", body)

    def set_own_password(self, password: str) -> None:
        body = {"username": self._user, "password": password, "current_password": self._password}
        self._ask("PATCH", "update-password", body)

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, str] | None = None,
        *,
        missing_is_fine: bool = False,
    ) -> bool:
        """Whether it is there."""
        request = urllib.request.Request(
            f"{self._url}/{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={
                "Authorization": f"Basic {self._header}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30):
                return True
        except urllib.error.HTTPError as error:
            if missing_is_fine and error.code == 404:
                return False
            sys.exit(f"{self._url}: {error.code}: {error.read(300).decode(errors='replace')}")
        except OSError as error:
            sys.exit(f"{self._url}: {error}")


def renew_admin(server: Server, file: Path) -> None:
    password = secrets.token_hex(24)
    # Before the server knows it: whatever fails afterwards, the password is in one of two files.
    new = file.with_name(".mlflow_admin.new")
    new.write_text(file.read_text().replace(login(file)[1], password))
    new.chmod(0o444)
    server.set_own_password(password)
    new.replace(file)


def login(file: Path) -> tuple[str, str]:
    """User and password, of a file as ~/.mlflow/credentials."""
    parser = configparser.ConfigParser()
    parser.read_string(file.read_text())
    found = parser["mlflow"]
    return found["mlflow_tracking_username"], found["mlflow_tracking_password"]


if __name__ == "__main__":
    main()
