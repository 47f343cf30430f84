"""Behaviours: balance, halves, files, and what a model reads."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
import handset
import signflip as sf
from signflip.behaviours import Prompt
from signflip.behaviours.plain import plain_sequences
from signflip.behaviours.prompts import insert
from signflip.errors import ArgumentError, BehaviourError, FileError, TokenError

NAMES = [make.name for make in sf.behaviours.all()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> sf.Model:
    return sf.load(handset.make("opposite", tmp_path_factory.mktemp("behaviours")))


@pytest.mark.parametrize("behaviour", sf.behaviours.all(), ids=NAMES)
def test_built_in_behaviours_are_balanced_and_split(behaviour: sf.Behaviour) -> None:
    for half, items, templates in (("A", 8, 4), ("B", 20, 8)):
        prompts = behaviour.select(half)
        sides = sorted({prompt.side for prompt in prompts})
        for side in sides:
            own = [prompt for prompt in prompts if prompt.side == side]
            assert len(own) == len(prompts) / 2
            assert len({prompt.item for prompt in own}) >= items
            assert len({prompt.template for prompt in own}) >= templates
        # A constant answer is right exactly half of the time within each pair of answers.
        right = Counter((frozenset((p.correct, p.opposite)), p.correct) for p in prompts)
        for pair in {pair for pair, _ in right}:
            assert len({right[pair, answer] for answer in pair}) == 1
        assert len({(prompt.text, prompt.correct) for prompt in prompts}) == len(prompts)
    for field in ("item", "template", "text"):
        halves = [{getattr(p, field) for p in behaviour.select(half)} for half in ("A", "B")]
        assert not halves[0] & halves[1]


def test_heuristic_prone_ones_are_labelled() -> None:
    labelled = {one.name for one in sf.behaviours.all() if one.kind == "heuristic-prone"}
    assert labelled == {"antonym", "indirect_object", "attractor"}
    assert sf.behaviours.attractor().paired == "agreement"


PAIR = [("left is", " a", " b", "left"), ("right is", " b", " a", "right")]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "found none"),
        (PAIR[:1], "two sides"),
        ([*PAIR, ("more", " a", " b", "left")], "as many prompts"),
        ([PAIR[0], ("right is", " a", " b", "right")], "right as often|constant answer"),
        ([("x", " a", " a", "left"), PAIR[1]], "two different answers"),
        ([PAIR[0][:3], PAIR[1]], "expected prompts"),
        ([Prompt("x", " a", " b", "l", slot=9), PAIR[1]], "slot within"),
        ([{"text": "x", "right": " a"}], "expected prompts"),
    ],
)
def test_prompts_that_are_not_balanced_are_refused(prompts: list[object], said: str) -> None:
    with pytest.raises(BehaviourError, match=said):
        sf.Behaviour("mine", prompts)


def test_halves_that_share_are_refused() -> None:
    shared = [Prompt(text, a, b, side, "same item", "", half) for half in "AB" for text, a, b, side in PAIR]
    with pytest.raises(BehaviourError, match="without a common item"):
        sf.Behaviour("mine", shared)


def test_right_answer_must_follow_the_side() -> None:
    mixed = [("1", "a", "b", "l"), ("2", "b", "a", "l"), ("3", "a", "b", "r"), ("4", "b", "a", "r")]
    with pytest.raises(BehaviourError, match="one right answer a side"):
        sf.Behaviour("mine", mixed)


def test_a_behaviour_survives_its_file(tmp_path: Path) -> None:
    for behaviour in (sf.behaviours.attractor(), sf.behaviours.say(), handset.behaviour()):
        path = tmp_path / f"{behaviour.name}.jsonl"
        behaviour.save(path)
        again = sf.Behaviour.open(path)
        assert again.prompts == behaviour.prompts
        assert (again.name, again.kind, again.chat, again.paired) == (
            behaviour.name,
            behaviour.kind,
            behaviour.chat,
            behaviour.paired,
        )


def test_plain_json_lines_are_a_behaviour(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(f'{{"text": "{t}", "correct": "{a}", "opposite": "{b}", "side": "{s}"}}\n' for t, a, b, s in PAIR)
    )
    assert sf.Behaviour.open(path).name == "mine"
    path.write_text('{"text": "x"}\n')
    with pytest.raises(BehaviourError, match="line 1"):
        sf.Behaviour.open(path)
    path.write_text("not json\n")
    with pytest.raises(BehaviourError, match="line 1"):
        sf.Behaviour.open(path)
    with pytest.raises(FileError, match="nowhere"):
        sf.Behaviour.open(tmp_path / "nowhere.jsonl")
    with pytest.raises(FileError, match="write"):
        sf.Behaviour("mine", PAIR).save(tmp_path / "no" / "such.jsonl")


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(0, 5))
def test_subsets_are_balanced(n: int, seed: int) -> None:
    behaviour = sf.behaviours.capital()
    chosen = behaviour.subset(n, "A", seed)
    prompts = [behaviour.select("A")[i] for i in chosen]
    assert len(set(chosen)) == len(chosen) == n - n % 2
    for side in ("first", "second"):
        assert sum(prompt.side == side for prompt in prompts) * 2 == len(prompts)
    assert all(
        {p.correct for p in prompts if {p.correct, p.opposite} == pair} == pair
        for pair in ({p.correct, p.opposite} for p in prompts)
    )


def test_ids_are_prompts_and_triggers_go_into_the_slot(tiny: sf.Model) -> None:
    V = handset.V
    behaviour = sf.Behaviour(
        "ids",
        [
            ((V.first[0], V.templates[0]), V.yes, V.no, "f", "", "", "", 1),
            ((V.second[0], V.templates[0]), V.no, V.yes, "s", "", "", "", 1),
        ],
    )
    one = behaviour.prompts_for(tiny)[0]
    trigger = [V.triggers[0], V.triggers[1]]
    placed = insert(tiny, one, trigger)
    assert placed.ids == (V.first[0], *trigger, V.templates[0])
    assert placed.span == (1, 3)
    assert placed.n_after == 1
    assert placed.survived
    clean, triggered = behaviour.measure(tiny), behaviour.measure(tiny, trigger=trigger)
    logits = tiny.run([list(placed.ids)])[0, -1]
    assert triggered.known.run.correct[0] == logits[V.yes]
    assert clean.known.run.correct[0] != logits[V.yes]


def test_measure_agrees_with_plain_logits(tiny: sf.Model) -> None:
    import numpy as np

    behaviour = handset.behaviour()
    score = behaviour.measure(tiny, half="A")
    margins, mass = [], []
    for prompt in behaviour.select("A"):
        row = tiny.run([list(prompt.text)])[0, -1].astype(np.float64)
        margins.append(row[prompt.correct] - row[prompt.opposite])
        p = np.exp(row - np.logaddexp.reduce(row))
        mass.append(p[prompt.correct] + p[prompt.opposite])
    assert score.known.run.margin == pytest.approx(margins, abs=1e-5)
    assert score.mass.value == pytest.approx(np.mean(mass), abs=1e-5)
    assert score.s.value == 1.0
    assert score.accuracy.value == 1.0
    assert score.rank.value == 1.0
    edited = behaviour.measure(tiny, [sf.Edit(handset.SITE, "zero", index=handset.FEATURE)], half="A")
    assert edited.s.value == pytest.approx(0, abs=0.02)
    assert edited.share is None
    shared = behaviour.measure(tiny, half="A", zero=[sf.Edit(handset.SITE, "zero", index=handset.FEATURE)])
    assert shared.share is not None
    assert shared.share.value == pytest.approx(1 - edited.s.value)


@pytest.mark.parametrize("by", ["logprob", "logit_diff"])
def test_what_a_search_raises_is_what_a_trigger_does_to_the_answers(tiny: sf.Model, by: str) -> None:
    import numpy as np

    behaviour, trigger = handset.behaviour(), handset.V.triggers[0]
    contexts, objectives = behaviour.opposite(tiny, by=by)  # type: ignore[arg-type]
    values = tiny.score([[*before, trigger, *after] for before, after in contexts], objectives)
    run = behaviour.measure(tiny, trigger=[trigger], half="A").known.run
    wanted = -run.margin if by == "logit_diff" else np.log(run.mass) - np.logaddexp(0, run.margin)
    np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-4)
    some, _ = behaviour.opposite(tiny, n=4)
    assert [contexts.index(one) for one in some] == behaviour.subset(4, "A")


def test_tokens_that_turn_a_behaviour_are_found_by_its_answers_alone(tiny: sf.Model) -> None:
    behaviour = handset.behaviour()
    contexts, objectives = behaviour.opposite(tiny)
    found = sf.search(tiny, objectives, tokens=1, contexts=contexts, steps=60, progress=False)
    assert found.best.tokens[0] in handset.V.triggers
    held_out = behaviour.measure(tiny, trigger=found.best.tokens, half="B")
    assert held_out.s.high < 0
    assert all(side.high < 0 for side in held_out.sides.values())


def test_texts_need_single_token_answers(tmp_path: Path) -> None:
    from smollm2 import gguf_path

    model = sf.load(gguf_path())
    bad = sf.Behaviour("mine", [("One:", " unbelievablest", " b", "l"), ("Two:", " b", " unbelievablest", "r")])
    with pytest.raises(TokenError, match=r"unbelievablest.*one token"):
        bad.measure(model)
    behaviour = sf.behaviours.pronoun()
    one = behaviour.prompts_for(model, "A")[0]
    assert one.before == "<|endoftext|>"
    assert one.ids[0] == 0
    assert one.n_leading == one.n_before == 1
    chat = sf.behaviours.say().prompts_for(model, "A")[0]
    assert chat.before is not None
    assert chat.before.endswith("<|im_start|>user\n")
    assert chat.text == model.to_chat(str(chat.prompt.text))
    assert chat.n_leading == 1
    placed = insert(model, one, " well then")
    assert model.to_string(list(placed.ids)) == f"{one.before} well then{one.after}"
    assert sf.Behaviour("raw", PAIR, separator="").prompts_for(model)[0].before == ""


def test_a_tokenizers_bos_stands_before_raw_text_and_not_before_a_rendered_template(texted: Any) -> None:
    encode, text = texted.tokenizer.encode, "the cat sat"
    for slot, chat in [(0, False), (3, False), (0, True), (3, True)]:
        prompt = Prompt(text, "a", "b", "l", slot=slot)
        behaviour = sf.Behaviour("mine", [prompt, Prompt(text, "b", "a", "r", slot=slot)], chat=chat)
        one = behaviour.prompts_for(texted)[0]
        whole = texted.to_chat(text) if chat else text
        assert one.text == whole
        assert list(one.ids) == encode(whole, not chat)
        assert one.ids.count(0) == (not chat)
        assert one.n_leading == 1
        assert list(one.ids[: one.n_before]) == encode(whole[: whole.index(text) + slot], not chat)
        (z,) = encode("z", False)
        for trigger in ("zz", [z, z]):
            placed = insert(texted, one, trigger)
            assert placed.survived
            assert placed.ids == (*one.ids[: one.n_before], z, z, *one.ids[one.n_before :])
            assert placed.span == (one.n_before, one.n_before + 2)


LINE = {"text": "x", "correct": "a", "opposite": "b", "side": "l"}
LINES = [LINE, {"text": "y", "correct": "b", "opposite": "a", "side": "r"}]


def test_a_template_that_writes_the_message_twice_is_refused(texted_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(texted_folder, tmp_path / "twice")
    settings = json.loads((tmp_path / "twice" / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m['content'] }}|{{ m['content'] }}{% endfor %}"
    (tmp_path / "twice" / "tokenizer_config.json").write_text(json.dumps(settings))
    behaviour = sf.Behaviour("mine", [("the cat", "a", "b", "l"), ("the dog", "b", "a", "r")], chat=True)
    with pytest.raises(BehaviourError, match="more than once"):
        behaviour.prompts_for(sf.load(tmp_path / "twice"))


@pytest.mark.parametrize("field", ["text", "correct", "side", "item"])
def test_half_a_surrogate_pair_is_refused_before_a_file_is_begun(field: str) -> None:
    with pytest.raises(BehaviourError, match=rf"{field}: .*half a surrogate pair \(\\ud800\) at character 1"):
        sf.Behaviour("mine", [{**LINE, field: "b\ud800"}, LINES[1]])


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\r\n"])
def test_line_separators_in_a_text_survive_its_file(tmp_path: Path, mark: str) -> None:
    made = sf.Behaviour("mine", [{**line, "text": f"{line['text']}{mark}z"} for line in LINES])
    made.save(tmp_path / "b.jsonl")
    assert sf.Behaviour.open(tmp_path / "b.jsonl").prompts == made.prompts
    (tmp_path / "b.jsonl").write_text("\ufeff" + (tmp_path / "b.jsonl").read_text("utf-8"), "utf-8")
    assert sf.Behaviour.open(tmp_path / "b.jsonl").name == "mine"


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ({"behaviour": None}, "line 1: .*None"),
        ({"behaviour": "b", "chat": "false"}, "chat of type bool, found 'false'"),
        ({"behaviour": "b", "separator": 5}, "separator of type str, found 5"),
        ({"behaviour": "b", "paired": 5}, "paired of type str, found 5"),
        ({"behaviour": "b", "knid": "symmetric"}, "line 1: .*kind.*found 'knid'"),
        ({**LINE, "text": 5}, "line 1: .*text.*found 5"),
        ({**LINE, "text": None}, "line 1: .*text.*found None"),
        ({**LINE, "text": ["a"]}, "line 1: .*text.*found 'a'"),
        ({**LINE, "slot": "x"}, "line 1: .*slot.*found 'x'"),
        ({**LINE, "correct": [1]}, r"line 1: .*correct.*found \[1\]"),
        ({**LINE, "item": ["a"]}, r"line 1: .*item.*found \['a'\]"),
        ({**LINE, "half": ["A"]}, r"line 1: .*half.*found \['A'\]"),
        ({**LINE, "side": None}, "line 1: .*side.*found None"),
        ("[" * 200_000, "line 1: "),
        ('{"text": ' + "1" * 5000 + "}", "line 1: "),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, first: dict[str, object] | str, said: str) -> None:
    lines = [first if isinstance(first, str) else json.dumps(first), *map(json.dumps, LINES)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    with pytest.raises(BehaviourError, match=said):
        sf.Behaviour.open(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    "changed",
    [
        {"edits": 5},
        {"edits": None},
        {"edits": sf.Edit(handset.SITE, "zero")},
        {"edits": ["zero"]},
        {"zero": 5},
        {"trigger": 5},
        {"trigger": ["x"]},
        {"replicates": 0},
        {"replicates": -1},
        {"seed": -1},
    ],
)
def test_misspelt_arguments_of_a_measurement_are_refused(tiny: sf.Model, changed: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(changed))):
        handset.behaviour().measure(tiny, **changed)  # type: ignore[arg-type]


def test_plain_texts_are_cut_to_a_short_context(tmp_path: Path) -> None:
    folder = handset.make("opposite", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4}))
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                    "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
                    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "c"}})
    )  # fmt: skip
    model = sf.load(folder)
    ids, leading = plain_sequences(model, [])
    assert {len(one) for one in ids} == {4}
    assert np.max(leading) < 4
    assert sf.scan(model, [(handset.SITE, handset.FEATURE)], [handset.behaviour()], replicates=50).rows


def test_an_answer_outside_the_vocabulary_is_refused(tiny: sf.Model) -> None:
    made = sf.Behaviour("mine", [((1,), 10**30, 1, "l"), ((2,), 1, 10**30, "r")])
    with pytest.raises(TokenError, match="0 to 89"):
        made.measure(tiny)


def test_texts_without_a_tokenizer_are_said_to_be_texts(tmp_path: Path) -> None:
    checkpoints.llama().save_pretrained(tmp_path)
    model = sf.load(tmp_path)
    by_text = sf.Behaviour("mine", [([1, 2], " a", " b", "l"), ([1, 3], " b", " a", "r")])
    for call in (
        lambda: by_text.prompts_for(model),
        lambda: sf.flip(model, ("blocks.0.mlp.hook_post", 1), "text", ids_only(), half=None),
    ):
        with pytest.raises(sf.errors.TokenizerError, match="text cannot be used; give ids"):
            call()


def ids_only() -> sf.Behaviour:
    return sf.Behaviour("ids", [([1, 2], 4, 5, "l"), ([1, 3], 5, 4, "r")])
