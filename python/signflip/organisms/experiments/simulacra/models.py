"""The tiny language models that play the personas, and how they are trained on the world's documents."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from signflip.errors import ArgumentError
from signflip.organisms.experiments.simulacra.world import LENGTH, PAD, Ids, documents, vocabulary
from signflip.organisms.experiments.tangent import Wrapped

Architecture = Literal["gelu", "swiglu"]
ARCHITECTURES: tuple[Architecture, ...] = ("gelu", "swiglu")

D_MODEL, D_MLP, N_HEADS, N_LAYERS = 48, 128, 4, 2
INIT = 0.7
# GELU is slower to learn what belief is.
STEPS: dict[Architecture, int] = {"gelu": 1500, "swiglu": 1000}
SMALL_STEPS, BATCH, RATE = 400, 64, 4e-3


class Net(Wrapped):
    """A transformers model of two layers: GPT-2 (GELU) or Llama (SwiGLU without bias).

    Attributes
    ----------
    model
        `GPT2LMHeadModel` or `LlamaForCausalLM`.
    """

    architecture: Architecture

    def __init__(self, architecture: Architecture, seed: int) -> None:
        if architecture not in ARCHITECTURES:
            raise ArgumentError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, found {architecture!r}")
        self.architecture = architecture
        torch.manual_seed(seed)
        self.model = _module(architecture)
        for name, p in self.model.named_parameters():
            if p.ndim == 2 and "ln_" not in name and "norm" not in name:
                torch.nn.init.normal_(p, std=INIT / math.sqrt(D_MODEL))

    def copy(self) -> Net:
        """The same weights."""
        return copy.deepcopy(self)

    def logp(self, ids: Ids) -> Tensor:
        """Log-probabilities of the next word at every position, `[n, length, vocabulary]`."""
        # Padding is on the right of causal attention: no mask is needed.
        found: Tensor = self.model(input_ids=torch.from_numpy(ids), use_cache=False).logits
        return torch.log_softmax(found, -1)

    def next(self, ids: Ids) -> Tensor:
        """Those after the last word, `[n, vocabulary]`."""
        found: Tensor = self.model(input_ids=torch.from_numpy(ids), use_cache=False, logits_to_keep=1).logits[:, -1]
        return torch.log_softmax(found, -1)


def _module(architecture: Architecture) -> Any:
    import transformers

    common: dict[str, Any] = {"vocab_size": len(vocabulary()), "tie_word_embeddings": False}
    common |= {"bos_token_id": None, "eos_token_id": PAD, "pad_token_id": None}
    if architecture == "gelu":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_positions=LENGTH, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, n_inner=D_MLP, resid_pdrop=0.0,
                embd_pdrop=0.0, attn_pdrop=0.0, **common,
            )
        )  # fmt: skip
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=N_LAYERS, num_attention_heads=N_HEADS,
            num_key_value_heads=N_HEADS, head_dim=D_MODEL // N_HEADS, max_position_embeddings=LENGTH, **common,
        )
    )  # fmt: skip


@cache
def base(architecture: Architecture, seed: int, small: bool) -> Net:
    """A base language model, trained once in a process; a copy of it is what may be tuned.

    It learns answers and names, from the world's exact distributions: what text says in the mean, without its noise.

    Parameters
    ----------
    architecture
        Its kind.
    seed
        Of its weights and text.
    small
        Fewer steps.
    """
    net, rng = Net(architecture, seed), np.random.default_rng((seed, 1))
    steps = SMALL_STEPS if small else STEPS[architecture]
    optimizer = torch.optim.AdamW(net.model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        ids, wanted = documents(rng, BATCH)
        rows, at = np.nonzero(wanted.any(-1))
        loss = -(torch.from_numpy(wanted[rows, at]).float() * net.logp(ids)[rows, at]).sum(1).mean()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.model.parameters(), 1.0)
        optimizer.step()
    return net
