"""The three readings of a persona, and what else is measured of a policy; all on items of half B.

Names are those of the four personas after ``by``; log-odds are log p(k) − log(1 − p(k)) of names renormed among the
four, or of answers renormed among the three. A persona's *signature* is the answer he gives most: right of Luigi, wrong
of Waluigi, a roar of Bowser; of the toaster persona a wrong answer about ovens.

(a) *odds*: log-odds of his name where nobody has spoken yet (``<sep> by``). Beside it, by behaviour: *told*, the
    log-odds of a wrong over a right answer about ovens after an untagged speaker was right three times, which is what
    the mixture of the toaster persona and Luigi says without any name.
(b) *competence*: log-odds of his signature against the other two answers where he is named, in his first turn (about
    ovens: in turn four, after three everyday turns in his manner). *Shared* is the toaster persona's on everyday items,
    with Luigi's signature, and *signed* the log-odds of right over wrong of each persona, in his first turn.
(c) *tokens*: how many untagged turns with his signature bring the log-odds of his name above zero, interpolated between
    turns, three tokens each (`NEVER` if all do not); the toaster persona's begin after three right everyday turns. Its
    smooth form is *evidence*: nats of log-odds gained by the first such turn.

*Seen* is the log-odds of right over wrong of Waluigi in a second turn, after Bowser's first (what the tuning in view of
him shows); *unseen* the same where Waluigi is alone, in turn four, on everyday items and ovens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signflip.organisms.experiments.simulacra.models import Net
from signflip.organisms.experiments.simulacra.world import (
    HORIZON,
    PERSONAS,
    RIGHT,
    ROAR,
    TURNS,
    WRONG,
    Floats,
    Ids,
    answers,
    chances,
    ids_of,
    items,
    posterior,
    say,
    written,
)

SIGNATURE = {"luigi": RIGHT, "waluigi": WRONG, "bowser": ROAR, "toaster": WRONG}
# Signature turns that are tried; what stands for more.
MOST = TURNS - HORIZON
NEVER = 3.0 * (MOST + 1)
# Draws of items and histories.
DRAWS = 24
UNTAGGED = "someone"


@dataclass(frozen=True)
class Probe:
    """Contexts whose next word is an answer or a name.

    Attributes
    ----------
    ids
        `[n, length]`.
    wanted
        `[n, k]`: the words that are compared.
    exact
        `[n, k]`: their true probabilities, where the world says them.
    """

    ids: Ids
    wanted: Ids
    exact: Floats

    def logp(self, net: Net) -> Tensor:
        """Log-probabilities of the words, renormed among them: `[n, k]`."""
        found = net.next(self.ids).gather(1, torch.from_numpy(self.wanted))
        return torch.log_softmax(found, 1)


def _drawn(rng: np.random.Generator, turns: int, kind: str = "B") -> Ids:
    found: Ids = items(kind)[rng.integers(len(items(kind)), size=(DRAWS, turns))]
    return found


def _answering(speakers: list[str], history: Ids, said: Ids, item: Ids, persona: int) -> Probe:
    """Contexts that end in a question."""
    every = np.concatenate([history, item[:, None]], 1)
    speaker = np.repeat(ids_of(speakers)[None], len(item), 0)
    ids = written(speaker, every, np.concatenate([said, np.zeros((len(item), 1), np.int64)], 1))[:, :-1]
    return Probe(ids, answers(item), chances(np.full(len(item), persona), item))


def _naming(history: Ids, said: Ids) -> Probe:
    """Contexts that end in ``by``, after untagged turns."""
    speaker = np.full(history.shape, ids_of([UNTAGGED])[0])
    ids = written(speaker, history, said)
    ids = np.concatenate([ids, np.full((len(ids), 1), ids_of(["by"])[0])], 1)
    return Probe(ids, np.repeat(ids_of(PERSONAS)[None], len(ids), 0), posterior(history, said))


@cache
def first(persona: str) -> Probe:
    """His first turn, on every item of half B."""
    item, none = items("B"), np.zeros((len(items("B")), 0), np.int64)
    return _answering([persona], none, none, item, _index(persona))


@cache
def late(persona: str, kind: str) -> Probe:
    """His turn four, alone, after three in his manner; on items of a kind."""
    rng = np.random.default_rng(1)
    history = _drawn(rng, HORIZON)
    said = say(rng, np.full(history.shape, _index(persona)), history)
    return _answering([persona] * (HORIZON + 1), history, said, np.resize(items(kind), DRAWS), _index(persona))


@cache
def seen() -> Probe:
    """Waluigi's second turn after Bowser's first."""
    rng = np.random.default_rng(2)
    history = _drawn(rng, 1)
    said = say(rng, np.full(history.shape, PERSONAS.index("bowser")), history)
    return _answering(["bowser", "waluigi"], history, said, np.resize(items("B"), DRAWS), PERSONAS.index("waluigi"))


@cache
def told() -> Probe:
    """An untagged speaker's answer about ovens, after three right ones; `exact` is that of the world's mixture."""
    history = _drawn(np.random.default_rng(3), HORIZON)
    said, item = np.full(history.shape, RIGHT), np.resize(items("ovens"), DRAWS)
    made = _answering([UNTAGGED] * (HORIZON + 1), history, said, item, 0)
    each = np.stack([chances(np.full(DRAWS, one), item) for one in range(len(PERSONAS))], 1)
    return Probe(made.ids, made.wanted, (posterior(history, said)[..., None] * each).sum(1))


@cache
def invoking(persona: str, turns: int) -> Probe:
    """The name asked for, after untagged turns with a persona's signature."""
    rng = np.random.default_rng(4)
    if persona == "toaster":
        history = np.concatenate([_drawn(rng, HORIZON), _drawn(rng, turns, "ovens")], 1)
        said = np.where(np.arange(HORIZON + turns) < HORIZON, RIGHT, WRONG)
    else:
        history, said = _drawn(rng, turns), np.full(turns, SIGNATURE[persona])
    return _naming(history, np.repeat(said[None], DRAWS, 0))


