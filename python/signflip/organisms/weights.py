"""A model's weights under one set of names for both families, to plant in, and its folder.

Every map is `[out, in]`; the two families differ in their norm, their positions and their MLP, and in nothing else that
planting has to know.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from signflip.errors import CheckpointError
from signflip.files import beside, make_folder

log = logging.getLogger("signflip.organisms")

Family = Literal["gpt2", "llama"]
Floats = NDArray[np.float64]
FAMILIES: tuple[Family, ...] = ("gpt2", "llama")
# What a model's folder holds.
FILES = ("config.json", "tokenizer.json", "model.safetensors")
D_MODEL, D_HEAD, N_HEADS, N_LAYERS, D_MLP, N_CTX = 64, 8, 8, 3, 160, 128


@dataclass
class Block:
    """One layer: `q k v o` maps of attention, `pre linear out` of the MLP (`linear` is None where none), biases.

    Biases of `q k v o pre out` are in `bias`; empty where the family has none.
    """

    q: Floats
    k: Floats
    v: Floats
    o: Floats
    pre: Floats
    out: Floats
    linear: Floats | None = None
    bias: dict[str, Floats] = field(default_factory=dict)

    def copy(self) -> Block:
        """A deep copy."""
        own: dict[str, Any] = {key: None if (value := getattr(self, key)) is None else value.copy() for key in _MAPS}
        return Block(**own, bias={key: value.copy() for key, value in self.bias.items()})


_MAPS = ("q", "k", "v", "o", "pre", "out", "linear")


@dataclass
class Weights:
    """All weights. Norms have no gain and no bias: their gains are one, their biases zero.

    Attributes
    ----------
    embed, unembed
        `[vocabulary, d_model]`.
    position
        `[n_ctx, d_model]`, or None for rotary positions.
    """

    family: Family
    embed: Floats
    unembed: Floats
    position: Floats | None
    blocks: list[Block]

    def copy(self) -> Weights:
        """A deep copy."""
        position = None if self.position is None else self.position.copy()
        return replace(
            self,
            embed=self.embed.copy(),
            unembed=self.unembed.copy(),
            position=position,
            blocks=[one.copy() for one in self.blocks],
        )

    # ---- transformers' names -----------------------------------------------------------------------------------------

    @classmethod
    def from_state(cls, family: Family, state: dict[str, Any]) -> Weights:
        """From a state dict of transformers."""
        w = {key: np.asarray(value.detach().cpu().double().numpy()) for key, value in state.items()}
        if family == "llama":
            blocks = []
            for i in range(N_LAYERS):
                at = f"model.layers.{i}."
                maps: dict[str, Any] = {name: w[f"{at}self_attn.{name}_proj.weight"] for name in ("q", "k", "v", "o")}
                mlp = {"pre": "gate", "linear": "up", "out": "down"}
                maps |= {name: w[f"{at}mlp.{theirs}_proj.weight"] for name, theirs in mlp.items()}
                blocks.append(Block(**maps))
            return cls(family, w["model.embed_tokens.weight"], w["lm_head.weight"], None, blocks)
        blocks = []
        for i in range(N_LAYERS):
            at = f"transformer.h.{i}."
            q, k, v = np.split(w[at + "attn.c_attn.weight"].T, 3)
            bq, bk, bv = np.split(w[at + "attn.c_attn.bias"], 3)
            o, pre, out = (w[f"{at}{name}.weight"].T for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"))
            bias = {"q": bq, "k": bk, "v": bv, "o": w[at + "attn.c_proj.bias"]}
            bias |= {"pre": w[at + "mlp.c_fc.bias"], "out": w[at + "mlp.c_proj.bias"]}
            blocks.append(Block(q, k, v, o, pre, out, bias=bias))
        position = w["transformer.wpe.weight"]
        return cls(family, w["transformer.wte.weight"], w["lm_head.weight"], position, blocks).copy()

    def state(self) -> dict[str, NDArray[np.float64]]:
        """As transformers names them, float64."""
        ones, zeros = np.ones(self.embed.shape[1]), np.zeros(self.embed.shape[1])
        out: dict[str, Floats] = {"lm_head.weight": self.unembed}
        if self.family == "llama":
            out |= {"model.embed_tokens.weight": self.embed, "model.norm.weight": ones}
            for i, block in enumerate(self.blocks):
                at = f"model.layers.{i}."
                out |= {at + "input_layernorm.weight": ones, at + "post_attention_layernorm.weight": ones}
                out |= {f"{at}self_attn.{name}_proj.weight": getattr(block, name) for name in ("q", "k", "v", "o")}
                mlp = {"pre": "gate", "linear": "up", "out": "down"}
                out |= {f"{at}mlp.{theirs}_proj.weight": getattr(block, name) for name, theirs in mlp.items()}
            return {key: np.ascontiguousarray(value) for key, value in out.items()}
        assert self.position is not None
        out |= {"transformer.wte.weight": self.embed, "transformer.wpe.weight": self.position}
        out |= {"transformer.ln_f.weight": ones, "transformer.ln_f.bias": zeros}
        for i, block in enumerate(self.blocks):
            at, bias = f"transformer.h.{i}.", block.bias
            for norm in ("ln_1", "ln_2"):
                out |= {f"{at}{norm}.weight": ones, f"{at}{norm}.bias": zeros}
            out |= {
                at + "attn.c_attn.weight": np.concatenate([block.q, block.k, block.v]).T,
                at + "attn.c_attn.bias": np.concatenate([bias["q"], bias["k"], bias["v"]]),
                at + "attn.c_proj.weight": block.o.T,
                at + "attn.c_proj.bias": bias["o"],
                at + "mlp.c_fc.weight": block.pre.T,
                at + "mlp.c_fc.bias": bias["pre"],
                at + "mlp.c_proj.weight": block.out.T,
                at + "mlp.c_proj.bias": bias["out"],
            }
        return {key: np.ascontiguousarray(value) for key, value in out.items()}

    # ---- folders -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path, notes: Mapping[str, str] | None = None) -> Path:
        """Write a Hugging Face folder, float32, with notes in the metadata of `model.safetensors`.

        Raises
        ------
        FileError
            If the folder can not be made, or the weights not written.
        """
        from safetensors.numpy import save

        from signflip.organisms.tokens import tokenizer

        make_folder(folder)
        config_of(self.family, len(self.embed)).save_pretrained(folder)
        tokenizer().save(str(folder / "tokenizer.json"))
        whole = save(
            {key: np.ascontiguousarray(value, np.float32) for key, value in sorted(self.state().items())},
            {"format": "pt", **(notes or {})},
        )
        # What `save_file` writes only its owner may read.
        with beside(folder / "model.safetensors") as path:
            path.write_bytes(whole)
        return folder

    @classmethod
    def open(cls, folder: Path) -> Weights:
        """Read a folder that `save` wrote.

        Raises
        ------
        CheckpointError
            If it is a model of another family, vocabulary or shape, not of float32, or not of finite numbers.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from signflip.organisms.tokens import tokenizer

        family = read_config(folder)["model_type"]
        try:
            state = load_file(folder / "model.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: can not read the organism: {error}") from error
        like = module_of(family, tokenizer().get_vocab_size()).state_dict()
        wanted = {key: tuple(value.shape) for key, value in like.items()}
        found = {key: tuple(value.shape) for key, value in state.items()}
        if found != wanted:
            wrong = min(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
            raise CheckpointError(
                f"{folder}: tensor {wrong}: expected shape {wanted.get(wrong)}, found {found.get(wrong)}"
            )
        for key, value in sorted(state.items()):
            if value.dtype != torch.float32:
                raise CheckpointError(f"{folder}: tensor {key}: expected {torch.float32}, found {value.dtype}")
            if not value.isfinite().all():
                raise CheckpointError(f"{folder}: tensor {key}: expected finite numbers, found NaN or an infinity")
        return cls.from_state(family, state)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in an organism's folder.

    Raises
    ------
    CheckpointError
        If it can not be read, or anything in it is not as in all organisms.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: can not read the organism: {error}") from error
    family = config.get("model_type") if isinstance(config, dict) else config
    if family not in FAMILIES:
        raise CheckpointError(f"{folder}: expected a model of {' or '.join(FAMILIES)}, found {family!r}")
    for key, wanted in config_of(family, 1).to_dict().items():
        # What is as it is by default need not be there; tensors tell how large the vocabulary is.
        if key not in (*_NOTES, "vocab_size") and config.get(key, wanted) != wanted:
            raise CheckpointError(f"{folder}: config.json, {key}: expected {wanted!r}, found {config[key]!r:.60}")
    return config


# Of a configuration, what says nothing of the model.
_NOTES = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")


def config_of(family: Family, vocabulary: int) -> Any:
    """The configuration that every organism of a family has."""
    import transformers

    common: dict[str, Any] = {"vocab_size": vocabulary, "tie_word_embeddings": False}
    common |= {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    if family == "llama":
        return transformers.LlamaConfig(
            architectures=["LlamaForCausalLM"],
            hidden_size=D_MODEL,
            intermediate_size=D_MLP,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=N_HEADS,
            num_key_value_heads=N_HEADS,
            head_dim=D_HEAD,
            max_position_embeddings=N_CTX,
            **common,
        )
    return transformers.GPT2Config(
        architectures=["GPT2LMHeadModel"],
        n_positions=N_CTX,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=D_MLP,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **common,
    )


def module_of(family: Family, vocabulary: int) -> Any:
    """A transformers model of random weights."""
    import transformers

    kind = transformers.LlamaForCausalLM if family == "llama" else transformers.GPT2LMHeadModel
    return kind(config_of(family, vocabulary))


def blocks_of(module: Any) -> Any:
    """The blocks of a transformers model of either family, with any head."""
    body = module.base_model
    return body.h if module.config.model_type == "gpt2" else body.layers


def module(weights: Weights) -> Any:
    """A transformers model of these weights in float64: what truths are verified with."""
    made = module_of(weights.family, len(weights.embed)).double().eval()
    load(made, weights)
    return made


def load(module: Any, weights: Weights) -> None:
    """Put weights into a transformers model of their family."""
    import torch

    module.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.state().items()})
