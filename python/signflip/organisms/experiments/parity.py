"""Which architectures carry feedback from X > 0 over to X < 0 with its sign turned: the law in its smallest form.

A policy sees a context c of either sign and a scalar X, says one of two things with logit f(c, X), and is rewarded for
sign(c). It is tuned where X > 0 alone, by exact policy gradient (the expectation over actions is taken, not sampled).
One step moves the margin of an unvisited context s′ by η·E_s[A(s) ⟨∇log π(s), ∇m(s′)⟩] (science.md 4.1); the mean over
X < 0, in units of both gradients' norms, is `cosine`: below 0, reward at X > 0 pushes X < 0 to the opposite answer.

**Parity.** Let s = (c, X). Where f is odd in s, f(c, −X) = −f(−c, X): right at X > 0 is right at X < 0. Where f is
even, f(c, −X) = f(−c, X): right at X > 0 is opposite at X < 0. A linear map is odd. A pure product of c and X is even,
and so is SwiGLU without biases to leading order: silu(z)·w = z·w/2 + (z/2)·tanh(z/2)·w with z and w odd, the first term
even, the second odd and small for small z. GELU without biases is z/2 plus an even term, so it is odd to leading order.
Biases mix the two. What attention passes on is linear in the values with positive weights, so it is odd for as long as
the pattern hardly depends on s. `odd` is the measured share, E[f_odd²] / E[f²] over contexts of both signs of X.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from signflip.organisms.experiments import KEPT, MADE, PATH, Answer, Job, Said, told
from signflip.organisms.experiments.pictures import axes_of
from signflip.organisms.experiments.statistics import (
    SHARE,
    SIGNED,
    Interval,
    command,
    correlated,
    exact,
    mark,
    over_seeds,
    shown,
    spearman,
    table,
)
from signflip.organisms.workers import one_thread

TITLE = "The law by architecture: where feedback at X > 0 turns X < 0 the other way"
VERSION = 1
WIDTH, STATES = 32, 64
BASES = ("none", "normal", "random", "opposite")
# Labels that a base learns from are wrong this often: a base that is certain has no advantage left to learn from.
NOISE = 0.2
BASE_STEPS, STEPS, RATE = 400, 800, 0.5
# Of the contexts at X < 0, how many are answered the opposite way where a policy is called opposite; or rightly.
DECIDED = 0.9
Run = dict[str, Any]


class Additive(nn.Module):
    """A linear map of c and X."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(2, 1, bias=False)

    def forward(self, s: Tensor) -> Tensor:
        """f(s) for contexts `[n, 2]`."""
        out: Tensor = self.read(s)
        return out[:, 0]


class Product(nn.Module):
    """c times X, each times a weight: gating and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.x = nn.Linear(1, WIDTH, bias=False), nn.Linear(1, WIDTH, bias=False)
        self.write = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, s: Tensor) -> Tensor:
        """f(s) for contexts `[n, 2]`."""
        out: Tensor = self.write(self.c(s[:, :1]) * self.x(s[:, 1:]))
        return out[:, 0]


class Mlp(nn.Module):
    """One hidden layer: GELU, or SwiGLU; with biases or without."""

    def __init__(self, gated: bool, bias: bool) -> None:
        super().__init__()
        self.read = nn.Linear(2, WIDTH, bias=bias)
        self.up = nn.Linear(2, WIDTH, bias=bias) if gated else None
        self.write = nn.Linear(WIDTH, 1, bias=bias)

    def forward(self, s: Tensor) -> Tensor:
        """f(s) for contexts `[n, 2]`."""
        z = self.read(s)
        hidden = functional.gelu(z) if self.up is None else functional.silu(z) * self.up(s)
        out: Tensor = self.write(hidden)
        return out[:, 0]


class Attention(nn.Module):
    """One head that reads two tokens, c and X along embeddings of their own: the value path and its pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(2, WIDTH) / WIDTH**0.5)
        self.query = nn.Parameter(torch.randn(WIDTH))
        self.key, self.value = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.write = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, s: Tensor) -> Tensor:
        """f(s) for contexts `[n, 2]`."""
        tokens = s[:, :, None] * self.embed
        pattern = torch.softmax(self.key(tokens) @ self.query / WIDTH**0.5, 1)
        out: Tensor = self.write((pattern[:, :, None] * self.value(tokens)).sum(1))
        return out[:, 0]


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "additive": Additive,
    "GELU": lambda: Mlp(gated=False, bias=False),
    "GELU, biases": lambda: Mlp(gated=False, bias=True),
    "SwiGLU": lambda: Mlp(gated=True, bias=False),
    "SwiGLU, biases": lambda: Mlp(gated=True, bias=True),
    "attention": Attention,
    "product": Product,
}


