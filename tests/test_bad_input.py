"""Bad input gives one typed error that names the thing, never a panic, never a wrong number."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import signflip as sf  # noqa: E402
from reference import peer  # noqa: E402
from signflip import errors as e  # noqa: E402
from tiny import config_of, loaded_default  # noqa: E402

NAN, INF = float("nan"), float("inf")
SITE = "blocks.1.mlp.hook_post"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with loaded_default(request.param) as (found, _, _):
        yield found


def one(call: Callable[[], Any], kind: type[Exception] | tuple[type[Exception], ...], *words: str) -> None:
    """One error of this very family, whose one-sentence message has the words."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word.lower() in message.lower(), message
    assert "\n" not in message.strip()
    assert "panic" not in message.lower()
    assert "internal error" not in message.lower()
    assert isinstance(caught.value, e.SignflipError)


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "run": lambda m, t: m.run(t),
    "run_with_cache": lambda m, t: m.run_with_cache(t),
    "run_with_hooks": lambda m, t: m.run_with_hooks(t, fwd_hooks=[(SITE, lambda act, hook: None)]),
    "score": lambda m, t: m.score(t if isinstance(t, list) else [t], sf.objectives.neuron(SITE, 0)),
    "gradient": lambda m, t: m.gradient(t, sf.objectives.neuron(SITE, 0)),
    "generate": lambda m, t: m.generate(t, max_new_tokens=2),
}
TOKENS: dict[str, tuple[Any, tuple[type[Exception], ...], str]] = {
    "negative": ([1, -1], (e.TokenError,), "-1"),
    "huge": ([1, 2**31], (e.TokenError,), str(2**31)),
    "beyond u32": ([1, 2**32 + 1], (e.TokenError,), str(2**32 + 1)),
    "beyond u64": ([1, 2**70], (e.TokenError,), ""),
    "beyond the vocabulary": ([60, 61], (e.TokenError,), "61"),
    "empty": ([], (e.TokenError,), ""),
    "an empty sequence": ([[1], []], (e.TokenError,), ""),
    "empty array": (np.zeros((0,), dtype=np.int64), (e.TokenError,), ""),
    "empty batch": (np.zeros((0, 3), dtype=np.int64), (e.TokenError,), ""),
    "empty rows": (np.zeros((2, 0), dtype=np.int64), (e.TokenError,), ""),
    "floats": ([1.0, 2.0], (e.TokenError, e.ArgumentError), ""),
    "float array": (np.array([1.0, 2.0]), (e.TokenError, e.ArgumentError), "float"),
    "half a token": ([1, 2.5], (e.TokenError, e.ArgumentError), ""),
    "NaN": (np.array([1, NAN]), (e.TokenError, e.ArgumentError), ""),
    "booleans": (np.array([True, False]), (e.TokenError, e.ArgumentError), "bool"),
    "three axes": (np.zeros((1, 2, 3), dtype=np.int64), (e.TokenError, e.ArgumentError), ""),
    "no axis": (np.array(3), (e.TokenError, e.ArgumentError), ""),
    "nested too deep": ([[[1, 2]]], (e.TokenError, e.ArgumentError), ""),
    "mixed": ([1, [2, 3]], (e.TokenError, e.ArgumentError), ""),
    "None": (None, (e.TokenError, e.ArgumentError), ""),
    "None inside": ([1, None], (e.TokenError, e.ArgumentError), ""),
    "a dict": ({"input_ids": [1]}, (e.TokenError, e.ArgumentError), ""),
    "bytes": (b"abc", (e.TokenError, e.ArgumentError), ""),
    "text without a tokenizer": ("hello", (e.TokenizerError,), "tokenizer"),
    "texts without a tokenizer": (["hello", "there"], (e.TokenizerError,), "tokenizer"),
    "too long": ([1] * 97, (e.ContextLengthError,), "97"),
    "one too long": ([[1], [1] * 97], (e.ContextLengthError,), "96"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", TOKENS)
def test_tokens(model: Any, call: str, what: str) -> None:
    tokens, kinds, word = TOKENS[what]
    if call == "generate" and what == "too long":
        word = ""  # it says what it would come to
    with pytest.raises(kinds) as caught:
        CALLS[call](model, tokens)
    assert word in str(caught.value)
    assert "internal" not in str(caught.value).lower()


@pytest.mark.parametrize(
    "call",
    [
        lambda m, name: m.run([1, 2], edits=[sf.Edit(name, "zero")]),
        lambda m, name: m.run_with_cache([1, 2], names_filter=name),
        lambda m, name: m.run_with_cache([1, 2], names_filter=[SITE, name]),
        lambda m, name: m.run_with_hooks([1, 2], fwd_hooks=[(name, lambda act, hook: None)]),
        lambda m, name: m.gradient([1, 2], sf.objectives.neuron(SITE, 0), wrt=(name,)),
        lambda m, name: m.gradient([1, 2], sf.objectives.neuron(name, 0)),
        lambda m, name: m.score([[1, 2]], sf.objectives.neuron(name, 0)),
        lambda m, name: m.score([[1, 2]], sf.objectives.direction(name, np.ones(5))),
        lambda m, name: m.run_with_cache([1, 2])[1][name],
    ],
)
def test_unknown_sites_name_the_nearest(model: Any, call: Any) -> None:
    one(lambda: call(model, "blocks.1.mlp.hook_pots"), e.SiteError, "blocks.1.mlp.hook_pots", SITE)
    one(lambda: call(model, "blocks.3.mlp.hook_post"), e.SiteError, "blocks.3.mlp.hook_post", "blocks.2.mlp.hook_post")
    one(lambda: call(model, ""), e.SiteError)
    one(lambda: call(model, "blocks.99999999999999999999.mlp.hook_post"), e.SiteError)
    one(lambda: call(model, "blocks.-1.mlp.hook_post"), e.SiteError)
    one(lambda: call(model, "x" * 100_000), e.SiteError)
    one(lambda: call(model, "blocks.1.mlp.höök_post"), e.SiteError, SITE)


def test_sites_of_the_other_family(model: Any) -> None:
    missing = "blocks.0.attn.hook_rot_q" if model.cfg.family == "gpt2" else "hook_pos_embed"
    one(lambda: model.run_with_cache([1], names_filter=missing), e.SiteError, missing)


def test_a_filter_by_function_that_takes_nothing_or_fails(model: Any) -> None:
    one(lambda: model.run_with_cache([1, 2], names_filter=lambda name: False), e.SiteError)
    error = RuntimeError("mine")

    def fails(name: str) -> bool:
        raise error

    with pytest.raises(RuntimeError) as caught:
        model.run_with_cache([1, 2], names_filter=fails)
    assert caught.value is error


@pytest.mark.parametrize(
    ("site", "fields", "word"),
    [
        (SITE, {"op": "sett", "value": 1.0}, "set"),
        (SITE, {"op": "set"}, "value"),
        (SITE, {"op": "add"}, "value"),
        (SITE, {"op": "scale"}, "value"),
        (SITE, {"op": "clamp", "value": 1.0}, "clamp"),
        (SITE, {"op": "clamp", "value": (1.0, -1.0)}, ""),
        (SITE, {"op": "set", "value": NAN}, "finite"),
        (SITE, {"op": "add", "value": 1.0, "index": [3, 3]}, "3 twice"),
        (SITE, {"op": "set", "value": INF}, "finite"),
        (SITE, {"op": "set", "value": [1.0] * 44 + [NAN]}, "finite"),
        (SITE, {"op": "set", "value": 1e39}, "finite"),
        (SITE, {"op": "set", "value": [1.0, 2.0]}, "2"),
        (SITE, {"op": "set", "value": np.ones((3, 45))}, ""),
        (SITE, {"op": "set", "value": np.ones((2, 2, 45))}, ""),
        (SITE, {"op": "set", "value": "much"}, "value"),
        (SITE, {"op": "set", "value": 1.0, "index": 45}, "45"),
        (SITE, {"op": "set", "value": 1.0, "index": [0, 45]}, "45"),
        (SITE, {"op": "set", "value": 1.0, "index": 2**40}, ""),
        (SITE, {"op": "set", "value": 1.0, "index": 1.5}, "index"),
        (SITE, {"op": "set", "value": 1.0, "index": []}, ""),
        (SITE, {"op": "set", "value": 1.0, "index": "all"}, "index"),
        ("blocks.1.attn.hook_z", {"op": "set", "value": 1.0, "index": 4}, ""),
        ("blocks.1.attn.hook_z", {"op": "set", "value": 1.0, "index": (0, 7)}, ""),
        ("blocks.1.attn.hook_z", {"op": "set", "value": 1.0, "index": (0, 0, 0)}, ""),
        (SITE, {"op": "set", "value": 1.0, "positions": [2]}, "2"),
        (SITE, {"op": "set", "value": 1.0, "positions": [-3]}, "-3"),
        (SITE, {"op": "set", "value": 1.0, "positions": []}, ""),
        (SITE, {"op": "set", "value": 1.0, "positions": slice(5, 9)}, ""),
        (SITE, {"op": "set", "value": 1.0, "positions": "last"}, "positions"),
        (SITE, {"op": "set", "value": 1.0, "positions": [0.5]}, ""),
        (SITE, {"op": "clamp", "value": (INF, INF)}, "clamp"),
        (SITE, {"op": "clamp", "value": (-INF, -INF)}, "clamp"),
        (SITE, {"op": "clamp", "value": (1e39, None)}, "clamp"),
        (SITE, {"op": "clamp", "value": (None, NAN)}, "clamp"),
        (SITE, {"op": "clamp", "value": ("a", "b")}, "clamp"),
        (SITE, {"op": "clamp", "value": ("1", "2")}, "clamp"),
        (SITE, {"op": "clamp", "value": (np.zeros(45), np.ones(45))}, "clamp"),
        (SITE, {"op": "resample", "value": [[3, 4]], "seed": None}, "seed"),
        (SITE, {"op": "resample", "value": [[3, 4]], "seed": -1}, "seed"),
        (SITE, {"op": "resample", "value": [[3, 4]], "seed": 1.5}, "seed"),
        ("blocks.1.attn.hook_pattern", {"op": "resample", "value": [[3, 4]]}, "hook_pattern"),
        ("blocks.1.attn.hook_pattern", {"op": "set", "value": np.ones(2), "index": 1}, "hook_pattern"),
        (None, {"op": "zero"}, "site"),
        (5, {"op": "zero"}, "site"),
        (SITE, {"op": "mean", "value": "abc"}, "value"),
        (SITE, {"op": "mean", "value": {}}, "value"),
        (SITE, {"op": "mean", "value": object()}, "value"),
        (SITE, {"op": "set", "value": "1.5"}, "value"),
        (SITE, {"op": "set", "value": 1.0, "index": True}, "index"),
        ("blocks.1.attn.hook_z", {"op": "set", "value": 1.0, "index": True}, "True"),
        ("blocks.1.attn.hook_z", {"op": "set", "value": 1.0, "index": (0, True)}, "True"),
        (SITE, {"op": "set", "value": 1.0, "positions": True}, "positions"),
        (SITE, {"op": "set", "value": 1.0, "positions": slice("a")}, "positions"),
        (SITE, {"op": "set", "value": 1.0, "positions": slice(0, 2, 0)}, "positions"),
        (SITE, {"op": "resample", "value": []}, ""),
        (SITE, {"op": "resample"}, ""),
        (SITE, {"op": "mean"}, "value"),
    ],
)
def test_edits(model: Any, site: str, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(e.SignflipError) as caught:
        model.run([1, 2], edits=[sf.Edit(site, **fields)])
    message = str(caught.value)
    assert word in message, message
    assert "internal" not in message.lower(), message


def test_edits_that_are_not_edits(model: Any) -> None:
    for edits in ([SITE], ["zero"], [None], [(SITE, "zero")], 5):
        with pytest.raises(e.ArgumentError, match="edits"):
            model.run([1, 2], edits=edits)


def test_an_edit_or_hook_behind_the_stop_cannot_fire(model: Any) -> None:
    late = sf.Edit("blocks.2.mlp.hook_post", "zero")
    one(lambda: model.run_with_cache([1, 2], edits=[late], stop_at_layer=1), e.SiteError, "blocks.2.mlp.hook_post")
    one(
        lambda: model.run_with_cache([1, 2], names_filter="blocks.2.mlp.hook_post", stop_at_layer=1),
        e.SiteError,
        "blocks.2.mlp.hook_post",
    )


@pytest.mark.parametrize("stop", [4, -5, 1.5, "x", True])
def test_stop_at_layer(model: Any, stop: Any) -> None:
    with pytest.raises(e.ArgumentError, match="stop_at_layer"):
        model.run_with_cache([1, 2], stop_at_layer=stop)


@pytest.mark.parametrize("wrt", [5, None, [5], [None], [[]]])
def test_wrt(model: Any, wrt: Any) -> None:
    one(lambda: model.gradient([1, 2], sf.objectives.neuron(SITE, 0), wrt=wrt), e.SignflipError, "wrt")


def test_keys_of_a_cache(model: Any) -> None:
    _, cache = model.run_with_cache([1, 2])
    keys: list[Any] = [5, None, (), ("post", 1, 2), (5, 1), [SITE], ("post",)]
    for key in keys:
        with pytest.raises(e.SiteError):
            cache[key]
        assert key not in cache
    assert ("post", 1) in cache


@pytest.mark.parametrize("names", [5, [5], [None], object(), [()], [(5, 1)], [("post", 1, 2)]])
def test_names_filter(model: Any, names: Any) -> None:
    with pytest.raises(e.SignflipError):
        model.run_with_cache([1, 2], names_filter=names)


class TestHooks:
    @pytest.mark.parametrize(
        "wrong",
        [
            lambda act: act[:, :1],
            lambda act: act[..., :-1],
            lambda act: act[0],
            lambda act: 3.0,
            lambda act: np.ones(()),
            lambda act: "zero",
            lambda act: act.astype(np.complex64),
            lambda act: act.T,
            lambda act: [[1.0]],
            lambda act: [[1.0], [1.0, 2.0]],
        ],
    )
    def test_wrong_shapes_and_kinds(self, model: Any, wrong: Any) -> None:
        hooks = [(SITE, lambda act, hook: wrong(act))]
        one(lambda: model.run_with_hooks([1, 2, 3], fwd_hooks=hooks), e.SignflipError, SITE)

    @pytest.mark.parametrize("value", [NAN, INF])
    def test_values_that_are_not_finite_never_become_other_numbers(self, model: Any, value: float) -> None:
        hooks = [(SITE, lambda act, hook: np.full_like(act, value))]
        try:
            out = model.run_with_hooks([1, 2, 3], fwd_hooks=hooks)
        except e.SignflipError:
            return
        assert np.isnan(out).all()

    def test_any_array_of_the_right_shape_will_do(self, model: Any) -> None:
        def with_hook(fn: Any) -> Any:
            return model.run_with_hooks([[1, 2, 3], [4, 5, 6]], fwd_hooks=[(SITE, lambda act, hook: fn(np.array(act)))])

        expected = with_hook(lambda act: act * 2)
        for fn in (
            lambda act: np.asfortranarray(act * 2),
            lambda act: act.astype(np.float64) * 2,
            lambda act: np.repeat(act * 2, 2, axis=-1)[..., ::2],
            lambda act: (act * 2)[..., ::-1].copy()[..., ::-1],
            lambda act: (act * 2).astype(">f4"),
            lambda act: torch.from_numpy(act * 2),
            lambda act: (act * 2).tolist(),
        ):
            np.testing.assert_array_equal(with_hook(fn), expected)

    def test_changing_the_array_in_place_is_a_change_or_refused(self, model: Any) -> None:
        clean = model.run([1, 2, 3])

        def in_place(act: Any, hook: Any) -> None:
            act *= 0

        try:
            out = model.run_with_hooks([1, 2, 3], fwd_hooks=[(SITE, in_place)])
        except ValueError:
            return  # the array is read-only
        zero = model.run([1, 2, 3], edits=[sf.Edit(SITE, "zero")])
        assert np.array_equal(out, clean) or np.array_equal(out, zero)

    def test_a_kept_array_does_not_change_afterwards(self, model: Any) -> None:
        kept = []
        model.run_with_hooks([1, 2, 3], fwd_hooks=[(SITE, lambda act, hook: kept.append((act, np.array(act))))])
        for _ in range(5):
            model.run([7, 8, 9] * 20)
        np.testing.assert_array_equal(*kept[0])

    @pytest.mark.parametrize(
        "kind", [RuntimeError, KeyError, KeyboardInterrupt, SystemExit, StopIteration, MemoryError]
    )
    def test_an_exception_comes_back_unchanged(self, model: Any, kind: type[BaseException]) -> None:
        error = kind("mine")

        def fails(act: Any, hook: Any) -> None:
            raise error

        with pytest.raises(kind) as caught:
            model.run_with_hooks([1, 2, 3], fwd_hooks=[(SITE, fails)])
        assert caught.value is error
        assert model.run([1, 2, 3]).shape == (1, 3, 61)

    def test_hooks_that_are_not_hooks(self, model: Any) -> None:
        for hooks in ([(SITE, None)], [(SITE, "fn")], [SITE], [(SITE,)], 5, [(5, print)], [(None, print)]):
            with pytest.raises(e.SignflipError):
                model.run_with_hooks([1, 2], fwd_hooks=hooks)

    def test_a_predicate_that_fits_no_site_cannot_fire(self, model: Any) -> None:
        with pytest.raises(e.SiteError):
            model.run_with_hooks([1, 2], fwd_hooks=[(lambda name: False, lambda act, hook: None)])

    def test_the_model_may_be_called_inside_a_hook(self, model: Any) -> None:
        inner = []
        model.run_with_hooks([1, 2], fwd_hooks=[(SITE, lambda act, hook: inner.append(model.run([1, 2])))])
        np.testing.assert_array_equal(inner[0], model.run([1, 2]))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda o: o.neuron(SITE, 45), "45"),
        (lambda o: o.neuron(SITE, -46), ""),
        (lambda o: o.neuron(SITE, 1.5), ""),
        (lambda o: o.neuron(SITE, 0, position=2), "2"),
        (lambda o: o.neuron(SITE, 0, position=-3), "-3"),
        (lambda o: o.neuron(SITE, 0, position="worst"), "best"),
        (lambda o: o.neuron(SITE, 0, position="after"), ""),
        (lambda o: o.neuron("blocks.1.attn.hook_pattern", 0), "pattern"),
        (lambda o: o.direction(SITE, np.ones(44)), "45"),
        (lambda o: o.direction(SITE, np.ones((3, 15))), ""),
        (lambda o: o.direction(SITE, np.full(45, NAN)), "finite"),
        (lambda o: o.direction(SITE, []), ""),
        (lambda o: o.logit_diff(0, 61), "61"),
        (lambda o: o.logit_diff(-1, 0), "-1"),
        (lambda o: o.logprob([]), ""),
        (lambda o: o.logprob([61]), "61"),
        (lambda o: o.logprob([1] * 96), "96"),  # two tokens before; the last target is not fed
        (lambda o: o.logprob("text"), "tokenizer"),
        (lambda o: o.reward(), "reward"),
        (lambda o: NAN * o.neuron(SITE, 0), ""),
        (lambda o: 5, "objective"),
        (lambda o: None, "objective"),
        (lambda o: o.neuron, "objective"),
    ],
)
def test_objectives(model: Any, make: Any, word: str) -> None:
    for call in (
        lambda: model.score([[1, 2]], make(sf.objectives)),
        lambda: model.gradient([1, 2], make(sf.objectives)),
    ):
        with pytest.raises(e.SignflipError) as caught:
            call()
        assert word in str(caught.value), str(caught.value)
        assert "internal" not in str(caught.value).lower(), str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_new_tokens": -1},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": 96},
        {"max_new_tokens": 2**40},
        {"temperature": -1.0},
        {"temperature": NAN},
        {"temperature": INF},
        {"top_k": 0},
        {"top_k": -3},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.5},
        {"temperature": "x"},
        {"temperature": None},
    ],
)
def test_generate(model: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(e.SignflipError):
        model.generate([1, 2], **{"max_new_tokens": 2, "temperature": 1.0, **fields})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_from_logits_that_are_not_finite(model: Any, temperature: float) -> None:
    huge = [sf.Edit(f"blocks.{i}.hook_resid_post", "scale", 3e38) for i in (0, 1)]
    one(lambda: model.generate([3, 4], 3, temperature=temperature, edits=huge), e.ArgumentError, "finite", "sequence 0")


@pytest.mark.filterwarnings("error")
def test_generation_at_a_temperature_next_to_none(model: Any) -> None:
    for top_k in (None, 3):
        cold = model.generate([[3, 4], [5, 6]], 5, temperature=1e-310, top_k=top_k)
        np.testing.assert_array_equal(cold, model.generate([[3, 4], [5, 6]], 5))


@pytest.mark.parametrize("n", [0, -1, 1.5, "two", None, 2**40])
def test_set_num_threads(n: Any) -> None:
    with pytest.raises(e.ArgumentError, match="threads"):
        sf.set_num_threads(n)


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        peer.make(config_of("llama"), 0).save_pretrained(tmp_path)
        return tmp_path

    def test_missing(self, tmp_path: Path) -> None:
        one(lambda: sf.load(tmp_path / "nothing.gguf"), e.FileError, "nothing.gguf")
        one(lambda: sf.load(str(tmp_path / "no" / "folder")), e.FileError, "folder")
        one(lambda: sf.load(tmp_path), e.FileError, "config.json")
        with pytest.raises(FileNotFoundError if issubclass(e.FileError, FileNotFoundError) else OSError):
            sf.load(tmp_path / "nothing.gguf")

    def test_config_is_not_json(self, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        one(lambda: sf.load(folder), e.CheckpointError, "config.json")

    def test_an_architecture_not_supported(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config))
        one(lambda: sf.load(folder), e.UnsupportedModelError, "mamba", "llama", "gpt2")

    @pytest.mark.parametrize("rope", ["yarn", "longrope", "dynamic"])
    def test_a_rotary_scaling_not_supported(self, folder: Path, rope: str) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"] = {"rope_type": rope, "factor": 2.0, "rope_theta": 1e4}
        (folder / "config.json").write_text(json.dumps(config))
        one(lambda: sf.load(folder), e.UnsupportedModelError, rope)

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        one(lambda: sf.load(folder), (e.FileError, e.CheckpointError), "safetensors")

    def test_pickled_weights_are_refused(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
        one(lambda: sf.load(folder), e.SignflipError, "safetensors")

    @pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
    def test_truncated(self, folder: Path, keep: int) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        one(lambda: sf.load(folder), e.CheckpointError, "model.safetensors")

    def test_a_missing_tensor_and_a_wrong_shape_are_named(self, folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        path, name = folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
        tensors = load_file(path)
        save_file({k: v for k, v in tensors.items() if k != name}, path)
        one(lambda: sf.load(folder), e.CheckpointError, name)
        save_file({**tensors, name: tensors[name].T.copy()}, path)
        one(lambda: sf.load(folder), e.CheckpointError, name)
        save_file({**tensors, name: tensors[name].astype(np.int32)}, path)
        one(lambda: sf.load(folder), e.CheckpointError, name)
        bad = tensors[name].copy()
        bad[3, 4] = NAN
        save_file({**tensors, name: bad}, path)
        one(lambda: sf.load(folder), e.CheckpointError, name)

    def test_a_shard_outside_the_folder(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        one(lambda: sf.load(folder), e.CheckpointError, "outside.safetensors")

    def test_device_and_dtype(self, folder: Path) -> None:
        one(lambda: sf.load(folder, device="cuda:0"), e.DeviceError, "cuda")
        one(lambda: sf.load(folder, device="tpu"), e.SignflipError, "tpu")
        one(lambda: sf.load(folder, dtype="float8"), e.SignflipError, "float8")


def test_two_threads_run_at_the_same_time() -> None:
    """The interpreter's lock is released: while one thread is inside a long run, another one gets things done."""
    with loaded_default("gpt2", n_embd=192, n_inner=768, n_layer=4, n_positions=512) as (model, _, _):
        batch = np.zeros((24, 512), dtype=np.int64)
        start = threading.Barrier(2)
        inside: list[tuple[float, float]] = []
        ticks: list[float] = []

        def long_run() -> None:
            start.wait()
            began = time.perf_counter()
            model.score(batch + np.arange(24)[:, None], sf.objectives.logit_diff(0, 1))
            inside.append((began, time.perf_counter()))

        thread = threading.Thread(target=long_run)
        thread.start()
        start.wait()
        while thread.is_alive():
            ticks.append(time.perf_counter())
            time.sleep(0.001)
        thread.join()
        ((began, ended),) = inside
        during = [t for t in ticks if began + 0.2 * (ended - began) < t < ended - 0.2 * (ended - began)]
        assert ended - began > 0.02, "too short to tell"
        assert len(during) >= 3


def test_two_threads_get_their_own_answers(model: Any) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.integers(0, 61, size=(2, 40)) for _ in range(8)]
    expected = [model.run(x) for x in inputs]
    got: list[Any] = [None] * 8

    def work(i: int) -> None:
        for _ in range(3):
            got[i] = model.run(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)
