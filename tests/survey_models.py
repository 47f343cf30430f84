"""Small random models with a sink, and documents, for tests of surveys and of reach."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

import signflip as sf
from survey_run import documents

VOCAB = 60


def write_tokenizer(folder: Path) -> None:
    """Lower-case letters and the space, behind a BOS of id 0."""
    vocab = {token: i for i, token in enumerate(["<s>", "<unk>", *" abcdefghijklmnopqrstuvwxyz\n"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))


def peer(kind: str) -> Any:
    """A random model of transformers'."""
    torch.manual_seed(3)
    if kind == "llama":
        config: Any = transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=24,
            # Several strips of columns, the last one short.
            intermediate_size=261,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        model: Any = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=20, n_inner=70, n_layer=2, n_head=2, n_positions=64)
        model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 or "norm" not in name else 0.2)
            parameter.copy_(1 + spread if name.split(".")[-2].startswith(("ln_", "norm")) else spread)
        embed = model.get_input_embeddings().weight
        # Token 5 is an attention sink from the first layer on.
        embed[5] *= 60
    return model.eval()


def make(kind: str, folder: Path) -> tuple[Any, sf.Model, Path]:
    """transformers' model, signflip's, and the folder."""
    model = peer(kind)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model, sf.load(folder), folder


DOCS = [
    [3, 4, 9],
    list(range(50)),
    [5, 7, 5, 8, 9, 10, 11, 12, 13, 14],
    [11] * 20,
    [8],
    *itertools.islice(documents(), 12),
]
