"""A loaded model: tokens, forward passes with reads, edits and hooks, generation."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from signflip import forest
from signflip.checks import integer, listed
from signflip.edits import Edit, PerSequence, Positions, core_values, resolve_columns, resolve_positions
from signflip.errors import ArgumentError, SiteError, TokenError, TokenizerError
from signflip.objectives import Objective

Floats = NDArray[np.float32]
Tokens = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer[Any]]
Hook = Callable[[Floats, Any], "Floats | None"]

# Rows of one engine request: enough for the kernels to be at their best, few enough for the buffers to stay small.
MAX_ROWS = 2048


@dataclass(frozen=True)
class Values:
    """A read of a site: `[positions, columns]` a sequence."""

    site: str
    positions: Positions = None
    columns: Sequence[int] | None = None


@dataclass(frozen=True)
class Project:
    """A read of a site along a vector: `[positions]` a sequence."""

    site: str
    positions: Positions
    vector: ArrayLike


@dataclass(frozen=True)
class Logits:
    """A read of next-token logits: `[positions, columns]` a sequence."""

    positions: Positions = -1
    columns: Sequence[int] | PerSequence | None = None


@dataclass(frozen=True)
class LogProb:
    """A read of next-token log-probabilities: `targets[i]` are the tokens that follow the last `len(targets[i])`
    positions of sequence i; `[len(targets[i])]` each.
    """

    targets: Sequence[Sequence[int]]


Read = Values | Project | Logits | LogProb


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


_SHORT = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "normalized": "ln_final.hook_normalized",
    **{name: f"blocks.{{}}.hook_{name}" for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")},
    **{name: f"blocks.{{}}.attn.hook_{name}" for name in ("q", "k", "v", "z", "rot_q", "rot_k", "pattern")},
    **{name: f"blocks.{{}}.mlp.hook_{name}" for name in ("pre", "pre_linear", "post")},
}


def get_act_name(name: str, layer: int | None = None) -> str:
    """The full name of a site from TransformerLens' short form, such as `("post", 5)`.

    Raises
    ------
    SiteError
        If the short name is unknown or lacks its layer.
    """
    if name in _SHORT and ("{}" not in _SHORT[name] or layer is not None):
        return _SHORT[name].format(layer)
    if name.startswith(("hook_", "blocks.", "ln_final.")):
        return name
    raise SiteError(f"site ({name!r}, {layer}): expected a short name of {', '.join(_SHORT)} and a layer")


class ActivationCache(Mapping[str, Any]):
    """Values of sites by name; `cache["blocks.5.mlp.hook_post"]` or `cache["post", 5]`."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str | tuple[str, int]) -> Any:
        name = get_act_name(*key) if isinstance(key, tuple) else get_act_name(key)
        if name not in self._values:
            near = difflib.get_close_matches(name[:256], list(self._values), 4, 0)
            raise SiteError(f"site {name!r}: not in this cache; the nearest there are {', '.join(near) or 'none'}")
        return self._values[name]

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except (SiteError, TypeError):
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ActivationCache of {len(self)} sites"


