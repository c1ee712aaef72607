"""Whether this machine and its Python fit: versions, cores, memory, GPUs, disks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

import psutil

from lotlip_platform.finding import Finding, State
from lotlip_platform.local_services import home

DISTRIBUTION = "lotlip-platform"
SHOWN_PACKAGES = ("torch", "ray", "mlflow", "webdataset", "tokenizers", "boto3")
OLDEST_PYTHON = (3, 11)
GB = 1e9
LITTLE_DISK_GB, TOO_LITTLE_DISK_GB = 5.0, 1.0
LITTLE_MEMORY_GB = 4.0
LITTLE_SHM_GB = 1.0  # Docker gives 0.06; loader processes and Ray pass batches through it
SHM = Path("/dev/shm")
NVIDIA_DEVICE = Path("/dev/nvidia0")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def checks() -> list[Callable[[], Finding]]:
    """What to look at, in the order of the table; each takes no longer than importing torch."""
    return [
        python_version,
        packages,
        platform_module,
        processor,
        memory,
        gpus,
        lambda: disk("disk of lotlip home", home()),
        lambda: disk("disk of temp folder", Path(tempfile.gettempdir())),
        shared_memory,
    ]


def python_version() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Finding("python", "error", found, f"install Python {oldest} or newer")
    return Finding("python", "ok", f"{found} ({sys.executable})")


def packages() -> Finding:
    """Installed versions against those that the distribution asks for."""
    # Not declared by us, so only here: mlflow, ray and transformers all bring it.
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return Finding("packages", "error", f"{DISTRIBUTION} is not installed", "pip install -e .")
    versions: dict[str, str] = {}
    wrong = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True):
            wrong.append(
                f"{requirement.name} {versions[requirement.name]} is not {requirement.specifier}"
            )
    if wrong:
        return Finding("packages", "error", "; ".join(wrong), f"pip install -U {DISTRIBUTION}")
    shown = (f"{name} {versions[name]}" for name in SHOWN_PACKAGES if name in versions)
    return Finding("packages", "ok", ", ".join(shown))


def platform_module() -> Finding:
    """Whether `import platform` in this folder, as Ray's workers do it, finds Python's own."""
    name = "platform module"
    spec = PathFinder.find_spec("platform", [os.getcwd(), *sys.path])
    origin = Path(spec.origin) if spec and spec.origin else None
    if origin and origin.parent.resolve() == Path(os.__file__).parent.resolve():
        return Finding(name, "ok", "Python's own")
    return Finding(
        name,
        "error",
        f"{origin} stands in for Python's own",
        "remove that file: a folder named platform must hold no __init__.py",
    )


def processor() -> Finding:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Finding("CPU", "ok", f"{cores} core{'s' * (cores > 1)}")


def memory() -> Finding:
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    if limit != "max" and int(limit) < total:
        total = int(limit)
        found = f"{total / GB:.1f} GB, the limit of this container"
    else:
        found = f"{total / GB:.1f} GB, {free / GB:.1f} GB of it free"
    if total < LITTLE_MEMORY_GB * GB:
        advice = f"use a machine with {LITTLE_MEMORY_GB:g} GB or more, or small configs only"
        return Finding("memory", "warning", found, advice)
    return Finding("memory", "ok", found)


def gpus() -> Finding:
    try:
        # It may be broken: then this is the place to say so.
        import torch
    except (ImportError, OSError) as error:
        return Finding("GPU", "error", f"torch: {error}", "install torch again: pip install torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about drivers that are too old: said below
        available = torch.cuda.is_available()
    if not available:
        if NVIDIA_DEVICE.exists():
            advice = "install the CUDA build of torch and a driver that is new enough for it"
            found = f"there is one, but torch {torch.__version__} cannot use it"
            return Finding("GPU", "warning", found, advice)
        return Finding("GPU", "ok", "none: models train on the CPU")
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(f"{device.name} {device.total_memory / GB:.0f} GB" for device in devices)
    if not torch.cuda.is_bf16_supported():
        return Finding("GPU", "warning", f"{found}, without bf16", "train with float32")
    return Finding("GPU", "ok", f"{found}, with bf16")


def disk(name: str, folder: Path) -> Finding:
    # os.path.exists, unlike Path's, takes a folder we may not look into for a missing one.
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    variable = "LOTLIP_HOME" if folder == home() else "TMPDIR"
    if not os.access(there, os.W_OK):
        advice = f"make it writable, or set {variable} to another folder"
        return Finding(name, "error", f"{folder} can't be written", advice)
    free = shutil.disk_usage(there).free / GB
    found = f"{free:.1f} GB free at {folder}"
    if free >= LITTLE_DISK_GB:
        return Finding(name, "ok", found)
    state: State = "error" if free < TOO_LITTLE_DISK_GB else "warning"
    return Finding(name, state, found, f"free some space, or set {variable} to another disk")


def shared_memory() -> Finding:
    if not SHM.is_dir():
        return Finding("shared memory", "ok", f"no {SHM} on this system")
    total = shutil.disk_usage(SHM).total / GB
    found = f"{total:.2f} GB at {SHM}"
    if total < LITTLE_SHM_GB:
        advice = "give the container more, such as docker run --shm-size=4g"
        return Finding("shared memory", "warning", found, advice)
    return Finding("shared memory", "ok", found)
