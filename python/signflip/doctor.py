"""``signflip doctor``: what a bug report needs to say about an installation, and why a GPU is not used."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import signflip
from signflip import _core

__all__ = ["examine"]


def examine() -> dict[str, str]:
    """Look at this installation.

    Returns
    -------
    dict of str to str
        One line for each of: signflip, extension, python, system, cpu, threads, gpu, and each dependency, with
        "missing" for an optional one that is not installed.
    """
    cpu = dict(_core.cpu_info())
    found = {
        "signflip": f"{_core.__version__} ({Path(signflip.__file__).parent})",
        "extension": str(_core.__file__),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu": f"{_cpu_name()}; kernel: {cpu.get('kernel')}; features: {' '.join(cpu.get('features', ()))}",
        "threads": f"{_core.num_threads()} in use, {os.cpu_count()} cores seen",
        "gpu": cpu.get("gpu") or "not used: this version computes on the CPU only",
    }
    return found | {name: _version(name) for name in _dependencies()}


def _dependencies() -> list[str]:
    """Names of what the package requires and may use, by its metadata; none where it is not installed."""
    try:
        names = [requirement.split(";")[0] for requirement in requires("signflip") or ()]
    except PackageNotFoundError:
        return []
    plain = ("".join(c if c.isalnum() or c in "-_." else " " for c in name).split()[0] for name in names)
    return sorted(set(plain))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing (optional)"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
