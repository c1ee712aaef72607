"""What travels to a Ray cluster with a job: the code of this checkout, as git tracks it.

It is laid out as in the wheel, so that all of it can be imported from one folder, and the same code
gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lotlip.errors import ConfigError

LIMIT_BYTES = 100 * 1024**2
"""Of a package that Ray's dashboard takes (`DASHBOARD_CLIENT_MAX_SIZE`)."""
NUM_LARGEST = 3
_PLACES = {
    "lotlip/": "lotlip/",
    "platform/lotlip_platform/": "lotlip_platform/",
    "jobs/configs/": "lotlip_platform/configs/",
}
"""Where in the package what lies where in the checkout; nothing else travels."""
_DIFF = (
    # Whatever the user's own settings are, git apply must be able to take it.
    *("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)
_THE_DAWN = (1980, 1, 1, 0, 0, 0)  # of zip archives: times would make other bytes of the same code


@dataclass(frozen=True, kw_only=True)
class Package:
    """The code of a job."""

    content: bytes
    """A zip archive."""
    digest: str
    commit: str
    changes: bytes
    """The difference to that commit, as `git diff` tells it; empty if there is none."""
    untracked: tuple[str, ...]
    """Files in the packed folders that git neither tracks nor ignores: they stay behind."""
    largest: tuple[tuple[str, int], ...]
    """The largest files, with their bytes before compression."""

    @property
    def code_version(self) -> str:
        return f"{self.commit}{'+changes' if self.changes else ''}"

    def told(self) -> list[str]:
        """What the person who submits it should know, in lines."""
        size = f"{len(self.content) / 1e6:.1f} MB"
        lines = [f"package {size}, commit {self.commit[:12]}; largest: {self._largest()}"]
        if self.changes:
            lines.append("with uncommitted changes, which are recorded with the job")
        if self.untracked:
            shown = ", ".join(self.untracked[:NUM_LARGEST])
            more = "" if len(self.untracked) <= NUM_LARGEST else ", ..."
            lines.append(
                f"without {len(self.untracked)} files that git does not track: {shown}{more}"
            )
        return lines

    def check_size(self) -> None:
        """Raises: ConfigError if Ray would not take it."""
        if len(self.content) > LIMIT_BYTES:
            raise ConfigError(
                f"the package has {len(self.content) / 1e6:.0f} MB, Ray takes "
                f"{LIMIT_BYTES / 1e6:.0f}; largest: {self._largest()}: have git ignore what the "
                "job does not need, and keep data in the store"
            )

    def _largest(self) -> str:
        return ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in self.largest)


def make_package(checkout: Path | None = None) -> Package:
    """The code of a checkout; by default that of this one. Raises: ConfigError."""
    root = checkout or Path(__file__).parents[2]
    if not (root / "platform" / "lotlip_platform").is_dir():
        raise ConfigError(
            "lotlip is not installed from a checkout, whose code a job takes along: clone the "
            "repository and pip install --editable it"
        )
    folders = list(_PLACES)
    names = _lines(root, "ls-files", "-z", "--", *folders)
    files = [(name, root / name) for name in sorted(names) if (root / name).exists()]
    links = [name for name, path in files if path.is_symlink()]
    if links:
        raise ConfigError(f"{links[0]} is a link, which a job can't take along: put a file there")
    content = _zipped(files)
    sizes = sorted(((name, path.stat().st_size) for name, path in files), key=lambda of: -of[1])
    untracked = _lines(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *folders)
    return Package(
        content=content,
        digest=hashlib.sha256(content).hexdigest(),
        commit=_git(root, "rev-parse", "HEAD").decode().strip(),
        changes=_git(root, *_DIFF, "HEAD", "--", *folders),
        untracked=tuple(sorted(untracked)),
        largest=tuple(sizes[:NUM_LARGEST]),
    )


def _zipped(files: list[tuple[str, Path]]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, path in files:
            entry = zipfile.ZipInfo(_place(name), date_time=_THE_DAWN)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return written.getvalue()


def _place(name: str) -> str:
    for folder, place in _PLACES.items():
        if name.startswith(folder):
            return place + name.removeprefix(folder)
    raise AssertionError(f"{name} is in none of the folders that were asked for")


def _lines(root: Path, *arguments: str) -> list[str]:
    return [name for name in _git(root, *arguments).decode().split("\0") if name]


def _git(root: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True)
    except FileNotFoundError as error:
        raise ConfigError("git is not installed: it tells what a job takes along") from error
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.decode(errors="replace").split())
        raise ConfigError(f"{root}: git {arguments[0]} failed: {reason}") from error
    return done.stdout