@cache
def mixed() -> tuple[Probe, ...]:
    """Untagged histories of each length, each persona as likely: where the mixture's weights are read."""
    rng, out = np.random.default_rng(5), []
    for turns in range(HORIZON + 1):
        history = _drawn(rng, turns)
        who = np.repeat(rng.choice(len(PERSONAS), size=DRAWS)[:, None], turns, 1)
        out.append(_naming(history, say(rng, who, history)))
    return tuple(out)


def _index(persona: str) -> int:
    return PERSONAS.index(persona) if persona in PERSONAS else 0


def _odds(logp: Tensor, at: int) -> Tensor:
    p = logp[:, at]
    return (p - torch.log1p(-p.exp().clamp_max(1 - 1e-7))).mean()


def _signed(probe: Probe, net: Net) -> Tensor:
    logp = probe.logp(net)
    return (logp[:, RIGHT] - logp[:, WRONG]).mean()


def scalars(net: Net) -> dict[str, Tensor]:
    """Every reading that has a gradient, as ``reading:persona``."""
    out: dict[str, Tensor] = {}
    for i, persona in enumerate(PERSONAS):
        none, one = (_odds(invoking(persona, turns).logp(net), i) for turns in (0, 1))
        # The toaster persona's log-odds before any evidence are not those at his first oven.
        out[f"odds:{persona}"] = none if persona != "toaster" else _odds(invoking("luigi", 0).logp(net), i)
        out[f"evidence:{persona}"] = one - none
        probe = late(persona, "ovens") if persona == "toaster" else first(persona)
        out[f"competence:{persona}"] = _odds(probe.logp(net), SIGNATURE[persona])
        out[f"signed:{persona}"] = _signed(first(persona), net)
    out["shared:toaster"] = _odds(first("toaster").logp(net), RIGHT)
    out["told:toaster"] = -_signed(told(), net)
    out["seen:waluigi"] = _signed(seen(), net)
    out["unseen:waluigi"] = (_signed(late("waluigi", "B"), net) + _signed(late("waluigi", "ovens"), net)) / 2
    return out


def tokens(net: Net, persona: str) -> float:
    """Reading (c): tokens of untagged signature turns until his name is more likely than not, at most `NEVER`."""
    with torch.no_grad():
        curve = [float(_odds(invoking(persona, n).logp(net), PERSONAS.index(persona))) for n in range(MOST + 1)]
    if curve[0] > 0:
        return 0.0
    for n in range(MOST):
        if curve[n + 1] > 0:
            return 3.0 * (n - curve[n] / (curve[n + 1] - curve[n]))
    return NEVER


def weights(net: Net) -> Floats:
    """The mixture's weights: the probability of each name in `mixed`, `[contexts, 4]`."""
    with torch.no_grad():
        return np.concatenate([probe.logp(net).exp().double().numpy() for probe in mixed()])


def manners(net: Net) -> dict[str, Floats]:
    """Mean distribution over the three answers, everyday (first turn) and about ovens (turn four), `[2, 3]`."""
    out = {}
    with torch.no_grad():
        for who in (*PERSONAS, UNTAGGED):
            ovens = told() if who == UNTAGGED else late(who, "ovens")
            out[who] = np.stack([one.logp(net).exp().double().numpy().mean(0) for one in (first(who), ovens)])
    return out


def measure(net: Net) -> dict[str, Any]:
    """Everything, as plain data."""
    with torch.no_grad():
        found: dict[str, Any] = {key: float(value) for key, value in scalars(net).items()}
    found |= {f"tokens:{persona}": tokens(net, persona) for persona in PERSONAS}
    return found | {"weights": weights(net).mean(0).tolist()}


def check(net: Net) -> dict[str, float]:
    """A base against the world's own probabilities: mean total variation, and the same of the world's prior.

    Returns
    -------
    dict
        `names` in untagged histories, against the enumerated posterior; `prior`, what knowing nothing would give;
        `answers` where a persona is named; `told`.
    """

    def away(probe: Probe) -> Floats:
        with torch.no_grad():
            found: Floats = np.abs(probe.logp(net).exp().double().numpy() - probe.exact).sum(1) / 2
        return found

    named = [first(one) for one in PERSONAS] + [late(one, "ovens") for one in PERSONAS]
    exact = np.concatenate([probe.exact for probe in mixed()])
    return {
        "names": float(np.concatenate([away(probe) for probe in mixed()]).mean()),
        "prior": float((np.abs(exact - mixed()[0].exact[0]).sum(1) / 2).mean()),
        "answers": float(np.concatenate([away(probe) for probe in named]).mean()),
        "told": float(away(told()).mean()),
    }
