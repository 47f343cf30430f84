"""Small GGUF files, written by the gguf package with names and layouts as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import tokenizers
import tokenizers.trainers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers


def byte_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


class Writer:
    """A small GGUF file, written by the gguf package with names and layouts as llama.cpp's converter writes them."""

    def __init__(self, path: Path, arch: str) -> None:
        self.path = path
        self.writer = gguf.GGUFWriter(path, arch)

    def add_tensor(
        self, name: str, value: torch.Tensor | np.ndarray, kind: gguf.GGMLQuantizationType | None = None
    ) -> None:
        array = np.ascontiguousarray(value.detach().numpy() if isinstance(value, torch.Tensor) else value)
        if kind is None:
            self.writer.add_tensor(name, array)
        else:
            self.writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)

    def add_tokenizer(self, pre: str | None = "gpt-2", **flags: bool) -> None:
        tokens = [*byte_alphabet(), "ab", "Ġa", "12", "<s>", "</s>", "<user>"]
        self.writer.add_tokenizer_model("gpt2")
        if pre is not None:
            self.writer.add_tokenizer_pre(pre)
        self.writer.add_token_list(tokens)
        self.writer.add_token_types([1] * (len(tokens) - 3) + [3, 3, 4])
        self.writer.add_token_merges(["a b", "Ġ a", "1 2"])
        self.writer.add_bos_token_id(tokens.index("<s>"))
        self.writer.add_eos_token_id(tokens.index("</s>"))
        if "bos" in flags:
            self.writer.add_add_bos_token(flags["bos"])
        if "eos" in flags:
            self.writer.add_add_eos_token(flags["eos"])

    def close(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's permutation of query and key rows (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


LLAMA_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2_NAMES = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def llama_writer(path: Path, model: transformers.PreTrainedModel) -> Writer:
    config = model.config
    out = Writer(path, "llama")
    out.writer.add_context_length(config.max_position_embeddings)
    out.writer.add_embedding_length(config.hidden_size)
    out.writer.add_block_count(config.num_hidden_layers)
    out.writer.add_feed_forward_length(config.intermediate_size)
    out.writer.add_head_count(config.num_attention_heads)
    out.writer.add_head_count_kv(config.num_key_value_heads)
    out.writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.writer.add_key_length(config.head_dim)
    out.writer.add_value_length(config.head_dim)
    state = model.state_dict()
    for name, value in state.items():
        stem, _, part = name.removeprefix("model.").rpartition(".")
        if stem.startswith("layers."):
            _, layer, inner = stem.split(".", 2)
            if "q_proj" in inner:
                value = permuted(value, config.num_attention_heads)
            if "k_proj" in inner:
                value = permuted(value, config.num_key_value_heads)
            out.add_tensor(f"blk.{layer}.{LLAMA_NAMES[inner]}.{part}", value)
        elif stem != "lm_head" or not config.tie_word_embeddings:
            out.add_tensor(
                f"{ {'embed_tokens': 'token_embd', 'norm': 'output_norm', 'lm_head': 'output'}[stem] }.{part}", value
            )
    return out


def gpt2_writer(path: Path, model: transformers.PreTrainedModel) -> Writer:
    config = model.config
    out = Writer(path, "gpt2")
    out.writer.add_context_length(config.n_positions)
    out.writer.add_embedding_length(config.n_embd)
    out.writer.add_block_count(config.n_layer)
    out.writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    out.writer.add_head_count(config.n_head)
    out.writer.add_layer_norm_eps(config.layer_norm_epsilon)
    for name, value in model.state_dict().items():
        stem, _, part = name.removeprefix("transformer.").rpartition(".")
        if stem.startswith("h."):
            _, layer, inner = stem.split(".", 2)
            value = value.T if value.ndim == 2 else value
            out.add_tensor(f"blk.{layer}.{GPT2_NAMES[inner]}.{part}", value)
        elif stem != "lm_head":
            out.add_tensor(
                f"{ {'wte': 'token_embd', 'wpe': 'position_embd', 'ln_f': 'output_norm'}[stem] }.{part}", value
            )
    return out


def by_hand(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], special: list[str], digits: bool
) -> tokenizers.Tokenizer:
    """What the rebuilt tokenizer is to be, put together from parts."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer
