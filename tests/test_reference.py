"""The references agree with transformers, so that they can judge the engine."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reference import peer, shapes  # noqa: E402
from reference.restated import Restated  # noqa: E402
from reference.yardstick import Pool, judge  # noqa: E402

# On models this small torch's threads cost more than they do.
torch.set_num_threads(1)

QUIET = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    a, b = a.detach(), b.detach()
    return float((a.double() - b.double()).abs().max() / (b.double().abs().max() + 1e-300))


@QUIET
@given(st.data())
def test_restatement_equals_transformers_in_true_float64(data: st.DataObject) -> None:
    config = data.draw(shapes.configs)
    model = peer.make(config, data.draw(st.integers(0, 9)))
    exact = Restated(config.to_dict(), model.state_dict())
    wide = peer.true_float64(model)
    for ids in data.draw(shapes.sequences(config.vocab_size, n=2)):
        with peer.Float64():
            seen = peer.Seen(wide, ids, grad=True)
            value = seen.logits[-1].logsumexp(-1)
            grads = seen.gradient(value, exact.sites())
        ours, cache = exact.run(ids)
        assert list(cache) == exact.sites()
        assert seen.logits.dtype == torch.float64
        assert off(ours, seen.logits) < 1e-12
        for name in exact.sites():
            assert off(cache[name], seen.value(name)) < 1e-12, name
        mine, restated = exact.gradient(ids, lambda logits, _: logits[-1].logsumexp(-1), exact.sites())
        assert off(mine, value) < 1e-12
        for name in exact.sites():
            assert (restated[name] - grads[name]).abs().max() < 1e-11 * max(1, float(grads[name].abs().max())), name


@QUIET
@given(st.data())
def test_restatement_equals_transformers_classifier(data: st.DataObject) -> None:
    config = data.draw(shapes.configs)
    config.num_labels = data.draw(st.integers(1, 3))
    model = peer.make(config, 0, reward=True)
    exact = Restated(config.to_dict(), model.state_dict())
    (ids,) = data.draw(shapes.sequences(config.vocab_size, n=1))
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids])).logits[0]
    assert off(theirs, exact.run(ids)[0][-1]) < 2e-4


def test_a_second_float32_implementation_passes_the_yardstick() -> None:
    """The yardstick is one that correct code passes: here the restatement run in float32."""
    ratios: dict[str, float] = {}

    @QUIET
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        config = data.draw(shapes.configs)
        model = peer.make(config, 1)
        exact, single = (
            Restated(config.to_dict(), model.state_dict(), dtype) for dtype in (torch.float64, torch.float32)
        )
        pool = Pool()
        for ids in data.draw(shapes.sequences(config.vocab_size)):
            seen = peer.Seen(model, ids)
            logits, cache = exact.run(ids)
            ours, values = single.run(ids)
            pool.add("logits", logits, seen.logits, ours)
            for name in exact.sites():
                pool.add(name, cache[name], seen.value(name), values[name])
        ratios.update({f"{len(ratios)} {name}": value for name, value in pool.ratios().items()})

    collect()
    assert len(ratios) > 300
    judge(ratios)


@pytest.mark.parametrize(
    ("key", "wrong"), [("rms_norm_eps", 1.1e-2), ("hidden_act", "gelu"), ("rope_parameters", {"rope_theta": 9000.0})]
)
def test_the_yardstick_fails_mistakes(key: str, wrong: object) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=17,
        hidden_size=12,
        intermediate_size=19,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=4,
        hidden_act="gelu_new",
        rms_norm_eps=1e-2,
    )
    model = peer.make(config, 2)
    exact = Restated(config.to_dict(), model.state_dict())
    mistaken = Restated({**config.to_dict(), key: wrong}, model.state_dict())
    pool = Pool()
    for ids in ([1, 5, 3, 2, 16, 0, 4, 9], [3, 3, 3, 7, 11]):
        pool.add("logits", exact.run(ids)[0], peer.Seen(model, ids).logits, mistaken.run(ids)[0])
    with pytest.raises(AssertionError, match="above 4"):
        judge(pool.ratios())