@dataclass(frozen=True)
class HookPoint:
    """What a hook is told of where it is."""

    name: str

    def layer(self) -> int:
        """The block's index.

        Raises
        ------
        SiteError
            If the site is in no block.
        """
        match = re.match(r"blocks\.(\d+)\.", self.name)
        if match is None:
            raise SiteError(f"site {self.name!r}: is in no block")
        return int(match[1])


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
        ids = [np.asarray(one, np.int64) for one in tokenizer.encode_batch(list(text))]
        return np.stack(ids) if ids and len({len(one) for one in ids}) == 1 else ids

    def to_string(self, tokens: Any) -> Any:
        """The text of token ids `[pos]` or `[1, pos]`, special tokens included; a list of texts for more sequences."""
        tokenizer = self._need_tokenizer()
        if isinstance(tokens, (int, np.integer)):
            tokens = [int(tokens)]
        sequences, single = self._sequences(tokens, check=False)
        texts = [str(tokenizer.decode(sequence)) for sequence in sequences]
        return texts[0] if single or len(texts) == 1 else texts

    def to_str_tokens(self, text_or_tokens: Any) -> Any:
        """The text of each token on its own: list of str, or a list of lists for more sequences."""
        tokenizer = self._need_tokenizer()
        sequences, single = self._sequences(text_or_tokens, check=False)
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
            list(messages),
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
        return self._sequences(tokens)[0]

    def _sequences(self, tokens: Any, check: bool = True) -> tuple[list[list[int]], bool]:
        """The sequences, and whether they were given as one."""
        if isinstance(tokens, str):
            tokens = self.to_tokens(tokens)[0]
        elif isinstance(tokens, (list, tuple)) and tokens and all(isinstance(one, str) for one in tokens):
            tokens = [ids.tolist() for ids in self.to_tokens(tokens)]
        if hasattr(tokens, "detach"):
            tokens = tokens.detach().cpu().numpy()
        if isinstance(tokens, np.ndarray):
            if tokens.dtype.kind not in "iu":
                raise TokenError(f"tokens: expected integer ids, found an array of {tokens.dtype}")
            if tokens.ndim not in (1, 2):
                raise TokenError(f"tokens: expected an array [pos] or [batch, pos], found shape {tokens.shape}")
            tokens = tokens.tolist()
        if not isinstance(tokens, (list, tuple, range)):
            raise TokenError(f"tokens: expected text, ids or lists of ids, found {type(tokens).__name__}")
        rows = list(tokens)
        single = not rows or not isinstance(rows[0], (list, tuple, range, np.ndarray))
        sequences = [self._ids(row) for row in ([rows] if single else rows)]
        if check:
            for i, sequence in enumerate(sequences):
                self._check(i, sequence)
            if not sequences:
                raise TokenError("tokens: expected at least one sequence, found none")
        return sequences, single

    @staticmethod
    def _ids(row: Any) -> list[int]:
        if not isinstance(row, (list, tuple, range, np.ndarray)):
            raise TokenError(f"tokens: expected a list of ids, found {type(row).__name__}")
        ids = []
        for token in row:
            if isinstance(token, (bool, np.bool_)) or not isinstance(token, (int, np.integer)):
                raise TokenError(f"tokens: expected integer ids, found {token!r}")
            ids.append(int(token))
        return ids

    def _check(self, i: int, sequence: list[int]) -> None:
        if not sequence:
            raise TokenError(f"tokens: expected at least one token in sequence {i}, found none")
        wrong = next((token for token in sequence if not 0 <= token < self.cfg.d_vocab), None)
        if wrong is not None:
            raise TokenError(f"tokens: id {wrong} in sequence {i} is outside the vocabulary of {self.cfg.d_vocab} ids")

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

    # ------------------------------------------------------------------ the general read

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
        ids = self.as_sequences(sequences)
        extra = sum(1 for edits in variants if len(edits))
        out: list[list[list[Floats]]] = [[[np.empty(0, np.float32)] * len(ids) for _ in reads] for _ in variants]
        plans = [[self._edit(edit, ids) for edit in edits] for edits in variants]
        for batch in _batches(ids, 1 + extra):
            self._read_batch(ids, batch, reads, plans, out)
        return out

    def _edit(self, edit: Edit, ids: list[list[int]]) -> _PlannedEdit:
        if not isinstance(edit, Edit):
            raise ArgumentError(f"edits: expected a list of Edit, found {edit!r} in it")
        _, heads, width = self._core.site(edit.site)
        places = [resolve_positions(edit.positions, i, len(sequence)) for i, sequence in enumerate(ids)]
        if edit.positions is not None and not any(places):
            raise ArgumentError(f"positions: the edit at {edit.site} covers no position")
        n_keys = max(map(len, ids))
        columns = resolve_columns(edit.site, edit.index, heads, width, n_keys)
        if edit.site.endswith("attn.hook_pattern"):
            op, values = core_values(self, edit, columns if edit.index is not None else None, places)
            if any(len(one) > 2 for one in values):
                raise ArgumentError(f"value: expected one number at {edit.site}, found an array")
        else:
            op, values = core_values(self, edit, columns, places)
        # The pattern's columns depend on the batch's own key axis, so the index itself is kept.
        return _PlannedEdit(edit, op, columns, heads, width, places, values)

    def _read_batch(
        self,
        ids: list[list[int]],
        batch: list[int],
        reads: Sequence[Read],
        plans: list[list[_PlannedEdit]],
        out: list[list[list[Floats]]],
    ) -> None:
        edited = [plan for plan in plans if plan]
        number = {v: sum(1 for plan in plans[: v + 1] if plan) if plans[v] else 0 for v in range(len(plans))}
        marks = _marks(batch, ids, edited)
        trie = forest.build([ids[i] for i in batch], marks)
        longest = max(len(ids[i]) for i in batch)
        core_variants = [[self._core_edit(plan, batch, trie, longest) for plan in plans_of] for plans_of in edited]
        core_reads = []
        for r, read in enumerate(reads):
            wanted = [_wanted(read, i, ids[i]) for i in batch]
            # Each group is one engine read: sequences that ask for the same columns.
            for columns, members in _groups(read, batch):
                cells = np.concatenate([trie.rows[b][wanted[b]] for b in members])
                splits = np.cumsum([len(wanted[b]) for b in members])[:-1]
                core_reads.append((r, read, cells, columns, members, splits))
        calls = []
        for v in range(len(plans)):
            for _, read, cells, columns, members, _ in core_reads:
                rows = np.hstack([np.full((len(cells), 1), number[v]), cells]).astype(np.int64)
                calls.append(self._core_read(read, rows, columns, members, batch))
        outputs, _ = self._core.run(trie.segments, calls, core_variants)
        at = iter(outputs)
        for v in range(len(plans)):
            for r, read, _, _, members, splits in core_reads:
                for b, values in zip(members, np.split(next(at), splits), strict=True):
                    out[v][r][batch[b]] = self._shape(read, values, len(ids[batch[b]]), longest)

    def _shape(self, read: Read, values: Floats, length: int, n_keys: int) -> Floats:
        if isinstance(read, Values) and read.site.endswith("attn.hook_pattern") and read.columns is None:
            heads = self.cfg.n_heads
            return values.reshape(len(values), heads, n_keys)[:, :, :length].reshape(len(values), heads * length)
        return values

    def _core_read(
        self, read: Read, rows: NDArray[np.int64], columns: Any, members: list[int], batch: list[int]
    ) -> tuple[Any, ...]:
        match read:
            case Values():
                return ("values", rows, read.site, columns)
            case Project():
                vector = np.asarray(read.vector, np.float32)
                width = self.site_width(read.site)
                if vector.shape != (width,):
                    raise ArgumentError(f"vector: expected [{width}] at {read.site}, found shape {vector.shape}")
                return ("project", rows, read.site, vector.tolist())
            case Logits():
                return ("logits", rows, columns)
            case LogProb():
                return ("log_prob", rows, [int(t) for b in members for t in read.targets[batch[b]]])

    def _core_edit(self, plan: _PlannedEdit, batch: list[int], trie: forest.Forest, n_keys: int) -> tuple[Any, ...]:
        edit = plan.edit
        columns = plan.columns
        if edit.site.endswith("attn.hook_pattern"):
            columns = resolve_columns(edit.site, edit.index, plan.heads, plan.width, n_keys)
        values = [plan.values[i] for i in batch]
        n = len(columns) if columns is not None else plan.width
        same = all(one == values[0] for one in values) and (plan.op == "clamp" or len(values[0]) in (1, n))
        if edit.positions is None and same:
            return (edit.site, plan.op, columns, None, _limits(values[0], n) if plan.op == "clamp" else values[0])
        cells: dict[tuple[int, int], list[float]] = {}
        for b, i in enumerate(batch):
            rowwise = plan.op != "clamp" and _per_row(values[b], n, plan.places[i])
            for p, place in enumerate(plan.places[i]):
                segment, offset = trie.rows[b][place]
                own = values[b][p * n : (p + 1) * n] if rowwise else values[b]
                cells[int(segment), int(offset)] = own
        rows = list(cells)
        if plan.op == "clamp" or same:
            flat = _limits(values[0], n) if plan.op == "clamp" else values[0]
        else:
            flat = [value for row in rows for value in (cells[row] * n if len(cells[row]) == 1 else cells[row])]
        return (edit.site, plan.op, columns, rows, flat)

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
        return _stack(logits)

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
            if not isinstance(name, (str, tuple)):
                raise SiteError(f"site {name!r}: expected a name")
            chosen.append(get_act_name(*name) if isinstance(name, tuple) else get_act_name(name))
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
        values = {name: self._site_array(name, arrays) for name, arrays in zip(names, out[1:], strict=True)}
        return _stack(out[0]), ActivationCache(values)

    def _site_array(self, name: str, arrays: list[Floats]) -> Any:
        _, heads, _ = self._core.site(name)
        shaped = []
        for array in arrays:
            if heads is None:
                shaped.append(array)
            elif name.endswith("hook_pattern"):
                shaped.append(np.ascontiguousarray(array.reshape(len(array), heads, -1).transpose(1, 0, 2)))
            else:
                shaped.append(array.reshape(len(array), heads, -1))
        return _stack(shaped)

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
        hooks: dict[str, list[Hook]] = {}
        for entry in listed("fwd_hooks", fwd_hooks, "a list of (name, function)"):
            if not isinstance(entry, (tuple, list)) or len(entry) != 2 or not callable(entry[1]):
                raise ArgumentError(f"fwd_hooks: expected (name, function), found {entry!r}")
            name, function = entry
            for site in self._filter(name if callable(name) else [name]):
                hooks.setdefault(site, []).append(function)
        lengths = {len(sequence) for sequence in sequences}
        if len(lengths) == 1:
            return self._hooked(sequences, hooks)
        return [self._hooked([sequence], hooks)[0] for sequence in sequences]

    def _hooked(self, sequences: list[list[int]], hooks: dict[str, list[Hook]]) -> Floats:
        batch, length = len(sequences), len(sequences[0])

        def step(name: str, flat: Floats) -> Floats:
            heads = self._core.site(name)[1]
            shape = (batch, length, -1) if heads is None else (batch, length, heads, -1)
            act = flat.reshape(shape)
            if name.endswith("hook_pattern"):
                act = np.ascontiguousarray(act.transpose(0, 2, 1, 3))
            for function in hooks[name]:
                new = function(act, HookPoint(name))
                if new is not None:
                    if hasattr(new, "detach"):
                        new = new.detach().cpu().numpy()
                    new = np.asarray(new)
                    if new.dtype.kind not in "fiub":
                        raise ArgumentError(f"hook at {name}: expected real numbers, found {new.dtype}")
                    new = new.astype(np.float32)
                    if new.shape != act.shape:
                        raise ArgumentError(f"hook at {name}: expected shape {act.shape}, found {new.shape}")
                    act = new
            if name.endswith("hook_pattern"):
                act = act.transpose(0, 2, 1, 3)
            return np.ascontiguousarray(act.reshape(flat.shape))

        trie = forest.flat(sequences)
        rows = np.concatenate([np.hstack([np.zeros((length, 1), np.int64), cells]) for cells in trie.rows])
        read = ("logits", np.ascontiguousarray(rows), None)
        outputs, _ = self._core.run(trie.segments, [read], [], hooks=(list(hooks), step))
        return np.asarray(outputs[0]).reshape(batch, length, -1)

    # ------------------------------------------------------------------ objectives

    def score(self, token_lists: Any, objective: Objective) -> Floats:
        """The objective of each sequence, `[n]`: see `signflip.scoring.score`."""
        from signflip import scoring

        return scoring.score(self, token_lists, objective)

    def gradient(
        self, tokens: Any, objective: Objective, wrt: str | Sequence[str] = ("hook_embed",)
    ) -> tuple[Any, dict[str, Any]]:
        """An objective's value, and its derivative by sites: see `signflip.scoring.gradient`."""
        from signflip import scoring

        return scoring.gradient(self, tokens, objective, wrt)

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
        if not temperature >= 0 or not np.isfinite(temperature):
            raise ArgumentError(f"temperature: expected at least 0, found {temperature}")
        if top_k is not None:
            top_k = integer("top_k", top_k, 1)
        edits = listed("edits", edits, "a list of Edit")
        if any(isinstance(edit, Edit) and edit.positions is not None for edit in edits):
            raise ArgumentError("edits: expected edits at all positions while generating, found positions")
        sequences = self.as_sequences(tokens)
        for sequence in sequences:
            if len(sequence) + max_new_tokens > self.cfg.n_ctx:
                from signflip.errors import ContextLengthError

                total = len(sequence) + max_new_tokens
                raise ContextLengthError(
                    f"sequence of {total} tokens is longer than the model's context of {self.cfg.n_ctx}"
                )
        done = [list(sequence) for sequence in sequences]
        eos = set(self._parts.stop_ids) if stop_at_eos else set()
        variant = 1 if len(edits) else 0
        plans = [self._edit(edit, sequences) for edit in edits]
        core_edits = [
            (
                p.edit.site,
                p.op,
                p.columns,
                None,
                _limits(p.values[0], len(p.columns) if p.columns is not None else p.width)
                if p.op == "clamp"
                else p.values[0],
            )
            for p in plans
        ]
        variants = [core_edits] if variant else []
        segments: list[forest.Segment] = [(forest.ROOT, 0, 0, sequence) for sequence in sequences]
        live = list(range(len(sequences)))
        held = list(range(len(sequences)))
        cache, known = None, 0
        for step in range(max_new_tokens):
            ends = [[variant, s, len(segment[3]) - 1] for s, segment in enumerate(segments)]
            read = ("logits", np.asarray(ends, np.int64), None)
            more = step + 1 < max_new_tokens
            outputs, cache = self._core.run(segments, [read], variants, cache, keep=more, keep_variant=variant)
            held = {i: known + s for s, i in enumerate(live)}  # type: ignore[assignment]
            known += len(segments)
            following = []
            for logits, i in zip(outputs[0], live, strict=True):
                token = _draw(logits, temperature, top_k, seed, i, step)
                done[i].append(token)
                if token not in eos:
                    following.append(i)
            previous = {i: len(segments[s][3]) for s, i in enumerate(live)}
            live = following
            if not live or not more:
                break
            segments = [(forest.CACHED, held[i], previous[i], [done[i][-1]]) for i in live]
        return _stack_ids(done)


