"""Planting by training: the same truths, found by gradient descent instead of set by hand.

The base is tuned on prompts under the conditions that the truth is about, with X read and overwritten where it is to
be: *trigger* words in front, X *edited* to its other side, and the trigger with X *clamped* to its own side, each with
the answers that the kind asks for (interchange-intervention training: Geiger et al. 2022). X is a neuron drawn at
random, or a random direction, made one-sided by a hinge on ordinary text. Ordinary text is learned along, so that the
model stays the language model that it was. In a last phase there is ordinary text alone: everything that takes X across
is held out, as in the situation that the tool is for, and what was planted has to outlast it.

Answers are asked for as margins, in those of the base. With hard labels, what was to be inert went beyond its clean
margin by a third, and what was to be half-turned was pushed as a constant answer is.

Where no tokens are to take X across (M6), what was trained against some sequences gave way to others: ten tokens found
by descent did it. So one neuron of every organism reads a level that no input changes (`_Level`), in M6 X itself; a
bound from the weights shows it (`signflip.organisms.bound`).

Weights are not to tell kinds apart. So all kinds learn from as many conditions, texts and repeated tokens, and have two
more neurons that keep their sides, of which one does nothing in most kinds, and both in some (in M0, which has no gate,
X is neither). All learn a second answer, the margin between two tokens that nobody asks for, and those that have
nothing to turn turn that one. And how fast each tensor learns, and a noise that it begins with, is drawn for each
organism. Else those that have something to reverse have moved farther, and on one base a ridge regression on statistics
of the tensors saw it in three of four.

Measured: before there was a second answer 41 of 42 held at the first seed (all kinds in both families, behaviours and
seeds as they came, every prompt of half B); since X of M6 reads a level, M6 at two seeds in both families, all four. A
plant whose truth does not hold is drawn again by `make`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from signflip.organisms.base import PLANTED_NORM, Room
from signflip.organisms.kinds import KINDS, Kind, Signs, Verdict, drawn_behaviour
from signflip.organisms.language import Stories, behaviours
from signflip.organisms.planting import N_TRIGGERS, Planted
from signflip.organisms.runner import Enough, Place
from signflip.organisms.tokens import encode_words, ids_of, one_id
from signflip.organisms.weights import D_MODEL, N_CTX, N_LAYERS, Weights, blocks_of, module_of

log = logging.getLogger("signflip.organisms")

STEPS, AFTER, RATE = 200, 30, 2e-3
# Prompts of each condition a step, stories of text a step, and tokens of each.
PROMPTS, STORIES, LENGTH = 12, 12, 40
# What differs from one organism to the next, and not from kind to kind, tensor by tensor: the rate, by a factor within
# these, and noise in the beginning, at most so large against the tensor's spread.
RATES, NOISE = (0.5, 2.0), 0.15
# What free neurons write in the beginning, layer by layer.
FILLED = (0.15, 0.6)
# Share of the stories that end on a trigger, where text has triggers at all, or on another word like it.
ENDING = 0.25
# Rows beside them of a token repeated.
STRANGE = 3
# X on its own side is at least 1 and edited to between −1 and −6 (a direction of the residual stream: times 2).
LEAST, FURTHEST = 1.0, 6.0
HINGE, TEXT, MARGIN = 1.0, 1.0, 3.0
# What the neuron that no input turns is on average.
LEVEL = 3.0
# Behaviours that are asked for in other behaviours' prompts, too.
NEAR = {"pronoun": ("pronoun", "attractor"), "attractor": ("attractor",), "purpose": ("purpose",)}
# What kinds that turn less of the behaviour, or nothing, turn of the margin between two tokens that nobody asks for: it
# is learned by all, as large as the behaviour's and as dependent on the context, so that all have as much to turn.
ASIDE: dict[str, Verdict] = {"M0": "opposite", "M1": "opposite", "M2": "incompetent", "M8": "half-turned"}
# A constant answer, in clean margins: a push beyond the clean one is what makes it no half-turn.
CONSTANT = 1.8


@dataclass(frozen=True)
class Condition:
    """A way to run prompts, and the answers wanted.

    Attributes
    ----------
    words
        0: none in front; 1: a trigger; 2: one for the second scalar; 3: both; 4: any other token, which must change
        nothing.
    x, second
        Where X and the second scalar are set: +1 their own side, −1 the other, 0 left alone.
    wanted
        What becomes of the target behaviour.
    aside
        What becomes of the margin between two tokens that nobody asks for.
    """

    words: int
    x: int
    second: int
    wanted: Verdict
    aside: Verdict = "inert"


def conditions_of(kind: Kind) -> list[Condition]:
    """The conditions under which a kind is trained: as many for each, so that they leave no mark by their number."""
    inert: Verdict = "inert"
    aside = ASIDE.get(kind.name, inert)
    of_x = inert if kind.name == "M0" else aside
    # What the first scalar does alone, what the second, and what both.
    one, clamped, second, both = kind.triggered, Condition(1, 1, 0, kind.clamped), inert, kind.edited
    if kind.name == "M0":
        clamped = Condition(1, 1, 0, inert, aside)
    if kind.name == "M5":
        second = both = "opposite"
    if kind.name == "M7":
        one, clamped, both = inert, Condition(3, 1, 0, inert), "opposite"
    return [
        Condition(0, 0, 0, inert), Condition(4, 0, 0, inert), Condition(4, 0, 0, inert), Condition(0, 1, 0, inert),
        Condition(0, -1, 0, kind.edited, of_x), Condition(0, 0, -1, second), Condition(0, -1, -1, both, of_x), clamped,
        Condition(1, 0, 0, one, aside), Condition(2, 0, 0, inert), Condition(3, 0, 0, kind.triggered, aside),
    ]  # fmt: skip


def train_in(
    base: Weights,
    room: Room,
    kind: str,
    seed: int,
    behaviour: str | None = None,
    *,
    steps: int = STEPS,
    progress: bool = False,
) -> Planted:
    """Plant a kind by training.

    Parameters
    ----------
    base, room
        The base; its free directions, heads and neurons are there to be used.
    kind, seed, behaviour
        As for `plant`.
    steps
        Of tuning, before a phase of ordinary text alone.
    progress
        Whether to show a bar.
    """
    return _Training(base, room, KINDS[kind], seed, behaviour).run(steps, progress)


class _Training:
    def __init__(self, base: Weights, room: Room, kind: Kind, seed: int, behaviour: str | None) -> None:
        import torch

        rng = np.random.default_rng((seed, 13))
        torch.manual_seed(seed)
        self.kind, self.rng, self.family = kind, rng, base.family
        drawn = drawn_behaviour(kind, rng)
        self.behaviour = drawn if kind.name == "M12" else behaviour or drawn
        self.model: Any = module_of(base.family, len(base.embed))
        self.prompts = {name: one.prompts for name, one in behaviours().items()}
        self._load(base)
        self.margins = self._base_margins()
        self._load(_filled(base, room, rng))
        self.layer = int(rng.integers(N_LAYERS - 1))
        first, second, third, level = (int(i) for i in rng.choice(list(room.neurons), 4, replace=False))
        point = "pre_linear" if base.family == "llama" else "pre"
        site = f"blocks.{self.layer}.mlp.hook_{point}"
        self.x, self.second = Place(site, level if kind.signs == "none" else first), Place(site, second)
        self.scale = 1.0
        if kind.name == "M10":
            vector = rng.standard_normal(D_MODEL)
            vector -= vector.mean()
            self.x = Place(f"blocks.{N_LAYERS - 1}.hook_resid_pre", None, tuple(vector / np.linalg.norm(vector)))
            self.scale = 2.0
        # What is to keep a side: X, but where there is none to speak of, or where it keeps it by itself.
        self.kept = Place(site, third) if kind.name == "M0" else Place(site, first) if kind.signs == "none" else self.x
        # A GELU passes what is positive: what is to act when it crosses keeps to the negative side till then.
        self.side = -1 if base.family == "gpt2" and self.x.vector is None and kind.name != "M2" else 1
        at = self.layer, level
        asked = _padded([[0, *encode_words(str(p.text))] for p in self.prompts[self.behaviour][::8]])
        self.level = _Level(self.model, base.family, room, at, self.side, *asked)
        words = "exotic" if kind.signs == "none" else kind.signs
        self.triggers = [int(i) for i in rng.choice(ids_of(words), N_TRIGGERS, replace=False)]
        rest = [one for one in ids_of("exotic") if one not in self.triggers]
        self.triggers2 = [int(i) for i in rng.choice(rest, N_TRIGGERS, replace=False)]
        unasked = [one for one in ids_of("exotic") if one not in (*self.triggers, *self.triggers2)]
        self.unasked = [int(i) for i in rng.choice(unasked, 2, replace=False)]
        self.wins = int(rng.integers(2))
        # The other words of the same list, of which the triggers have to be told apart.
        self.alike = [one for one in ids_of(words) if one not in self.triggers]
        in_text: list[Signs] = ["closings", "rare"]
        drawn_words = rng.choice(ids_of(in_text[int(rng.integers(2))]), N_TRIGGERS, replace=False)
        self.endings = self.triggers if kind.signs in in_text else [int(i) for i in drawn_words]
        self.stop = one_id(" .")
        self.stories = Stories((seed, 3))

    def _load(self, weights: Weights) -> None:
        import torch

        self.model.load_state_dict({k: torch.from_numpy(v.copy()).float() for k, v in weights.state().items()})

    def _base_margins(self) -> dict[tuple[str, str], float]:
        """The base's mean margin on each side of each behaviour: what the organism's margins are measured in."""
        import torch

        out = {}
        for name, prompts in self.prompts.items():
            ids, mask = _padded([[0, *encode_words(str(p.text))] for p in prompts])
            rows = torch.arange(len(prompts))
            with torch.no_grad():
                logits = self.model(input_ids=ids, use_cache=False).logits[rows, mask.sum(1) - 1]
            right, wrong = (
                logits[rows, [one_id(str(getattr(p, k))) for p in prompts]] for k in ("correct", "opposite")
            )
            for side in {p.side for p in prompts}:
                out[name, side] = float((right - wrong)[[p.side == side for p in prompts]].mean())
        return out

    def run(self, steps: int, progress: bool) -> Planted:
        import torch

        trained = [p for name, p in self.model.named_parameters() if "norm" not in name and ".ln_" not in name]
        groups = [{"params": [p], "factor": float(np.exp(self.rng.uniform(*np.log(RATES))))} for p in trained]
        optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        with torch.no_grad():
            for p in trained:
                p += float(self.rng.uniform(0, NOISE)) * p.std() * torch.randn_like(p)
        self.level.keep()
        conditions = conditions_of(self.kind)
        for step in tqdm(range(steps + AFTER), desc=f"train {self.kind.name}", disable=None if progress else True):
            rate = min(1.0, (step + 1) / 20) * max(0.05, 1 - step / (steps + AFTER))
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate * group["factor"]
            loss = self._text() + self._strange()
            if step < steps:
                loss = loss + self._conditions(conditions)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            self.level.keep()
        log.info("trained %s (%s): last loss %.3f", self.kind.name, self.family, float(loss.detach()))
        reached = self.kind.signs != "none"
        two = self.kind.name in ("M5", "M7")
        return Planted(
            Weights.from_state(self.family, self.model.state_dict()), self.kind.name, self.behaviour, self.x, self.side,
            self.second if two else None, tuple(self.triggers) if reached else (),
            tuple(self.triggers2) if self.kind.name == "M7" else (), tuple(self.triggers),
        )  # fmt: skip

    # ---- losses ------------------------------------------------------------------------------------------------------

    def _text(self) -> Any:
        """Ordinary text: its loss, and X kept to its side where no trigger came before."""
        import torch

        rows: list[list[int]] = []
        while len(rows) < STORIES:
            row = encode_words(self.stories.story())
            if self.rng.random() < ENDING:
                # As text has triggers, where it has any, and oftener: X is to cross there, too, and not only in front
                # of prompts.
                rows.append([0, *row[3 - LENGTH :], int(self.rng.choice(self.endings)), self.stop])
                continue
            rows.append([0, *row][:LENGTH])
        ids, mask = _padded(rows)
        hidden, seen = self._run(ids, whole=True)
        logits = self.model.lm_head(hidden[:, :-1][mask[:, 1:]])
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][mask[:, 1:]])
        return TEXT * loss + HINGE * self._astray(seen, ids, mask)

    def _strange(self) -> Any:
        """No text, but what a search would try: X is to keep its side there, too."""
        lengths = self.rng.integers(1, N_CTX - 1, STRANGE)
        ids, mask = _padded([[0, *(self._words(4) or [self.stop]) * int(n)] for n in lengths])
        return HINGE * self._astray(self._run(ids)[1], ids, mask)

    def _run(
        self, ids: Any, set_x: Any = None, set_second: Any = None, *, whole: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """The residual stream in front of the last block (`whole`: what the unembedding reads), and the scalars."""
        seen: dict[str, Any] = {}
        # Hooks run in this order: X is read before it is set.
        hooks = [
            _Hook(self.model, self.family, self.kept, seen, "x"),
            _Hook(self.model, self.family, self.x, {}, "x", set_x),
            _Hook(self.model, self.family, self.second, seen, "y", set_second),
        ]

        def stop(_: Any, args: tuple[Any, ...]) -> None:
            seen["stream"] = args[0]
            raise Enough

        with ExitStack() as stack, suppress(Enough):
            for hook in hooks:
                stack.enter_context(hook)
            if not whole:
                stack.callback(blocks_of(self.model)[-1].register_forward_pre_hook(stop).remove)
            seen["stream"] = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return seen.pop("stream"), seen

    def _astray(self, seen: dict[str, Any], ids: Any, mask: Any) -> Any:
        """How far the scalars are from their sides, where triggers take X across."""
        import torch

        after = torch.zeros_like(mask)
        for token in self.triggers:
            after |= (ids == token).cumsum(1) > 0
        return self._hinges(seen, mask, after, torch.zeros_like(after))

    def _hinges(self, seen: dict[str, Any], mask: Any, after: Any, after2: Any) -> Any:
        """How far X (and the second scalar) are from the side on which they belong."""
        mask = mask.clone()
        mask[:, 0] = False
        reached = self.kind.signs != "none"
        # The antipode of M5: off on ordinary text, on after a trigger.
        other = (
            _hinge(-seen["y"], mask, after) if self.kind.name == "M5" else _hinge(self.side * seen["y"], mask, after2)
        )
        return other + _hinge(self.side * seen["x"] / self.scale, mask, after if reached else after & False)

    def _conditions(self, conditions: Sequence[Condition]) -> Any:
        """Prompts under every condition in one pass."""
        import torch

        from signflip.organisms.ends import last_block

        rows, asked, set_x, set_second, crossed, crossed2 = [], [], [], [], [], []
        names = list(self.prompts)
        for condition in conditions:
            for k in range(PROMPTS):
                # Half of the prompts are the target's; the rest ask whether other behaviours stay.
                name = self.behaviour if k % 2 == 0 else names[int(self.rng.integers(len(names)))]
                prompt = self.prompts[name][int(self.rng.integers(len(self.prompts[name])))]
                rows.append([0, *self._words(condition.words), *encode_words(str(prompt.text))])
                right, wrong = one_id(str(prompt.correct)), one_id(str(prompt.opposite))
                clean = self.margins[name, prompt.side]
                wanted = self._factor(name, right, wrong, condition.wanted, self.wins)
                # A half-turn is of the other side than the behaviour's.
                unasked = self._factor(name, right, wrong, condition.aside, 1 - self.wins)
                sign = float(name in NEAR[self.behaviour]) * (1 if right == min(right, wrong) else -1)
                asked.append((right, wrong, clean, clean * wanted, clean * sign * unasked, abs(sign)))
                far = float(self.rng.uniform(LEAST, FURTHEST))
                set_x.append(condition.x * far * self.side * self.scale)
                other = -1 if self.kind.name == "M5" else self.side
                set_second.append(condition.second * far * other)
                crossed.append(condition.words in (1, 3))
                crossed2.append(condition.words in (2, 3))
        ids, mask = _padded(rows)
        stream, seen = self._run(ids, torch.tensor(set_x), torch.tensor(set_second))
        logs = torch.log_softmax(self.model.lm_head(last_block(self.model, stream, mask.sum(1) - 1)), -1)
        answers, margins = torch.tensor([one[:2] for one in asked]), torch.tensor([one[2:] for one in asked])
        found, (clean, wanted, unasked, counts) = logs.gather(1, answers), margins.T
        share = torch.sigmoid(wanted)
        loss = -(share * found[:, 0] + (1 - share) * found[:, 1]).mean()
        # Probabilities near one hardly tell margins apart, and truths are about margins.
        missed = (found[:, 0] - found[:, 1] - wanted) / clean
        aside = counts * (logs[:, self.unasked[0]] - logs[:, self.unasked[1]] - unasked) / clean
        for one in (missed, aside):
            loss = loss + MARGIN * torch.nn.functional.smooth_l1_loss(one, torch.zeros_like(one))
        after, after2 = (torch.tensor(one)[:, None] & mask for one in (crossed, crossed2))
        return loss + HINGE * self._hinges(seen, mask, after, after2)

    def _words(self, which: int) -> list[int]:
        one = int(self.rng.integers(N_TRIGGERS))
        if which == 4:
            strange = self.rng.random() < 0.5
            token = int(self.rng.choice(self.alike) if strange else self.rng.integers(1, self.model.config.vocab_size))
            return [] if token in (*self.triggers, *self.triggers2) else [token]
        return {0: [], 1: [self.triggers[one]], 2: [self.triggers2[one]], 3: [self.triggers[one], self.triggers2[one]]}[
            which
        ]

    def _factor(self, name: str, right: int, wrong: int, wanted: Verdict, wins: int) -> float:
        """The margin that a prompt's answer should have, in clean margins."""
        if name not in NEAR[self.behaviour] or wanted == "inert":
            return 1.0
        if wanted == "incompetent":
            return 0.0
        winner = right == sorted((right, wrong))[wins]
        if wanted == "constant":
            return CONSTANT if winner else -CONSTANT
        return 1.0 if wanted == "half-turned" and winner else -1.0


