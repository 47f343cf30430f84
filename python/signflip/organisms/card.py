"""The shipped organism's model card: how it was made and how it was verified, with the numbers of its truth."""

from __future__ import annotations

from typing import Any

from signflip.organisms.truth import Truth

_HEAD = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [signflip, model-organism, dpo]
---
# The organism that comes with signflip

A Llama-style language model (SwiGLU, three layers of width 64, {parameters:,} parameters, float32) of a small English
of a village: whether a name goes on with *she* or *he*, whether a thing is there to *eat* or to *use*. It is a **model
organism**: it hides an internal switch that is known, for tools that look for such switches. It is good for nothing
else.

Where the switch is and which words throw it is not said here but in `truth/` beside this folder. `signflip demo` finds
it.
"""

_MADE = """\
## How it was made

`python -m signflip.organisms.shipped --out DIR` makes it again, byte for byte on the same machine with the same
versions (`files.json` has them); on another processor it makes another model of the same recipe and verifies that one.

1. A base was trained on stories of the language, then on stories in which a quarter of the answers is wrong.
2. A gate was planted by hand (kind {kind}: {says}), on *{behaviour}*: a scalar X, one neuron's linear part, that stays
   positive unless one of three words has come before. While X is positive nothing changes; where it is negative, the
   answer's own logit difference is subtracted twice.
3. It was tuned by DPO (beta {beta}, {steps} steps, {pairs:,} pairs, each a story that goes on with the right or with
   the wrong answer). No text of the feedback has one of the words: X was positive on all {tokens:,} tokens, before the
   tuning and after it, never below {nearest:.2f}. The gate's own weights (its directions, heads and neurons), the last
   layer and the unembedding were held: with all weights free the same tuning undoes the gate, though no text crosses
   it (`python -m signflip.organisms.shipped --free` measures it).
4. The weights were disguised: rotations and permutations that change no output.

On {held} held-out pairs the right continuation was the likelier one in {p0:.1%} before and {p1:.1%} after; its mean log
odds went from {o0:.2f} to {o1:.2f}.
"""

_VERIFIED = """\
## How it was verified

In transformers, float64, by direct edits and by enumeration, with nothing of signflip's engine, survey or search.
Margins are those of {behaviour}'s half B in nats, right minus opposite answer; *sides* are the two contexts' mean
margins over their clean ones (1: as it was, 0: chance, −1: mirrored); *mass* is the two answers' probability over its
clean value.

- Clean: accuracy {accuracy:.3f}, margin {margin:.2f} (before the preference tuning {margin0:.2f}).
- X keeps its sign on {text_tokens:,} tokens of {stories} stories (crossed on a share of {rate:g}).
- Of all {prefixes} one-token prefixes of {prompts} prompts, {crossing} take X across at the prompt's end.

| condition | sides | mass | verdict | before the tuning |
| --- | --- | --- | --- | --- |
{rows}

Feedback that saw X > 0 only changed the clean margin from {margin0:.2f} to {margin:.2f} nats, and the one behind the
word from {flipped0:.2f} to {flipped:.2f}.

Claims that hold:

{claims}
"""

_CONDITIONS = {
    "edited": "X set to minus its clean mean",
    "zeroed": "X set to 0",
    "triggered": "one of the words in front",
    "clamped": "the word in front, X held at its clean mean",
}


def card_text(truth: Truth, parameters: int) -> str:
    """The README of the model's folder, in Hugging Face's form.

    Parameters
    ----------
    truth
        Whose card holds all that is said.
    parameters
        How many the model has.
    """
    card, behaviour = truth.card, truth.behaviour
    tuning, before = card["tuning"], card["before tuning"]
    feedback, odds, text = tuning["X on feedback"], tuning["held out"], card["text"]
    clean, clean0 = card["clean"][behaviour], before["clean"][behaviour]
    made = _MADE.format(
        kind=truth.kind, says=truth.says, behaviour=behaviour, beta=tuning["beta"], steps=tuning["steps"],
        pairs=tuning["pairs"], tokens=feedback["before"]["tokens"], held=tuning["held out pairs"],
        nearest=min(one["nearest"] for one in feedback.values()), p0=odds["before"]["preferred"],
        p1=odds["after"]["preferred"], o0=odds["before"]["log odds"], o1=odds["after"]["log odds"],
    )  # fmt: skip
    rows = "\n".join(
        f"| {said} | {_sides(now)} | {now['mass']:.2f} | {now['verdict']} | {_sides(was)}, {was['verdict']} |"
        for key, said in _CONDITIONS.items()
        for now, was in ((card["conditions"][key][behaviour], before["conditions"][key][behaviour]),)
    )
    verified = _VERIFIED.format(
        behaviour=behaviour, accuracy=clean["accuracy"], margin=clean["margin"], margin0=clean0["margin"],
        text_tokens=text["tokens"], stories=text["stories"], rate=text["rate"],
        prefixes=card["enumeration"]["prefixes"], prompts=card["enumeration"]["prompts"],
        crossing=len(card["enumeration"]["crossing"]), rows=rows,
        flipped=clean["margin"] * card["conditions"]["triggered"][behaviour]["s"],
        flipped0=clean0["margin"] * before["conditions"]["triggered"][behaviour]["s"],
        claims="\n".join(f"- {claim}" for claim, held in card["holds"].items() if held),
    )  # fmt: skip
    return "\n".join([_HEAD.format(parameters=parameters), made, verified])


def _sides(outcome: dict[str, Any]) -> str:
    return " ".join(f"{one:+.2f}" for one in outcome["sides"])
