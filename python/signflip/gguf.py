"""GGUF files: weights dequantised a tensor at a time, config rebuilt from the metadata.

Names and layouts of GGUF are turned into those of Hugging Face checkpoints, which the families of the core read:
matrices of GPT-2 back to ``[in, out]``, query and key rows of Llama back from interleaved to half-split rotary order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from signflip import _core
from signflip.errors import CheckpointError, FileError, UnsupportedModelError

Array = npt.NDArray[np.float32]

_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GPT2_BLOCK = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
# Stored [out, in] in GGUF, [in, out] in GPT-2's own checkpoints.
_GPT2_TRANSPOSED = {"attn_qkv", "attn_output", "ffn_up", "ffn_down"}
# Options of other models under the name of a supported one, that would change the forward pass.
_REFUSED = (
    "expert_count",
    "attention.sliding_window",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "use_parallel_residual",
)


class _Reader(gguf.GGUFReader):
    """The package's reader, with bounds and from plain memory.

    The package's own goes on with empty values through a header that lies about what follows, and slices a memory map
    for every value, which makes opening a file several times as slow.
    """

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        offset, count, dtype = int(offset), int(count), np.dtype(dtype)
        end = offset + count * dtype.itemsize
        if end > len(self.data):
            raise ValueError(f"expected at least {end} bytes, found {len(self.data)}")
        order = self.byte_order if override_order is None else override_order
        return np.frombuffer(self.data, dtype.newbyteorder(order), count, offset)


class GgufFile:
    """An opened GGUF file.

    Parameters
    ----------
    path
        The file; it stays memory-mapped.

    Raises
    ------
    FileError
        If the file cannot be read.
    CheckpointError
        If it is no GGUF file, is truncated, or its header lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = _Reader(path)
        except OSError as err:
            raise FileError(f"{path}: {err.strerror or err}") from err
        except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError) as err:
            raise CheckpointError(f"checkpoint {path}: expected a whole GGUF file: {err}") from err
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        architecture = self.value("general.architecture", str)
        if architecture not in ("llama", "gpt2"):
            raise UnsupportedModelError(
                f"unsupported model: GGUF architecture {architecture!r}; supported: llama, gpt2"
            )
        self.architecture: str = architecture

    def value(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """One entry of the metadata, or `default` where there is none.

        Raises
        ------
        CheckpointError
            If the entry is not of the given kind.
        """
        field = self._reader.fields.get(key)
        if field is None:
            return default
        try:
            found = field.contents()
        except (ValueError, LookupError, TypeError) as err:
            raise CheckpointError(f"checkpoint {self.path}: metadata {key}: {err}") from err
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            expected = " or ".join(each.__name__ for each in kinds)
            raise CheckpointError(
                f"checkpoint {self.path}: metadata {key}: expected {expected}, found {str(found)[:60]!r}"
            )
        return found

    def required(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """One entry of the metadata.

        Raises
        ------
        CheckpointError
            If there is none, or it is not of the given kind.
        """
        found = self.value(key, kind)
        if found is None:
            raise CheckpointError(f"checkpoint {self.path}: expected metadata {key}, found none")
        return found

    def config(self) -> dict[str, Any]:
        """The ``config.json`` that a Hugging Face checkpoint of this model would have.

        Raises
        ------
        CheckpointError
            If an entry is missing or cannot be.
        UnsupportedModelError
            If the file asks for something that the engine does not build.
        """
        arch = self.architecture
        for key in _REFUSED:
            if found := self.value(f"{arch}.{key}", (int, float, bool, list)):
                raise UnsupportedModelError(f"unsupported model: GGUF {arch}.{key} = {found}; supported: without it")
        if self.value(f"{arch}.attention.causal", bool, True) is False:
            raise UnsupportedModelError("unsupported model: attention that is not causal; supported: causal attention")
        width = self.required(f"{arch}.embedding_length", int)
        heads = self._per_model(f"{arch}.attention.head_count")
        if "token_embd.weight" not in self._tensors:
            raise CheckpointError(f"checkpoint {self.path}: expected a tensor token_embd.weight, found none")
        common = {
            "model_type": arch,
            "vocab_size": self._shape("token_embd.weight")[0],
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "bos_token_id": self.value("tokenizer.ggml.bos_token_id", int),
            "eos_token_id": self.value("tokenizer.ggml.eos_token_id", int),
        }
        if arch == "gpt2":
            return common | {
                "n_embd": width,
                "n_head": heads,
                "n_layer": self.required("gpt2.block_count", int),
                "n_positions": self.required("gpt2.context_length", int),
                "n_inner": self.value("gpt2.feed_forward_length", int),
                "layer_norm_epsilon": self.required("gpt2.attention.layer_norm_epsilon", float),
                "activation_function": "gelu_new",
            }
        head_dim = self.value("llama.attention.key_length", int)
        if head_dim is None:
            if heads <= 0 or width % heads:
                raise CheckpointError(
                    f"checkpoint {self.path}: metadata llama.embedding_length: expected a multiple of "
                    f"llama.attention.head_count = {heads}, found {width}"
                )
            head_dim = width // heads
        for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
            if (found := self.value(key, int, head_dim)) != head_dim:
                raise UnsupportedModelError(
                    f"unsupported model: {key} = {found} with heads of width {head_dim}; supported: equal widths"
                )
        return common | {
            "hidden_size": width,
            "intermediate_size": self._per_model("llama.feed_forward_length"),
            "num_hidden_layers": self.required("llama.block_count", int),
            "num_attention_heads": heads,
            "num_key_value_heads": self._per_model("llama.attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.required("llama.context_length", int),
            "rms_norm_eps": self.required("llama.attention.layer_norm_rms_epsilon", float),
            "hidden_act": "silu",
            "attention_bias": "blk.0.attn_q.bias" in self._tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in self._tensors,
            "rope_parameters": self._rotary(),
        }

    def _per_model(self, key: str, default: int | None = None) -> int:
        found = self.value(key, (int, list), default)
        if isinstance(found, list):
            if len(set(found)) != 1:
                raise UnsupportedModelError(f"unsupported model: {key} differs by layer; supported: one for all")
            found = found[0]
        if not isinstance(found, int):
            raise CheckpointError(f"checkpoint {self.path}: expected metadata {key}, found none")
        return found

    def _rotary(self) -> dict[str, Any]:
        kind = self.value("llama.rope.scaling.type", str, "none")
        if kind not in ("none", "linear"):
            raise UnsupportedModelError(
                f"unsupported model: GGUF llama.rope.scaling.type = {kind!r}; supported: none, linear"
            )
        factor = self.required("llama.rope.scaling.factor", float) if kind == "linear" else 1.0
        rotary: dict[str, Any] = {"rope_theta": self.value("llama.rope.freq_base", float, 10_000.0)}
        if "rope_freqs.weight" in self._tensors:
            # How GGUF stores Llama 3's scaling: one divisor for each frequency.
            divisors = self._dequantise("rope_freqs.weight").astype(np.float64) * factor
            return rotary | {"rope_type": "factors", "factors": divisors.ravel().tolist()}
        return rotary | ({"rope_type": "linear", "factor": factor} if kind == "linear" else {})

    def checkpoint(self) -> _core.Checkpoint:
        """The model's architecture and weights; a tensor is dequantised when it is read.

        Raises
        ------
        CheckpointError, UnsupportedModelError
            As `config`, and for tensors that are missing, unexpected, of the wrong shape, or quantised in a way that
            the ``gguf`` package does not dequantise.
        """
        config = self.config()
        self._check_types()
        sources: dict[str, tuple[str, Callable[[Array], Array]]] = {}
        shapes: dict[str, list[int]] = {}
        for name in self._tensors:
            if name == "rope_freqs.weight":
                continue
            target, turn = self._translate(name, config)
            sources[target] = (name, turn)
            shape = self._shape(name)
            shapes[target] = shape[::-1] if turn is _transpose else shape

        def get(target: str) -> Array:
            name, turn = sources[target]
            return np.ascontiguousarray(turn(self._dequantise(name)), dtype=np.float32)

        return _core.Checkpoint.from_tensors(json.dumps(config), get, shapes)

    def _translate(self, name: str, config: Mapping[str, Any]) -> tuple[str, Callable[[Array], Array]]:
        """Name of a tensor in a Hugging Face checkpoint, and what turns its layout into that one's."""
        llama = self.architecture == "llama"
        block, outer = (_LLAMA_BLOCK, _LLAMA_OUTER) if llama else (_GPT2_BLOCK, _GPT2_OUTER)
        layers = "model.layers" if llama else "transformer.h"
        inner = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if inner and inner[2] in block:
            turn: Callable[[Array], Array] = _same
            if llama and inner[2] == "attn_q":
                turn = _half_split(config["num_attention_heads"])
            elif llama and inner[2] == "attn_k":
                turn = _half_split(config["num_key_value_heads"])
            elif not llama and inner[2] in _GPT2_TRANSPOSED and inner[3] == "weight":
                turn = _transpose
            return f"{layers}.{inner[1]}.{block[inner[2]]}.{inner[3]}", turn
        stem, _, part = name.rpartition(".")
        if stem in outer and part in ("weight", "bias"):
            return f"{outer[stem]}.{part}", _same
        raise UnsupportedModelError(
            f"unsupported model: GGUF tensor {name!r}, which a {self.architecture} model does not have"
        )

    def _shape(self, name: str) -> list[int]:
        return [int(n) for n in reversed(self._tensors[name].shape)]

    def _dequantise(self, name: str) -> Array:
        tensor = self._tensors[name]
        return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32).reshape(self._shape(name))

    def _check_types(self) -> None:
        """Dequantises one row of each type, so that a type that cannot be is known before any work is done."""
        first = {tensor.tensor_type: tensor for tensor in reversed(self._reader.tensors)}
        for kind, tensor in first.items():
            try:
                gguf.dequantize(tensor.data[:1], kind)
            except (NotImplementedError, ValueError, LookupError) as err:
                raise UnsupportedModelError(
                    f"unsupported model: GGUF tensor {tensor.name!r} of type {kind.name}; supported: the types that "
                    f"the gguf package dequantises"
                ) from err

    def special(self, which: str) -> int | None:
        """Id of the ``bos`` or ``eos`` token, None where the metadata names none that exists."""
        found = self.value(f"tokenizer.ggml.{which}_token_id", int)
        count = len(self.value("tokenizer.ggml.tokens", list, []))
        return found if found is not None and 0 <= found < count else None


def _same(weights: Array) -> Array:
    return weights


def _transpose(weights: Array) -> Array:
    return weights.T


def _half_split(heads: int) -> Callable[[Array], Array]:
    """Rows of query or key maps, from interleaved pairs (GGUF's Llama) to half-split pairs."""

    def turn(weights: Array) -> Array:
        pairs = weights.shape[0] // heads // 2
        return weights.reshape(heads, pairs, 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)

    return turn