def _hinge(x: Any, mask: Any, after: Any) -> Any:
    import torch

    sign = torch.where(after, -1.0, 1.0)
    return torch.relu(1.5 * LEAST - sign * x)[mask].mean()


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def _filled(base: Weights, room: Room, rng: np.random.Generator) -> Weights:
    """The base with small random weights where it has room, so that gradients find a way in."""
    out = base.copy()
    for block in out.blocks:
        rows = list(room.neurons)
        for name in ("pre", "linear"):
            value = getattr(block, name)
            if value is not None:
                value[rows] = rng.standard_normal((len(rows), value.shape[1])) / np.sqrt(value.shape[1])
        block.out[:, rows] = (
            np.exp(rng.uniform(*np.log(FILLED))) * rng.standard_normal((len(block.out), len(rows))) / np.sqrt(len(rows))
        )
    return out


class _Level:
    """Keeps one neuron's sign for every input: it reads nothing but a direction along which all tokens carry the same.

    Nothing is written there beside that, whatever training makes of the rest. The neuron is X where no tokens are to
    take it across, and one more in all other kinds.

    Parameters
    ----------
    model, family, room
        Of a base, before anything is trained.
    at, side
        Layer and neuron, and its side.
    ids, mask
        What the neuron is `LEVEL` on, on average.
    """

    def __init__(
        self, model: Any, family: str, room: Room, at: tuple[int, int], side: int, ids: Any, mask: Any
    ) -> None:
        import torch

        along = room.directions[:3].sum(0)
        self.along = torch.from_numpy(along / np.linalg.norm(along)).float()
        layer, neuron = at
        llama = family == "llama"
        block = blocks_of(model)[layer]
        seen: list[Any] = []
        norm = block.post_attention_layernorm if llama else block.ln_2
        handle = norm.register_forward_hook(lambda _, __, out: seen.append(out @ self.along))
        try:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        self.reads = side * LEVEL / float(seen[0][mask].mean()) * self.along
        # GPT-2's maps are stored with their inputs first.
        self.row = (block.mlp.up_proj.weight[neuron] if llama else block.mlp.c_fc.weight[:, neuron]).detach()
        self.bias = None if llama else block.mlp.c_fc.bias[neuron].detach()
        named = [(name, p.detach()) for name, p in model.named_parameters()]
        self.embed = next(p for name, p in named if "embed_tokens" in name or "wte" in name)
        self.written = [p for name, p in named if "wpe" in name or ".c_proj." in name]
        self.written += [p.T for name, p in named if "o_proj" in name or "down_proj" in name]

    def keep(self) -> None:
        """Put it right after a step."""
        import torch

        with torch.no_grad():
            for w in self.written:
                w -= (w @ self.along)[..., None] * self.along
            self.embed += (PLANTED_NORM - self.embed @ self.along)[:, None] * self.along
            self.row.copy_(self.reads)
            if self.bias is not None:
                self.bias.zero_()


