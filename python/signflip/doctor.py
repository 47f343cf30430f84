"""``signflip doctor``: what a bug report needs to say about an installation, and why a GPU is not used."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import signflip
from signflip import _core

__all__ = ["examine"]

# As in pyproject.toml; a test compares the two.
REQUIRED = ("gguf", "huggingface_hub", "jinja2", "numpy", "scipy", "tqdm")
OPTIONAL = ("matplotlib", "pandas")


def examine() -> dict[str, str]:
    """Look at this installation.

    Returns
    -------
    dict of str to str
        Signflip, extension, python, system, cpu (with the features that matter here), kernels, threads, gpu (with
        the reason why not), and the version of each dependency.
    """
    build = _core.build_info()
    found = {
        "signflip": f"{build['version']} ({Path(signflip.__file__).parent})",
        "extension": f"{build['profile']} build for {build['target']} ({_core.__file__})",
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu": f"{_cpu_name()}: {' '.join(build['cpu_features'])}",
        "kernels": build["kernels"],
        "threads": f"{build['threads']} in use, {os.cpu_count()} cores seen",
        "gpu": f"not used: {build['cuda']}",
    }
    return found | {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