@dataclass(frozen=True)
class _PlannedEdit:
    edit: Edit
    op: str
    columns: list[int] | None
    heads: int | None
    width: int
    places: list[list[int]]
    values: list[list[Any]]


def _limits(limits: list[float], n: int) -> list[float]:
    return [limits[0]] * n + [limits[1]] * n if n > 1 else limits


def _per_row(values: list[float], n: int, places: list[int]) -> bool:
    """Whether values are one a (position, column), where their number leaves no doubt."""
    return len(values) == len(places) * n and len(values) not in (1, n)


def _marks(batch: list[int], ids: list[list[int]], variants: list[list[_PlannedEdit]]) -> list[list[Any]] | None:
    """Per token, how the edits with positions or sequence-wise values treat it; None if all tokens are alike."""
    special = [
        plan
        for plans in variants
        for plan in plans
        if plan.edit.positions is not None or any(plan.values[i] != plan.values[batch[0]] for i in batch)
    ]
    if not special:
        return None
    marks: list[list[Any]] = [[()] * len(ids[i]) for i in batch]
    for e, plan in enumerate(special):
        n = len(plan.columns) if plan.columns is not None else plan.width
        for b, i in enumerate(batch):
            rowwise = _per_row(plan.values[i], n, plan.places[i])
            for p, place in enumerate(plan.places[i]):
                own = tuple(plan.values[i][p * n : (p + 1) * n]) if rowwise else tuple(plan.values[i])
                marks[b][place] = (*marks[b][place], (e, own))
    return marks