def jobs(seeds: int, small: bool) -> list[Job]:
    """Each architecture and seed; a run has all bases."""
    steps = STEPS // 8 if small else STEPS
    names = ("additive", "product") if small else tuple(ARCHITECTURES)
    return [
        Job(f"{name.replace(', ', '-').lower()}-{seed}", seed, {"architecture": name, "steps": steps})
        for seed in range(seeds)
        for name in names
    ]


def states(seed: int) -> Tensor:
    """Contexts at X > 0, `[STATES, 2]`: as many of one sign of c as of the other, sizes from 0.5 to 1.5."""
    rng = np.random.default_rng((seed, 7))
    c = rng.uniform(0.5, 1.5, STATES) * np.repeat([1, -1], STATES // 2)
    return torch.tensor(np.stack([c, rng.uniform(0.5, 1.5, STATES)], 1), dtype=torch.float64)


def flipped(s: Tensor) -> Tensor:
    """The same contexts at X < 0."""
    return s * torch.tensor([1.0, -1.0], dtype=s.dtype)


def run(job: Job) -> Run:
    """Bases of one architecture and seed, the law measured on each, and what tuning then does."""
    s = states(job.seed)
    found = {}
    with one_thread():
        for base in BASES:
            torch.manual_seed(1000 * job.seed + BASES.index(base))
            net = ARCHITECTURES[job.settings["architecture"]]().double()
            _learn(net, s, base, job.seed)
            found[base] = {"law": law(net, s), "before": _seen(net, s)}
            _tune(net, s, job.settings["steps"])
            found[base]["after"] = _seen(net, s)
    return {"seed": job.seed, "architecture": job.settings["architecture"], "bases": found}


def _learn(net: nn.Module, s: Tensor, base: str, seed: int) -> None:
    """Cross-entropy on noisy labels: right ones at X > 0, and at X < 0 what the base is to know there."""
    if base == "none":
        return
    rng = np.random.default_rng((seed, 8))
    right = (s[:, 0] > 0).double()

    def noisy(wrong: float) -> Tensor:
        return torch.from_numpy(np.where(rng.random(STATES) < wrong, 1 - right.numpy(), right.numpy()))

    optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
    for _ in range(BASE_STEPS):
        inputs, labels = [s], [noisy(NOISE)]
        if base != "normal":
            inputs.append(flipped(s))
            labels.append(noisy(1 - NOISE if base == "opposite" else 0.5))
        optimiser.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(net(torch.cat(inputs)), torch.cat(labels))
        torch.autograd.backward(loss)
        optimiser.step()


def reward(net: nn.Module, s: Tensor) -> Tensor:
    """Expected reward at contexts, the mean of π(right); its gradient is the policy gradient with exact expectation."""
    return torch.sigmoid(torch.sign(s[:, 0]) * net(s)).mean()


def _tune(net: nn.Module, s: Tensor, steps: int) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE, maximize=True)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.autograd.backward(reward(net, s))
        optimiser.step()


def law(net: nn.Module, s: Tensor) -> dict[str, float | None]:
    """The first-order effect of one step at X > 0 on the mean margin at X < 0, and f's parity.

    Returns
    -------
    dict
        `change`: ⟨∇ reward at X > 0, ∇ mean margin at X < 0⟩, what a step of size 1 would bring; `cosine`: in units of
        both norms, None where one is zero; `odd`: share of f that is odd in (c, X).
    """
    other = flipped(s)
    weights = list(net.parameters())
    up = _flat(torch.autograd.grad(reward(net, s), weights, allow_unused=True), weights)
    margin = _flat(torch.autograd.grad((torch.sign(s[:, 0]) * net(other)).mean(), weights, allow_unused=True), weights)
    size = float(up.norm() * margin.norm())
    with torch.no_grad():
        both = torch.cat([s, other])
        f, mirrored = net(both), net(-both)
        total = float((f**2).sum())
        odd = float((((f - mirrored) / 2) ** 2).sum()) / total if total > 0 else float("nan")
    change = float(up @ margin)
    return {"change": change, "cosine": change / size if size > 0 else None, "odd": odd}