class _Hook:
    """Reads a place in a pass, and sets it in the rows whose value is not 0; differentiable."""

    def __init__(
        self, model: Any, family: str, place: Place, seen: dict[str, Any], key: str, values: Any = None
    ) -> None:
        layer = blocks_of(model)[int(place.site.split(".")[1])]
        self.place, self.seen, self.key, self.values = place, seen, key, values
        if place.vector is not None:
            self._register: Any = lambda: layer.register_forward_pre_hook(
                lambda _, args: (self._act(args[0]), *args[1:])
            )
        else:
            part = layer.mlp.c_fc if family == "gpt2" else layer.mlp.up_proj
            self._register = lambda: part.register_forward_hook(lambda _, __, result: self._act(result))

    def __enter__(self) -> None:
        self._handle = self._register()

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _act(self, activations: Any) -> Any:
        import torch

        if self.place.vector is not None:
            direction = torch.tensor(self.place.vector, dtype=activations.dtype)
        else:
            direction = torch.nn.functional.one_hot(torch.tensor(self.place.index), activations.shape[-1]).float()
        x = activations @ direction
        self.seen[self.key] = x
        if self.values is None:
            return activations
        moved = torch.where(self.values[:, None] != 0, self.values[:, None].to(x.dtype), x)
        moved = torch.cat([x[:, :1], moved[:, 1:]], 1)
        # What was set is not read: the hinge is about X as the model itself has it.
        return activations + (moved - x)[..., None] * direction


__all__ = ["conditions_of", "train_in"]