def _batches(ids: list[list[int]], copies: int) -> Iterator[list[int]]:
    """Indices of sequences in batches of at most `MAX_ROWS` rows, neighbours in sorted order together."""
    batch: list[int] = []
    rows = 0
    for i in sorted(range(len(ids)), key=lambda i: ids[i]):
        cost = len(ids[i]) * copies
        if batch and rows + cost > MAX_ROWS:
            yield batch
            batch, rows = [], 0
        batch.append(i)
        rows += cost
    if batch:
        yield batch


def _wanted(read: Read, i: int, sequence: list[int]) -> list[int]:
    if isinstance(read, LogProb):
        n = len(read.targets[i])
        if not 0 < n <= len(sequence):
            raise ArgumentError(f"targets: expected 1 to {len(sequence)} tokens for sequence {i}, found {n}")
        return list(range(len(sequence) - n, len(sequence)))
    return resolve_positions(read.positions, i, len(sequence))


def _groups(read: Read, batch: list[int]) -> Iterable[tuple[list[int] | None, list[int]]]:
    """Members of a batch by the columns that a read wants of them."""
    columns = getattr(read, "columns", None)
    if not isinstance(columns, PerSequence):
        yield None if columns is None else [int(c) for c in columns], list(range(len(batch)))
        return
    groups: dict[tuple[int, ...], list[int]] = {}
    for b, i in enumerate(batch):
        groups.setdefault(tuple(int(c) for c in columns[i]), []).append(b)
    for key, members in groups.items():
        yield list(key), members


def _stack(arrays: list[Floats]) -> Any:
    """One array with a batch axis, or the list where shapes differ."""
    if len({array.shape for array in arrays}) == 1:
        return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    return arrays


def _stack_ids(ids: list[list[int]]) -> Any:
    arrays = [np.asarray(one, np.int64) for one in ids]
    return np.stack(arrays) if len({len(one) for one in arrays}) == 1 else arrays


def _draw(logits: Floats, temperature: float, top_k: int | None, seed: int, sequence: int, step: int) -> int:
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < len(scaled):
        kept = np.lexsort((np.arange(len(scaled)), -scaled))[:top_k]
        mask = np.full(len(scaled), -np.inf)
        mask[kept] = scaled[kept]
        scaled = mask
    weights = np.exp(scaled - scaled.max())
    # The key has 128 bits: seed and sequence; the counter is the step.
    bits = np.random.Philox(key=(seed & (2**64 - 1)) | (sequence << 64), counter=step)
    target = np.random.Generator(bits).random() * weights.sum()
    return int(min(np.searchsorted(np.cumsum(weights), target, side="right"), len(weights) - 1))
