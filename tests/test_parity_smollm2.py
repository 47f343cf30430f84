"""SmolLM2-135M-Instruct from its GGUF: logits, every site, gradients, text, generation, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import signflip as sf  # noqa: E402
from reference import peer  # noqa: E402
from reference.restated import Restated  # noqa: E402
from reference.yardstick import Pool, judge  # noqa: E402
from smollm2 import gguf_path  # noqa: E402
from test_parity import compare_gradients, compare_sites, questions  # noqa: E402
from test_purity import same  # noqa: E402

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]

TEXTS = [
    "<|im_start|>user\nIs the sky blue? Answer yes or no.<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>The capital of France is",
    "In 1905 she wrote: naïve — 42!",
]


@pytest.fixture(scope="module")
def trio() -> Iterator[tuple[Any, Any, Restated]]:
    path = str(gguf_path())
    theirs = peer.from_gguf(path)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield sf.load(path), theirs, Restated(theirs.config.to_dict(), theirs.state_dict())
    torch.set_num_threads(threads)


def test_parity(trio: Any) -> None:
    model, theirs, exact = trio
    pool = Pool()
    sequences = [model.to_tokens(text)[0].tolist() for text in TEXTS]
    compare_sites(model, theirs, exact, sequences, pool)
    some = [name for name in exact.sites() if name.startswith(("hook", "blocks.0.", "blocks.13.", "blocks.29.", "ln"))]
    asked = [replace(ask, wrt=some) for ask in questions(model, np.random.default_rng(0))[2:5]]
    compare_gradients(model, theirs, exact, sequences[:2], asked, pool)
    found = pool.ratios()
    assert len(found) > 430
    judge(found)


def test_long_context(trio: Any) -> None:
    """Positions far out, where a rotary table made in float32 has lost digits."""
    model, theirs, exact = trio
    ids = np.random.default_rng(0).integers(17, 49152, size=300).tolist()
    sites = ["blocks.0.attn.hook_rot_k", "blocks.3.attn.hook_z", "blocks.29.hook_resid_post"]
    logits, cache = model.run_with_cache(ids, names_filter=sites)
    exact_logits, exact_cache = exact.run(ids)
    seen = peer.Seen(theirs, ids)
    pool = Pool()
    pool.add("logits", exact_logits, seen.logits, logits[0])
    for site in sites:
        pool.add(site, exact_cache[site], seen.value(site), cache[site][0])
    judge(pool.ratios())


def test_text_is_its_tokens(trio: Any) -> None:
    model, *_ = trio
    for text in TEXTS:
        ids = model.to_tokens(text)
        assert ids.dtype == np.int64
        assert ids.shape[0] == 1
        assert model.to_string(ids[0]) == text
        assert "".join(model.to_str_tokens(text)) == text or "ï" in text
        assert len(model.to_str_tokens(text)) == ids.shape[1]
        same(model.run(text), model.run(ids))
    # The first piece of this one is a special token, parsed; no other is put in front.
    assert model.to_tokens(TEXTS[1])[0, 0] == 0
    assert model.to_tokens("hello")[0, 0] != 0
    logits = model.run([TEXTS[1], TEXTS[2]])
    assert isinstance(logits, list)
    same(logits[0], model.run(TEXTS[1])[0])
    scores = model.score([TEXTS[1], TEXTS[2]], sf.objectives.logprob(" Paris"))
    assert scores[0] > scores[1]
    same(scores[0], model.score([model.to_tokens(TEXTS[1])[0].tolist()], sf.objectives.logprob(" Paris"))[0])


def test_greedy_generation_is_transformers(trio: Any) -> None:
    model, theirs, _ = trio
    ids = model.to_tokens(TEXTS[0])[0].tolist()
    expected = theirs.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0].tolist()
    out = np.asarray(model.generate(TEXTS[0], max_new_tokens=12)).reshape(-1).tolist()
    expected = expected[len(ids) :]
    assert out[-len(expected) :] == expected or out[len(ids) : len(ids) + len(expected)] == expected


def test_forest_and_variants_to_the_bit(trio: Any) -> None:
    from signflip.model import Logits, Values

    model, *_ = trio
    rng = np.random.default_rng(1)
    stem = rng.integers(17, 49152, size=24).tolist()
    sequences = [stem, [*stem[:20], 5, 6], [*stem[:20], 5, 7, 8], stem[:3], [9, *stem]]
    edits = [[], [sf.Edit("blocks.17.mlp.hook_pre_linear", "scale", value=-1.0, index=[3, 700], positions=[-1])]]
    reads = [Values("blocks.24.mlp.hook_pre_linear", -1, [115, 1535]), Logits(-1, [0, 49151, 1000])]
    outs = model.read(sequences, reads, variants=edits)
    for changes, out in zip(edits, outs, strict=True):
        for s, ids in enumerate(sequences):
            logits, cache = model.run_with_cache(ids, names_filter=reads[0].site, edits=changes)
            same(np.ravel(out[0][s]), cache[reads[0].site][0, -1, [115, 1535]])
            same(np.ravel(out[1][s]), logits[0, -1, [0, 49151, 1000]])
