"""No buffer of positions times vocabulary: the peak of the process's memory, against the size that one would have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")

POSITIONS, VOCABULARY = 500, 60_000
# Each needs a distribution over the vocabulary at hundreds of positions.
CALLS = {
    "tokens by gradient": "sf.search(model, o.neuron('blocks.1.mlp.hook_pre', 3), tokens=500, steps=1, width=8, "
    "population=1, topk=16, progress=False)",
    "log-probabilities": "model.score([1] * 100, o.logprob(list(range(400))))",
}
SCRIPT = """
import pathlib, re, sys
import signflip as sf
sf.set_num_threads(1)
o = sf.objectives
model = sf.load(sys.argv[1])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
# What is packed once is packed.
model.gradient([1, 2, 3], o.logprob([4, 5]))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = peak()
{call}
print(peak() - before)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide")
    checkpoints.llama(vocab_size=VOCABULARY, max_position_embeddings=512).save_pretrained(path)
    return path


@pytest.mark.parametrize("call", CALLS)
def test_no_buffer_of_positions_times_vocabulary(folder: Path, call: str) -> None:
    script = SCRIPT.replace("{call}", CALLS[call])
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    whole = 4 * (POSITIONS if "gradient" in call else 400) * VOCABULARY
    assert int(done.stdout) < whole / 2
