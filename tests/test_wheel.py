"""What pip installs: the wheel, in an environment of its own, with no compiler, no torch and no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _missing(reason: str) -> None:
    """A skipped test that says why; in CI everything is there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    beside = shutil.which("maturin", path=str(Path(sys.executable).parent)) or shutil.which("maturin")
    if beside is None or shutil.which("cargo") is None or not (ROOT / "Cargo.toml").exists():
        _missing("building a wheel needs maturin, cargo and the sources")
    out = tmp_path_factory.mktemp("dist")
    command = [str(beside), "build", "--release", "--locked", "--compatibility", "linux", "--out", str(out)]
    if sys.platform != "linux":
        command = [one for one in command if one not in ("--compatibility", "linux")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_installs_and_shows_the_whole_way_alone(wheel: Path, tmp_path: Path) -> None:
    assert "-cp311-abi3-" in wheel.name
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode:
        _missing(f"the wheel's dependencies could not be had: {installed.stderr[-500:]}")
    # Nothing to compile with, nothing of this environment, and no hub.
    alone = {"PATH": "", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def run(*argv: str) -> str:
        done = subprocess.run(
            [str(python), "-m", "signflip", *argv], cwd=tmp_path, env=alone, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = json.loads(run("doctor", "--json"))
    assert "torch" not in json.loads(
        subprocess.run(
            [str(python), "-c", "import json, sys, signflip; print(json.dumps(sorted(sys.modules)))"],
            env=alone,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert found
    shown = json.loads(run("demo", "--json", "--quiet", "--out", "out"))
    assert shown["conclusion"]["found"]
