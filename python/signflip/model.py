"""A loaded model: tokens, forward passes with reads, edits and hooks, generation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signflip import generation, hooks, planning
from signflip.cache import ActivationCache, full_name, get_act_name
from signflip.checks import integer, listed
from signflip.edits import Edit, PerSequence
from signflip.errors import ArgumentError, SiteError, TokenError, TokenizerError
from signflip.hooks import Hook
from signflip.objectives import Objective
from signflip.reads import Logits, LogProb, Project, Read, Values
from signflip.sequences import parse, stack

__all__ = [
    "ActivationCache",
    "Config",
    "LogProb",
    "Logits",
    "Model",
    "PerSequence",
    "Project",
    "Read",
    "Values",
    "get_act_name",
]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Config:
    """The architecture, in TransformerLens' words."""

    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_vocab: int
    n_ctx: int
    family: str
    act_fn: str
    gated_mlp: bool
    normalization: str
    num_labels: int | None


class Model:
    """A language or reward model on a device. Made by `signflip.load`.

    Weights are the checkpoint's own: nothing is folded or centred. Ids given as ids are run as they are.
    """

    def __init__(self, core: Any, parts: Any, device: str, dtype: str) -> None:
        self._core = core
        self._parts = parts
        self.device = device
        self.dtype = dtype
        self.tokenizer = parts.tokenizer
        self.name: str = parts.name
        spec = json.loads(core.spec())
        head = spec["head"]
        self.cfg = Config(
            **{key: spec[key] for key in Config.__annotations__ if key in spec},
            gated_mlp=spec["gated"],
            normalization={"layer": "LN", "rms": "RMS"}[spec["norm"]],
            num_labels=head["reward"]["labels"] if isinstance(head, dict) else None,
        )
        self._pad = head["reward"]["pad"] if isinstance(head, dict) else None
        self._hash: str | None = None

    def __repr__(self) -> str:
        c = self.cfg
        kind = "reward model" if c.num_labels else "model"
        return (
            f"<signflip {kind} {self.name}: {c.family}, {c.n_layers} layers, d_model {c.d_model}, d_mlp {c.d_mlp}, "
            f"{c.n_heads} heads, vocabulary {c.d_vocab}, {self.device} {self.dtype}>"
        )

    @property
    def hash(self) -> str:
        """SHA-256 over the names and contents of the checkpoint's files, in hexadecimal."""
        if self._hash is None:
            from signflip.loading import model_hash

            self._hash = model_hash(self._parts.files)
        return self._hash

    # ------------------------------------------------------------------ tokens

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise TokenizerError(f"tokenizer: {self.name} has none, so text cannot be used; give token ids")
        return self.tokenizer

    def to_tokens(self, text: str | Sequence[str]) -> Any:
        """Token ids of a text, with the tokenizer's own BOS (if it adds one); special tokens in the text are parsed.

        Returns
        -------
        int64 array `[1, pos]`, or for a list of texts `[batch, pos]`, or a list of `[pos]` where lengths differ.
        """
        tokenizer = self._need_tokenizer()
        if isinstance(text, str):
            return np.asarray(tokenizer.encode(text), np.int64)[None]
        if not isinstance(text, Sequence) or not all(isinstance(one, str) for one in text):
            raise TokenError(f"tokens: expected a text or a list of texts, found {text!r}")
        ids = [np.asarray(one, np.int64) for one in tokenizer.encode_batch(list(text))]
        return np.stack(ids) if ids and len({len(one) for one in ids}) == 1 else ids

    def to_string(self, tokens: Any) -> Any:
        """The text of token ids `[pos]` or `[1, pos]`, special tokens included; a list of texts for more sequences."""
        tokenizer = self._need_tokenizer()
        if isinstance(tokens, (int, np.integer)):
            tokens = [int(tokens)]
        sequences, single = parse(self, tokens, check=False)
        texts = [str(tokenizer.decode(sequence)) for sequence in sequences]
        return texts[0] if single or len(texts) == 1 else texts

    def to_str_tokens(self, text_or_tokens: Any) -> Any:
        """The text of each token on its own: list of str, or a list of lists for more sequences."""
        tokenizer = self._need_tokenizer()
        sequences, single = parse(self, text_or_tokens, check=False)
        pieces = [[str(tokenizer.decode([token])) for token in sequence] for sequence in sequences]
        return pieces[0] if single or len(pieces) == 1 else pieces

    def to_chat(self, messages: str | Sequence[Mapping[str, str]], prefill: str = "") -> str:
        """A conversation in the model's own template, up to the start of the answer, and `prefill`.

        Parameters
        ----------
        messages
            `{"role": ..., "content": ...}` each; a text is one user message.
        prefill
            Put after the template's generation prompt.

        Raises
        ------
        TokenizerError
            If the model has no chat template.
        """
        from signflip import chat

        if self._parts.chat_template is None:
            raise TokenizerError(f"tokenizer: {self.name} has no chat template")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return chat.render(
            self._parts.chat_template,
            messages,
            prefill=prefill,
            bos_token=self._parts.bos_token or "",
            eos_token=self._parts.eos_token or "",
        )

    def as_sequences(self, tokens: Any) -> list[list[int]]:
        """Any accepted form of tokens or text as a list of lists of ids, checked against the vocabulary and context.

        Raises
        ------
        TokenError
            For ids outside the vocabulary, or nothing at all.
        """
        return parse(self, tokens)[0]

    # ------------------------------------------------------------------ sites

    def sites(self) -> list[str]:
        """Every site's name, in forward order."""
        return list(self._core.sites())

    def site_width(self, site: str) -> int:
        """Values a token at a site (heads flattened).

        Raises
        ------
        SiteError
            If the model has no such site; the message names the nearest.
        """
        return int(self._core.site(site)[2])

    def read(
        self,
        sequences: Any,
        reads: Sequence[Read],
        variants: Sequence[Sequence[Edit]] = ((),),
    ) -> list[list[list[Floats]]]:
        """Read values of many sequences under many edit sets in as little work as possible.

        Prefixes are shared, edits join the sweep at their lowest layer, and computation stops at the deepest read. No
        result depends on any of that.

        Parameters
        ----------
        sequences
            Tokens or text, ragged allowed.
        reads
            What to read, of each sequence and variant.
        variants
            Edit sets; an empty one is the clean model.

        Returns
        -------
        list
            `out[variant][read][sequence]`, float32.
        """
        return planning.read(self, self.as_sequences(sequences), reads, variants)

    # ------------------------------------------------------------------ forward passes

    def run(self, tokens: Any, edits: Sequence[Edit] = ()) -> Any:
        """Next-token logits.

        Parameters
        ----------
        tokens
            Text, ids, lists of ids (ragged allowed) or an integer array.
        edits
            Applied in order.

        Returns
        -------
        float32 array `[batch, pos, d_vocab]`; a list of `[pos, d_vocab]` where lengths differ.
        """
        self._need_unembedding("run")
        ((logits,),) = self.read(tokens, [Logits(None)], [listed("edits", edits, "a list of Edit")])
        return stack(logits)

    def reward(self, tokens: Any, edits: Sequence[Edit] = ()) -> Floats:
        """The outputs of a reward (sequence-classification) head, read at the last token that is not padding.

        Returns
        -------
        float32 array `[batch, num_labels]`.

        Raises
        ------
        ArgumentError
            If the model has no such head.
        """
        if self.cfg.num_labels is None:
            raise ArgumentError(f"reward: expected a reward model, found the language model {self.name}")
        sequences = self.as_sequences(tokens)
        last = PerSequence([[self.pooled_position(sequence)] for sequence in sequences])
        ((values,),) = self.read(sequences, [Logits(last)], [listed("edits", edits, "a list of Edit")])
        return np.stack([one[0] for one in values])

    def pooled_position(self, sequence: Sequence[int]) -> int:
        """The position at which a reward head reads a sequence: the last that is not padding, else the first."""
        kept = [p for p, token in enumerate(sequence) if token != self._pad]
        if self._pad is None:
            return len(sequence) - 1
        return kept[-1] if kept else 0

    def _need_unembedding(self, what: str) -> None:
        if self.cfg.num_labels is not None:
            raise ArgumentError(f"{what}: expected a language model, found the reward model {self.name}: use reward()")

    def _filter(self, names_filter: str | Sequence[str] | Callable[[str], bool] | None) -> list[str]:
        names = self.sites()
        if names_filter is None:
            return names
        if isinstance(names_filter, str):
            names_filter = [names_filter]
        if callable(names_filter):
            chosen = [name for name in names if names_filter(name)]
            if not chosen:
                raise SiteError("site: names_filter lets none of the model's sites through")
            return chosen
        chosen = []
        for name in listed("names_filter", names_filter, "a name, a list of names or a function"):
            chosen.append(full_name(name))
        for name in chosen:
            self._core.site(name)
        return chosen

    def run_with_cache(
        self,
        tokens: Any,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        edits: Sequence[Edit] = (),
        stop_at_layer: int | None = None,
    ) -> tuple[Any, ActivationCache]:
        """Logits, and the values (after edits) of the sites that `names_filter` lets through.

        Parameters
        ----------
        tokens
            As for `run`.
        names_filter
            A name, a list of names, or a function of a name; all sites by default.
        edits
            Applied in order.
        stop_at_layer
            Stop before this layer (negative from the end) and return the residual that would enter it,
            `[batch, pos, d_model]`, instead of logits. Sites from there on are then not computed: naming one is an
            error, and a function or the default leaves them out.

        Returns
        -------
        (logits or residual, ActivationCache)
            Cached arrays are `[batch, pos, width]`, `[batch, pos, head, d_head]` or, for `attn.hook_pattern`,
            `[batch, head, q, k]`; lists of arrays without the batch axis where lengths differ.
        """
        sequences = self.as_sequences(tokens)
        names = self._filter(names_filter)
        edits = listed("edits", edits, "a list of Edit")
        final: Read
        if stop_at_layer is None:
            self._need_unembedding("run_with_cache")
            final = Logits(None)
        else:
            n = self.cfg.n_layers
            stop_at_layer = integer("stop_at_layer", stop_at_layer, -n, n)
            stop = stop_at_layer + n if stop_at_layer < 0 else stop_at_layer
            order = {name: i for i, name in enumerate(self.sites())}
            end = f"blocks.{stop}.hook_resid_pre" if stop < n else f"blocks.{n - 1}.hook_resid_post"
            within = [name for name in names if order[name] < order[end] or (stop == n and name == end)]
            if isinstance(names_filter, (str, list, tuple)) and len(within) < len(names):
                beyond = next(name for name in names if name not in within)
                raise SiteError(f"site {beyond!r}: is not computed before layer {stop_at_layer}")
            for edit in edits:
                if isinstance(edit, Edit) and order.get(edit.site, -1) > order[end]:
                    raise SiteError(f"site {edit.site!r}: an edit there cannot fire before layer {stop_at_layer}")
            names, final = within, Values(end)
        out = self.read(sequences, [final, *(Values(name) for name in names)], [edits])[0]
        values = {name: self.site_array(name, arrays) for name, arrays in zip(names, out[1:], strict=True)}
        return stack(out[0]), ActivationCache(values)

    def site_array(self, name: str, arrays: list[Floats]) -> Any:
        """Values of a site as read, `[pos, width]` a sequence, in the form that `run_with_cache` gives them."""
        _, heads, _ = self._core.site(name)
        shaped = []
        for array in arrays:
            if heads is None:
                shaped.append(array)
            elif name.endswith("hook_pattern"):
                shaped.append(np.ascontiguousarray(array.reshape(len(array), heads, -1).transpose(1, 0, 2)))
            else:
                shaped.append(array.reshape(len(array), heads, -1))
        return stack(shaped)

    def run_with_hooks(self, tokens: Any, fwd_hooks: Sequence[tuple[str | Callable[[str], bool], Hook]]) -> Any:
        """Logits of a pass in which functions see, and may change, the values of sites.

        Parameters
        ----------
        tokens
            As for `run`. Sequences of different lengths run one by one.
        fwd_hooks
            `(name, fn)`, where `name` may be a function of a name; `fn(act, hook)` returns a new array of the same
            shape, or None. Functions at one site run in the order given. They live for this call.

        Raises
        ------
        SiteError
            If a hook can not fire.
        ArgumentError
            If a hook returns another shape.
        """
        self._need_unembedding("run_with_hooks")
        sequences = self.as_sequences(tokens)
        functions: dict[str, list[Hook]] = {}
        for entry in listed("fwd_hooks", fwd_hooks, "a list of (name, function)"):
            if not isinstance(entry, (tuple, list)) or len(entry) != 2 or not callable(entry[1]):
                raise ArgumentError(f"fwd_hooks: expected (name, function), found {entry!r}")
            name, function = entry
            for site in self._filter(name if callable(name) else [name]):
                functions.setdefault(site, []).append(function)
        return hooks.run(self, sequences, functions)

    # ------------------------------------------------------------------ objectives

    def score(self, token_lists: Any, objective: Objective | Sequence[Objective]) -> Floats:
        """The objective of each sequence (one of all, or one each), `[n]`: see `signflip.scoring.score`."""
        from signflip import scoring

        return scoring.score(self, token_lists, objective)

    def gradient(
        self, tokens: Any, objective: Objective, wrt: str | Sequence[str] = ("hook_embed",)
    ) -> tuple[Any, dict[str, Any]]:
        """An objective's value, and its derivative by sites: see `signflip.scoring.gradient`."""
        from signflip import scoring

        names = [wrt] if isinstance(wrt, str) else listed("wrt", wrt, "a site's name or a list of them")
        if not all(isinstance(name, str) for name in names):
            raise SiteError(f"wrt: expected names of sites, found {wrt!r}")
        return scoring.gradient(self, tokens, objective, names)

    # ------------------------------------------------------------------ generation

    def generate(
        self,
        tokens: Any,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        edits: Sequence[Edit] = (),
        stop_at_eos: bool = True,
    ) -> Any:
        """Continue sequences.

        Parameters
        ----------
        tokens
            As for `run`.
        max_new_tokens
            At most this many.
        temperature
            0 takes the most likely token (the lowest id on a tie); else samples from softmax(logits / temperature).
        top_k
            Sample among the k most likely only.
        seed
            Fixes the draws: sequence i, step t uses its own stream, whatever else is in the batch.
        edits
            Applied at all positions they name; positions must be all (the default), since a list could not follow a
            growing sequence.
        stop_at_eos
            End a sequence after the tokenizer's end-of-text token.

        Returns
        -------
        int64 array `[batch, pos]`, prompts included; a list of `[pos]` where lengths differ.
        """
        self._need_unembedding("generate")
        max_new_tokens = integer("max_new_tokens", max_new_tokens, 0)
        seed = integer("seed", seed, 0, 2**64 - 1)
        try:
            degrees = float(temperature) if not isinstance(temperature, str) else np.nan
        except (TypeError, ValueError, OverflowError):
            degrees = np.nan
        if not degrees >= 0 or not np.isfinite(degrees):
            raise ArgumentError(f"temperature: expected a number of at least 0, found {temperature!r}")
        if top_k is not None:
            top_k = integer("top_k", top_k, 1)
        sampling = generation.Sampling(degrees, top_k, seed)
        edits = listed("edits", edits, "a list of Edit")
        stop_ids = set(self._parts.stop_ids) if stop_at_eos else set()
        ids = generation.generate(self, self.as_sequences(tokens), max_new_tokens, sampling, edits, stop_ids)
        return _stack_ids(ids)


def _stack_ids(ids: list[list[int]]) -> Any:
    arrays = [np.asarray(one, np.int64) for one in ids]
    return np.stack(arrays) if len({len(one) for one in arrays}) == 1 else arrays
