"""Ctrl-C ends any long call within a second, as KeyboardInterrupt."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from reference import peer
from tiny import config_of

# Each would take minutes.
CALLS = {
    "run": "model.run(np.zeros((60, 1000), dtype=int))",
    "run_with_cache": "model.run_with_cache(np.zeros((60, 1000), dtype=int), names_filter='blocks.5.mlp.hook_post')",
    "score": "model.score([[i % 300, j % 300] + [1] * 900 for i in range(99) for j in range(9)], o.logit_diff(0, 1))",
    "gradient": "[model.gradient([i % 300] * 1000, o.logit_diff(0, 1)) for i in range(10000)]",
    "generate": "[model.generate([1, i], max_new_tokens=900) for i in range(99)]",
    "hooks": "model.run_with_hooks(np.zeros((60, 1000), dtype=int), [('blocks.0.hook_mlp_out', lambda a, hook: None)])",
    "scan": "sf.scan(model, [('blocks.3.mlp.hook_post', i) for i in range(300)], behaviour, screen=0)",
    "flip": "sf.flip(model, ('blocks.3.mlp.hook_post', 5), [7], behaviour, half=None)",
}
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job is started without
import numpy as np
import signflip as sf
o = sf.objectives
model = sf.load(sys.argv[1])
prompts = [([i + 9 * s, *[5] * 700], 1 + s, 2 - s, str(s), str((i, s))) for i in range(99) for s in (0, 1)]
behaviour = sf.Behaviour("long", prompts)
model.gradient([1, 2, 3], o.logit_diff(0, 1))  # what is packed once is packed
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("stopped", model.run([1, 2, 3]).shape, flush=True)
else:
    print("finished", flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    config = config_of("gpt2", n_embd=384, n_head=6, n_inner=1536, n_layer=8, n_positions=1024, vocab_size=300)
    peer.make(config, 0).save_pretrained(path)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
@pytest.mark.parametrize("call", CALLS)
def test_interrupt(folder: Path, call: str) -> None:
    script = SCRIPT.format(call=CALLS[call])
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read() if process.stderr else ""
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        sent = time.perf_counter()
        out, err = process.communicate(timeout=60)
        took = time.perf_counter() - sent
    assert out.startswith("stopped (1, 3, 300)"), (out, err)
    assert took < 1.5, f"{took:.2f} s, of which the interpreter's end is a part"
