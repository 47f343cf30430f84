"""The last block of a transformers model at the ends of sequences alone.

Where only the answers at the ends are asked for, its other places are needed for keys and values and nothing else: of
its work they are most, and of a small model's it is a third or more.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from signflip.organisms.weights import blocks_of


def last_block(model: Any, stream: Tensor, end: Tensor) -> Tensor:
    """What the head reads at the end of each sequence, by the parts of the model (hooks on its MLP and norms act).

    Parameters
    ----------
    model
        A GPT-2 or a Llama of transformers, with any head.
    stream
        The residual stream in front of the last block, `[n, length, d_model]`.
    end
        Where each sequence ends, `[n]`. What is behind it is padding.

    Returns
    -------
    Tensor
        `[n, d_model]`, normalised.
    """
    body, gpt2 = model.base_model, model.config.model_type == "gpt2"
    block = blocks_of(model)[-1]
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    rows, places = torch.arange(len(stream)), torch.arange(stream.shape[1])
    if gpt2:
        attention, reader, final = block.attn, block.ln_2, body.ln_f
        q, k, v = attention.c_attn(block.ln_1(stream)).split(width, -1)
    else:
        attention, reader, final = block.self_attn, block.post_attention_layernorm, body.norm
        normed = block.input_layernorm(stream)
        q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    q, k, v = (one.unflatten(-1, (heads, -1)) for one in (q, k, v))
    if not gpt2:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        cos, sin = body.rotary_emb(stream, position_ids=places[None])
        q, k = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    scores = (q[rows, end][:, None] * k).sum(-1) / math.sqrt(width // heads)
    weights = scores.masked_fill((places > end[:, None])[..., None], -torch.inf).softmax(1)
    mixed = (weights[..., None] * v).sum(1).flatten(1)
    found = stream[rows, end] + (attention.c_proj if gpt2 else attention.o_proj)(mixed)
    out: Tensor = final(found + block.mlp(reader(found)))
    return out


__all__ = ["last_block"]
