"""What hypothesis draws: shapes of tiny models, most of them odd, and token sequences for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers
from hypothesis import strategies as st

ACTS = ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]


@st.composite
def llama_configs(draw: st.DrawFn) -> transformers.LlamaConfig:
    """Grouped heads, head widths of their own, odd widths, biases, tied and untied, plain and scaled rotary."""
    n_kv = draw(st.integers(1, 3))
    n_heads = n_kv * draw(st.integers(1, 3))
    ropes: list[dict[str, Any]] = [
        {"rope_type": "default", "rope_theta": draw(st.sampled_from([100.0, 10000.0, 500000.0]))},
        {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ]
    return transformers.LlamaConfig(
        vocab_size=draw(st.integers(29, 67)),
        hidden_size=n_heads * draw(st.integers(-(-7 // n_heads), -(-7 // n_heads) + 7)),
        intermediate_size=draw(st.integers(3, 53)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv,
        head_dim=2 * draw(st.integers(1, 9)),
        hidden_act=draw(st.sampled_from(ACTS)),
        max_position_embeddings=draw(st.sampled_from([32, 33, 64])),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        rope_parameters=draw(st.sampled_from(ropes)),
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
    )


@st.composite
def gpt2_configs(draw: st.DrawFn) -> transformers.GPT2Config:
    """Odd head widths, an MLP of any width, tied and untied, scale variants."""
    n_head = draw(st.integers(1, 4))
    return transformers.GPT2Config(
        vocab_size=draw(st.integers(29, 67)),
        n_positions=draw(st.sampled_from([32, 33, 64])),
        n_embd=n_head * draw(st.integers(-(-7 // n_head), 11)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_inner=draw(st.one_of(st.none(), st.integers(3, 53))),
        activation_function=draw(st.sampled_from(ACTS)),
        layer_norm_epsilon=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        scale_attn_weights=draw(st.booleans()),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
    )


configs = st.one_of(llama_configs(), gpt2_configs())


@st.composite
def sequences(draw: st.DrawFn, vocab: int, n: int = 5, longest: int = 32) -> list[list[int]]:
    """`n` ragged sequences of ids, one of them long: an error needs a pool of some size to be an average."""
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    lengths = [longest, *rng.integers(1, longest + 1, size=n - 1)]
    return [rng.integers(0, vocab, size=length).tolist() for length in lengths]
