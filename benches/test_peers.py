"""The comparison with peers still runs, and its contestants still agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_smoke() -> None:
    script = Path(__file__).parent / "peers" / "compare.py"
    done = subprocess.run([sys.executable, script, "--smoke"], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| torch autograd |" in done.stdout