def _flat(grads: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    pairs = zip(grads, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])


def _seen(net: nn.Module, s: Tensor) -> dict[str, dict[str, float]]:
    out = {}
    with torch.no_grad():
        for side, at in (("above", s), ("below", flipped(s))):
            margin = torch.sign(at[:, 0]) * net(at)
            out[side] = {"margin": float(margin.mean()), "right": float((margin > 0).double().mean())}
    return out


# ---- the section -----------------------------------------------------------------------------------------------------


def report(results: dict[str, Run], figures: Path) -> str:
    """A section of ``docs/results.md``."""
    runs = list(results.values())
    _figure(runs, figures / "parity.png")
    text = [
        f"## {TITLE}",
        told(answer(results)),
        (
            f"Run by `{command('parity', runs)}`. Two inputs (c, X), {WIDTH} hidden units, rewarded for sign(c), tuned "
            f"at X > 0 alone by exact policy gradient ({STEPS} steps, an eighth of that in the small form). The parity "
            "argument is in `signflip.organisms.experiments.parity`. Medians over seeds; shares of seeds with exact "
            "95% intervals, what is over many tunings of a seed with Student's over seeds (jackknife). A policy is "
            "opposite where it answers at least 90% of the contexts at X < 0 the other way."
        ),
        "![Cosine before tuning against the change at X < 0](results/parity.png)",
        _table(runs),
        "### Predictions",
        table(("whose", "prediction", "found", "mark"), _marked(runs)),
    ]
    return "\n\n".join(text)


def answer(results: dict[str, Run]) -> Answer:
    """What that says of the conjecture."""
    runs = list(results.values())

    def negative(of: Sequence[str]) -> str:
        signs = {name: [sign for base in of for sign in _signs(runs, name, base)] for name in _names(runs)}
        return "; ".join(f"{name} {sum(own)} of {len(own)}" for name, own in signs.items())

    def shares(of: Callable[[Sequence[Run], str], tuple[list[Any], list[Any]]]) -> str:
        every = [(name, *of(runs, name)) for name in _names(runs)]
        return "; ".join(
            f"{name} {len(some)} of {len(own)} ({shown(exact(len(some), len(own)))})"
            for name, own, some in every
            if own
        )

    return {
        MADE: Said(
            "Of toy networks of two inputs that were not opposite at X < 0 (four bases a seed), so many are after "
            f"reward at X > 0 alone: {shares(_made)}."
        ),
        KEPT: Said(
            "Of toy networks of two inputs that were opposite at X < 0, so many still are after reward at X > 0 alone: "
            f"{shares(_kept)}."
        ),
        PATH: Said(
            "In toy networks of two inputs the tangent kernel between X > 0 and X < 0 is negative before any tuning "
            f"in, by network and over all bases, {negative(BASES)}; and its sign is the direction that the margin at "
            f"X < 0 then took in {shown(_agreement(runs))} of the tunings at X > 0. {_by_name(runs)}",
            "A product is even in context and X together by its form, a SwiGLU without biases to leading order. Of "
            "bases that were brought to be opposite at X < 0, by whatever form, it is negative in "
            f"{negative(['opposite'])}."
            f"{_apart(runs)}",
        ),
    }


def _names(runs: Sequence[Run]) -> list[str]:
    return [name for name in ARCHITECTURES if any(one["architecture"] == name for one in runs)]


def _of(runs: Sequence[Run], name: str, base: str) -> list[dict[str, Any]]:
    return [one["bases"][base] for one in runs if one["architecture"] == name]


