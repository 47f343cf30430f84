"""Base language models of the small language, trained in plain torch, with room left for what is planted.

Room is a few directions of the residual stream that nothing reads or writes, some heads and some neurons of each layer
that write nothing. The constraint is kept by projecting the weights after every step, so that a base is a model trained
as any other within a slightly smaller shape.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from signflip.errors import CheckpointError
from signflip.files import beside
from signflip.organisms.language import Stories
from signflip.organisms.tokens import SEPARATOR_ID, encode_words, tokenizer
from signflip.organisms.weights import D_HEAD, D_MLP, D_MODEL, N_HEADS, N_LAYERS, Family, Floats, Weights, module_of

log = logging.getLogger("signflip.organisms")

# Directions, heads and neurons kept free (the last ones of each layer).
N_FREE_DIRECTIONS, N_FREE_HEADS, N_FREE_NEURONS = 12, 2, 8
STEPS, BATCH, LENGTH, RATE = 600, 32, 40, 5e-3
INIT = 0.7
CHECKPOINT_EVERY = 100
# What every token carries along the first free directions while the base learns: as much as is planted there later, so
# that the norms which the base learned to live with stay what they are.
PLANTED_NORM = 0.7


@dataclass(frozen=True)
class Room:
    """What a base leaves free.

    Attributes
    ----------
    directions
        Orthonormal rows `[n, d_model]`, each summing to zero, so that a layer norm's mean does not see them.
    """

    seed: int

    @cached_property
    def directions(self) -> Floats:
        """The free directions."""
        rng = np.random.default_rng((self.seed, 77))
        drawn = rng.standard_normal((D_MODEL, N_FREE_DIRECTIONS))
        drawn -= drawn.mean(0)
        return np.asarray(np.linalg.qr(drawn)[0].T)

    @property
    def heads(self) -> range:
        """The free heads of each layer."""
        return range(N_HEADS - N_FREE_HEADS, N_HEADS)

    @property
    def neurons(self) -> range:
        """The free neurons of each layer."""
        return range(D_MLP - N_FREE_NEURONS, D_MLP)


def train(
    family: Family,
    folder: Path,
    seed: int = 0,
    *,
    steps: int = STEPS,
    progress: bool = False,
) -> Weights:
    """Train a base model, or read it where it already is.

    Parameters
    ----------
    family
        `"gpt2"` or `"llama"`.
    folder
        Where the model is kept. An interrupted training goes on from `<folder>.partial`, to the same result.
    seed
        Of the weights, the free directions and the text.
    steps
        Of Adam.
    progress
        Whether to show a bar.

    Raises
    ------
    CheckpointError
        If the folder holds something else, or it or its unfinished state is that of another training.
    """
    import torch

    settings = {"family": family, "seed": seed, "steps": steps}
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder with a base, found a file")
    if folder.exists() and any(folder.iterdir()):
        return _trained(folder, settings)
    model, room = _fresh(family, seed), Room(seed)
    keep = Keep(model, family, room)
    keep()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.02)
    partial = folder.with_name(folder.name + ".partial")
    first = _resume(partial, settings, model, optimizer)
    text = _batches(seed, first)
    model.train()
    loss_now = float("nan")
    with tqdm(
        total=steps, initial=first, desc=f"base {family}", unit="step", disable=None if progress else True
    ) as bar:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * _schedule(step, steps)
            ids = torch.from_numpy(next(text))
            loss = model(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            keep()
            bar.update()
            loss_now = float(loss.detach())
            if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < steps:
                state = {"settings": settings, "step": step + 1, "model": model.state_dict()}
                with beside(partial) as path:
                    torch.save(state | {"optimizer": optimizer.state_dict()}, path)
    log.info("base %s, seed %d: loss %.3f nats a token after %d steps", family, seed, loss_now, steps)
    made = Weights.from_state(family, model.state_dict())
    with beside(folder) as path:
        made.save(path, {key: str(value) for key, value in settings.items()})
    partial.unlink(missing_ok=True)
    return made


def _trained(folder: Path, settings: dict[str, Any]) -> Weights:
    """A base that is there, if it is the one that is asked for."""
    from safetensors import safe_open

    made = Weights.open(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        notes = file.metadata() or {}
    found = {key: notes.get(key) for key in settings}
    if found != {key: str(value) for key, value in settings.items()}:
        raise CheckpointError(f"{folder}: expected a base of {settings}, found one of {found}; name another folder")
    return made


def _fresh(family: Family, seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    model = module_of(family, tokenizer().get_vocab_size())
    for name, parameter in model.named_parameters():
        if "norm" in name or ".ln_" in name:
            # Gains of one and biases of zero: nothing in the way of turning the residual stream.
            parameter.requires_grad_(False)
        elif parameter.ndim == 2:
            # Narrow models learn faster from weights of unit gain than from GPT-2's 0.02.
            torch.nn.init.normal_(parameter, std=INIT / math.sqrt(parameter.shape[-1]))
    return model


def _schedule(step: int, steps: int) -> float:
    """A short rise and a fall along a cosine."""
    rise = min(1.0, (step + 1) / 50)
    return rise * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


def _batches(seed: int, first: int) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """Batches of text, each a function of seed and step, so that a resumed training reads what it would have read."""
    step = first
    while True:
        stories = Stories((seed, 2, step), strange=True)
        rows: list[list[int]] = []
        while len(rows) < BATCH:
            # Contexts begin as prompts do, with a separator and a story.
            ids: list[int] = []
            while len(ids) < LENGTH:
                ids += [SEPARATOR_ID, *encode_words(stories.story())]
            rows.append(ids[:LENGTH])
        yield np.asarray(rows, np.int64)
        step += 1


def _resume(partial: Path, settings: dict[str, Any], model: Any, optimizer: Any) -> int:
    import torch

    if not partial.exists():
        return 0
    try:
        state = torch.load(partial, weights_only=True)
        found = state["settings"]
        if found == settings:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            # Moments of other shapes it would take, and fail of at its next step.
            for p, own in optimizer.state.items():
                if any(own[key].shape != p.shape for key in ("exp_avg", "exp_avg_sq")):
                    raise ValueError(f"expected moments of shape {tuple(p.shape)}, found others")
            step = int(state["step"])
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{partial}: can not read the unfinished training: {why}; remove it to begin anew"
        ) from error
    if found != settings:
        raise CheckpointError(f"{partial}: expected an unfinished training of {settings}, found one of {found}")
    log.info("base %s: going on from step %d", settings["family"], step)
    return step


class Keep:
    """Keeps the room free: projects every reader and writer of the residual stream, silences free heads and neurons."""

    def __init__(self, model: Any, family: Family, room: Room) -> None:
        import torch

        directions = torch.from_numpy(room.directions).float()
        self._project = torch.eye(D_MODEL) - directions.T @ directions
        # Every token carries a constant there, as it does once something is planted.
        self._carried = (PLANTED_NORM / math.sqrt(3)) * directions[:3].sum(0)
        self._model, self._family, self._room = model, family, room

    def __call__(self) -> None:
        import torch

        with torch.no_grad():
            for name, p in self._model.named_parameters():
                self._one(name, p)

    def _one(self, name: str, p: Any) -> None:
        conv = self._family == "gpt2" and p.ndim == 2 and ("c_" in name)
        w = p.T if conv else p
        heads = slice(self._room.heads.start * D_HEAD, None)
        neurons = slice(self._room.neurons.start, None)
        if "norm" in name or ".ln_" in name:
            return
        if "embed_tokens" in name or "wte" in name:
            w.copy_(w @ self._project + self._carried)
        elif "wpe" in name:
            w.copy_(w @ self._project)
        elif "o_proj" in name or "attn.c_proj" in name:
            w.copy_(self._project @ w)
            if w.ndim == 2:
                w[:, heads] = 0
        elif "down_proj" in name or "mlp.c_proj" in name:
            w.copy_(self._project @ w)
            if w.ndim == 2:
                w[:, neurons] = 0
        elif w.ndim == 2:
            w.copy_(w @ self._project)


__all__ = ["N_LAYERS", "Room", "train"]
