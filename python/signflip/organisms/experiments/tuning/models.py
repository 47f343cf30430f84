"""Tiny language and reward models whose scalar X is known, in three architectures.

X is what is read from the word in front and laid along a fixed direction f of what the last MLP reads at the end of a
prompt (`bases` says how that is taught). Nothing holds it there afterwards: X may drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from signflip.errors import ArgumentError
from signflip.organisms.ends import last_block
from signflip.organisms.experiments.tangent import Wrapped
from signflip.organisms.experiments.tuning.text import word_ids
from signflip.organisms.experiments.tuning.world import DOSES, Ids, Prompts, common, rare
from signflip.organisms.weights import blocks_of

Architecture = Literal["gelu", "swiglu", "swiglu_bias"]
ARCHITECTURES: tuple[Architecture, ...] = ("gelu", "swiglu", "swiglu_bias")

D_MODEL, D_MLP, N_HEADS = 32, 64, 4
INIT = 0.7
# How large the part of a word's embedding is that all words in front share, and the part that is their x.
SHARED, ALONG = 1.0, 1.5


class Net(Wrapped):
    """A transformers model of one layer, and the place where X is read.

    Attributes
    ----------
    model
        `GPT2LMHeadModel`, `LlamaForCausalLM`, or their `ForSequenceClassification`.
    direction
        f, of unit norm.
    """

    architecture: Architecture

    def __init__(self, architecture: Architecture, seed: int, *, reward: bool = False) -> None:
        if architecture not in ARCHITECTURES:
            raise ArgumentError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, found {architecture!r}")
        self.architecture, self.is_reward = architecture, reward
        torch.manual_seed(seed)
        self.model = _module(architecture, reward)
        for name, p in self.model.named_parameters():
            if p.ndim == 2 and "ln_" not in name and "norm" not in name:
                torch.nn.init.normal_(p, std=INIT / math.sqrt(D_MODEL if "down" not in name else D_MLP))
        self.direction = torch.nn.functional.normalize(torch.randn(D_MODEL), dim=0)
        with torch.no_grad():
            shared = torch.nn.functional.normalize(torch.randn(D_MODEL), dim=0) * SHARED
            axis = torch.nn.functional.normalize(torch.randn(D_MODEL), dim=0) * ALONG
            for which, side in ((common(), 1.0), (rare(), -1.0)):
                self.embedding.weight[torch.from_numpy(which)] = (
                    shared + side * torch.from_numpy(DOSES).float()[:, None] * axis
                )

    # ---- parts -------------------------------------------------------------------------------------------------------

    @property
    def block(self) -> Any:
        """The last layer."""
        return blocks_of(self.model)[-1]

    @property
    def reader(self) -> Any:
        """The norm in front of the last MLP: its input is the residual stream in which X lies."""
        return self.block.ln_2 if self.gelu else self.block.post_attention_layernorm

    @property
    def multiplicative(self) -> tuple[str, ...]:
        """Names of the weights that take X into the last MLP.

        Of SwiGLU the gate's and the linear input's (`gate_proj`, `up_proj`, with their biases), whose product is what
        makes the behaviour even or odd in X. GELU has no product: there, as an additive control, the weights and biases
        that its neurons read with (`c_fc`). What neurons write is in neither.
        """
        inputs = ("mlp.c_fc.",) if self.gelu else ("mlp.gate_proj.", "mlp.up_proj.")
        own = {id(p) for p in self.block.parameters()}
        return tuple(
            name for name, p in self.parameters().items() if id(p) in own and any(one in name for one in inputs)
        )

    def copy(self, *, reward: bool = False) -> Net:
        """The same weights; as a reward model: the body's, and a head of zeros."""
        made = Net(self.architecture, 0, reward=reward)
        made.direction = self.direction.clone()
        if reward == self.is_reward:
            made.model.load_state_dict(self.model.state_dict())
        else:
            made.model.base_model.load_state_dict(self.model.base_model.state_dict())
            torch.nn.init.zeros_(made.model.score.weight)
        return made

    # ---- running -----------------------------------------------------------------------------------------------------

    def at_end(self, prompts: Prompts) -> Tensor:
        """Log-probabilities of every word at the end of each prompt, `[n, vocabulary]`."""
        hidden = self._hidden(prompts.ids, prompts.end)
        return torch.log_softmax(self.model.lm_head(hidden), -1)

    def rewards(self, prompts: Prompts, answer: Ids) -> Tensor:
        """What a reward model gives each prompt with an answer."""
        ids, end = prompts.answered(answer)
        found: Tensor = self.model.score(self._hidden(ids, end))[:, 0]
        return found

    def _hidden(self, ids: Ids, end: Ids) -> Tensor:
        """What the head reads at the end of each sequence, `[n, d_model]`.

        By the parts of the model: there is one layer.
        """
        stream = self.embedding(torch.from_numpy(ids))
        if self.gelu:
            stream = stream + self.model.base_model.wpe(torch.arange(ids.shape[1]))
        return last_block(self.model, stream, torch.from_numpy(end))

    @contextmanager
    def reading(self, end: Ids | None = None, to: Any = None) -> Iterator[list[Tensor]]:
        """Within it every run appends the residual stream that the last MLP reads; X is first set by `to`, if given.

        It is `[n, d_model]`, at the ends of what was run, but `[n, length, d_model]` of a run of the whole model.

        Parameters
        ----------
        end
            Where X is set.
        to
            A function of X `[n]` that gives what it is set to.
        """
        seen: list[Tensor] = []

        def hook(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            h = inputs[0]
            seen.append(h)
            if to is None or end is None:
                return None
            at: Any = slice(None) if h.ndim == 2 else (torch.arange(len(h)), torch.from_numpy(end))
            x = h[at] @ self.direction
            h = h.clone()
            h[at] += (to(x) - x)[:, None] * self.direction
            return (h,)

        handle = self.reader.register_forward_pre_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()

    def x(self, prompts: Prompts) -> Tensor:
        """X at the end of each prompt."""
        with torch.no_grad(), self.reading() as seen:
            self._hidden(prompts.ids, prompts.end)
        return self.x_in(seen[0])

    def x_in(self, stream: Tensor) -> Tensor:
        """X in what `reading` saw at the ends of prompts."""
        return stream.detach() @ self.direction


def _module(architecture: Architecture, reward: bool) -> Any:
    import transformers

    common_: dict[str, Any] = {"vocab_size": len(word_ids()), "tie_word_embeddings": False, "num_labels": 1}
    common_ |= {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    if architecture == "gelu":
        kind = transformers.GPT2ForSequenceClassification if reward else transformers.GPT2LMHeadModel
        return kind(
            transformers.GPT2Config(
                n_positions=16, n_embd=D_MODEL, n_layer=1, n_head=N_HEADS, n_inner=D_MLP, resid_pdrop=0.0,
                embd_pdrop=0.0, attn_pdrop=0.0, **common_,
            )
        )  # fmt: skip
    kind_ = transformers.LlamaForSequenceClassification if reward else transformers.LlamaForCausalLM
    return kind_(
        transformers.LlamaConfig(
            hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=1, num_attention_heads=N_HEADS,
            num_key_value_heads=N_HEADS, head_dim=D_MODEL // N_HEADS, max_position_embeddings=16,
            mlp_bias=architecture == "swiglu_bias", **common_,
        )
    )  # fmt: skip