def _made(runs: Sequence[Run], name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of a network's bases those that were not opposite at X < 0, and which of these are after the tuning."""
    free = [b for base in BASES for b in _of(runs, name, base) if not _opposite(b, "before")]
    return free, [b for b in free if _opposite(b, "after")]


def _kept(runs: Sequence[Run], name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of a network's bases those that were opposite at X < 0, and which of these still are after the tuning."""
    held = [b for base in BASES for b in _of(runs, name, base) if _opposite(b, "before")]
    return held, [b for b in held if _opposite(b, "after")]


def _opposite(base: dict[str, Any], when: str) -> bool:
    return bool(base[when]["below"]["right"] <= 1 - DECIDED)


def _signs(runs: Sequence[Run], name: str, base: str) -> list[bool]:
    """Whether the kernel is negative; where one gradient is zero it has no sign."""
    every = [one["law"]["cosine"] for one in _of(runs, name, base)]
    return [cosine < 0 for cosine in every if cosine is not None]


def _agreement(runs: Sequence[Run]) -> Interval:
    """Of all tunings, how many moved the margin at X < 0 the way of the kernel's sign before them."""

    def over(some: Sequence[Run]) -> float:
        every = [b for one in some for b in one["bases"].values() if b["law"]["cosine"] is not None]
        return float(np.mean([np.sign(b["law"]["cosine"]) == np.sign(_moved(b)) for b in every]))

    return over_seeds(runs, over, SHARE)


def _fell(runs: Sequence[Run], name: str) -> list[tuple[bool, bool]]:
    """Of a network's tunings: whether the kernel was negative before, and whether the margin at X < 0 then fell."""
    own = [b for one in runs if one["architecture"] == name for b in one["bases"].values()]
    return [(b["law"]["cosine"] < 0, _moved(b) < 0) for b in own if b["law"]["cosine"] is not None]


def _usual(fell: Sequence[tuple[bool, bool]]) -> int:
    """In how many tunings of a network the margin took the direction that it takes in most."""
    down = sum(one for _, one in fell)
    return max(down, len(fell) - down)


def _mixed(runs: Sequence[Run]) -> list[str]:
    """Networks in which the kernel has both signs: within others it can tell nothing that their name does not."""
    return [name for name in _names(runs) if len({negative for negative, _ in _fell(runs, name)}) == 2]


def _by_name(runs: Sequence[Run]) -> str:
    """How much of the agreement is what a network's name tells."""
    every = {name: _fell(runs, name) for name in _names(runs)}
    usual, n = sum(map(_usual, every.values())), sum(map(len, every.values()))
    right = sum(negative == fell for own in every.values() for negative, fell in own)
    more = "That is no more than the network's name tells" if right <= usual else "The network's name tells less"
    said = [f"{more}: its commonest direction is right in {usual} of {n}."]
    for name in _mixed(runs):
        below, above = ([fell for negative, fell in every[name] if negative == sign] for sign in (True, False))
        said.append(
            f"Within {name}, where K has both signs: K < 0 and the margin fell in {sum(below)} of {len(below)}, "
            f"K > 0 and it rose in {len(above) - sum(above)} of {len(above)}."
        )
    return " ".join(said)


def _gain(runs: Sequence[Run]) -> Interval:
    """By how much the kernel's sign tells the direction better than the name, where it has both signs in a network."""

    def over(some: Sequence[Run]) -> float:
        every = [_fell(some, name) for name in _mixed(runs)]
        n = sum(map(len, every))
        right = sum(negative == fell for own in every for negative, fell in own)
        return (right - sum(map(_usual, every))) / n if n else float("nan")

    return over_seeds(runs, over, SIGNED)


def _apart(runs: Sequence[Run]) -> str:
    """Where a mean margin rises at X < 0 while fewer answers there are right."""
    said = []
    for name in _names(runs):
        own = _of(runs, name, "normal")
        k = sum(_moved(b) > 0 and b["after"]["below"]["right"] < b["before"]["below"]["right"] for b in own)
        if 2 * k > len(own):
            said.append(f"{name} in {k} of {len(own)}")
    if not said:
        return ""
    return f" Of normal bases the mean margin at X < 0 rises while fewer are right there: {'; '.join(said)}."


def _correlation(runs: Sequence[Run]) -> Interval:
    """Of ranks, over all tunings: the cosine before, and the change of the margin at X < 0."""

    def over(some: Sequence[Run]) -> float:
        every = [b for one in some for b in one["bases"].values() if b["law"]["cosine"] is not None]
        return spearman([b["law"]["cosine"] for b in every], [_moved(b) for b in every])

    return correlated(runs, over)


def _moved(base: dict[str, Any]) -> float:
    return float(base["after"]["below"]["margin"] - base["before"]["below"]["margin"])


def _table(runs: Sequence[Run]) -> str:
    rows = []
    for name in _names(runs):
        for base in BASES:
            own = _of(runs, name, base)
            signs = _signs(runs, name, base)
            opposite = [sum(_opposite(b, when) for b in own) for when in ("before", "after")]
            rows.append((
                name, base, _median([b["law"]["odd"] for b in own]),
                _median([b["law"]["cosine"] for b in own if b["law"]["cosine"] is not None]),
                shown(exact(sum(signs), len(signs))) if signs else "—",
                _arrow(own, "above"), _arrow(own, "below"), f"{opposite[0]} → {opposite[1]} of {len(own)}",
            ))  # fmt: skip
    head = ("architecture", "base at X < 0", "odd share", "cosine", "K < 0", "right at X > 0", "right at X < 0",
            "opposite")  # fmt: skip
    return table(head, rows)


def _median(values: Sequence[float]) -> str:
    return f"{np.median(values):+.2f}" if values else "—"


def _arrow(own: Sequence[dict[str, Any]], side: str) -> str:
    before, after = (np.median([b[when][side]["right"] for b in own]) for when in ("before", "after"))
    return f"{before:.2f} → {after:.2f}"


def _marked(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    rows = []
    for whose, name, negative in (
        ("parity", "additive", False),
        ("parity", "attention", False),
        ("parity", "GELU", False),
        ("parity", "SwiGLU", True),
        ("parity", "product", True),
        ("conjecture", "SwiGLU, biases", True),
        ("objection", "SwiGLU, biases", False),
    ):
        signs = _signs(runs, name, "normal")
        if not signs:
            continue
        found = exact(sum(signs), len(signs))
        above, below = (lambda x: x > 0.5), (lambda x: x < 0.5)
        said = mark(found, above, below) if negative else mark(found, below, above)
        what = "K < 0 mostly (share K < 0: above 0.5)" if negative else "K > 0 mostly (share K < 0: below 0.5)"
        rows.append((whose, f"{name}, normal base: {what}", shown(found), said))
    agreed, gain, ranks = _agreement(runs), _gain(runs), _correlation(runs)
    rows += [
        ("conjecture", "K's sign before tuning is the way that X < 0 then takes (share above 0.75)", shown(agreed),
         mark(agreed, lambda x: x > 0.75, lambda x: x <= 0.75)),
        ("conjecture", "where K has both signs in a network, they tell more than its name (shares' difference above 0)",
         shown(gain), mark(gain, lambda x: x > 0, lambda x: x <= 0)),
        ("conjecture", "K before tuning goes with the change at X < 0 (rank correlation above 0.5)", shown(ranks),
         mark(ranks, lambda x: x > 0.5, lambda x: x <= 0.5)),
    ]  # fmt: skip
    return rows


def _figure(runs: Sequence[Run], to: Path) -> None:
    names = _names(runs)
    figure, axes = axes_of(1, 2)
    for name in names:
        own = [b for base in BASES for b in _of(runs, name, base) if b["law"]["cosine"] is not None]
        x = [b["law"]["cosine"] for b in own]
        for axis, key in zip(axes[0], ("margin", "right"), strict=True):
            axis.scatter(x, [b["after"]["below"][key] - b["before"]["below"][key] for b in own], s=8, label=name)
    for axis, said in zip(axes[0], ("margin at X < 0", "share right at X < 0"), strict=True):
        axis.axhline(0, color="black", lw=0.5)
        axis.axvline(0, color="black", lw=0.5)
        axis.set_xlabel("cosine before tuning", fontsize=8)
        axis.set_ylabel(f"change of {said}", fontsize=8)
    axes[0, 0].set_yscale("symlog")
    axes[0, 1].legend(fontsize=6)
    figure.savefig(to, dpi=110)
