"""Where float32 ends, both backends give the same result or the same refusal.

A sum near 3e38 is a number, inf or nan, depending on the order of its terms. So what is beyond LARGEST counts as nan in
every linear layer, and a step in which it stays is refused.
"""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapes import SMALL

import gptoss
import kernels
from bench.random_checkpoint import write_random
from checkpoint import LARGEST, MXFP4, float32_to_bf16, part

# The long run: HYPOTHESIS_PROFILE=long python -m pytest tests/test_extremes.py
CASES = 20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 150
CONFIG = replace(SMALL, vocab_size=53, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_local_experts=5,
                 num_experts_per_tok=2, layer_types=SMALL.layer_types[:2])
FLOATS = [np.inf, -np.inf, np.nan, 3.3e38, -3.3e38, 3e38, 1e38, 1e30, -1e25, 1e20, -1e19, 1e16, 1e15, 1e12, 1e8, 1e4,
          1e-30, 1e-38, 1e-40, 0.0, -0.0]
VALUES = {"BF16": [*float32_to_bf16(np.float32(FLOATS)).tolist(), 0x7FFF, 0xFFFF],  # the last two: other kinds of nan
          "U8": [0, 1, 60, 100, 140, 160, 180, 200, 220, 240, 250, 251, 252, 253, 254, 255]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A directory, the bytes of its weights, and where its tensors lie: {name: (dtype, shape, first byte)}."""
    path = tmp_path_factory.mktemp("extremes")
    write_random(path, CONFIG, seed=6)
    data = (path / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    places = {name: (entry["dtype"], entry["shape"], 8 + size + entry["data_offsets"][0])
              for name, entry in header.items()}
    return path, data, places


def outcome(model, ids):
    """The logits and None, or None and a sentence."""
    try:
        logits = model(ids)
        gptoss.sample(logits[-1], None, temperature=0)
        return logits, None
    except ValueError as error:
        return None, str(error)


def as_int16(x):
    """x as products with MXFP4 get it: each 32 neighbours in 32,639 steps of their peak. See mxfp4.quantize_row."""
    blocks = x.reshape(len(x), -1, 32)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(32639)
    steps = np.rint(blocks / np.maximum(step, np.float32(1e-38)))
    return np.where(step > 1e-38, steps * step, 0 * step).reshape(x.shape)


def experts_of_int16(x, chosen, weights, layer, limit):
    y = np.zeros_like(x)
    for e in np.unique(chosen):
        t, slot = np.nonzero(chosen == e)
        gate_up = gptoss.linear(as_int16(x[t]), part(layer.gate_up, e), layer.gate_up_bias[e])
        down = gptoss.linear(as_int16(gptoss.swiglu(gate_up, limit)), part(layer.down, e), layer.down_bias[e])
        y[t] += weights[t, slot, None] * down
    return y


def noisy(rng):
    """NumPy's operations, with errors ten times those of float32: how far two right results may be apart."""
    def linear(*args):
        y = gptoss.linear(*args)
        return y * (1 + 1e-6 * rng.standard_normal(y.shape, np.float32))

    return SimpleNamespace(linear=linear, experts=experts_of_int16)


any_one = st.integers(0, 10**9)  # of however many there are
change = st.tuples(any_one, any_one, any_one, st.sampled_from(["one", "row", "all"]))


@settings(max_examples=CASES)
@given(changes=st.lists(change, min_size=1, max_size=3), T=st.sampled_from([1, 4, 18, 42]), seed=st.integers(0, 10**6))
def test_any_number_anywhere(checkpoint, changes, T, seed):
    """Extreme numbers in up to three tensors, for one token and for many."""
    path, data, places = checkpoint
    changed = bytearray(data)
    for tensor, value, place, extent in changes:
        dtype, shape, first = places[sorted(places)[tensor % len(places)]]
        array = np.frombuffer(changed, np.uint16 if dtype == "BF16" else np.uint8, np.prod(shape), first).reshape(shape)
        at = np.unravel_index(place % array.size, shape)
        array[{"one": at, "row": at[:-1], "all": ...}[extent]] = VALUES[dtype][value % len(VALUES[dtype])]
    (path / "model.safetensors").write_bytes(changed)
    ids, rng = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, T), np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        numba, numpy, exact, *others = (outcome(gptoss.load(path, backend=backend), ids) for backend in (
            "numba", "numpy", SimpleNamespace(experts=experts_of_int16), noisy(rng), noisy(rng), noisy(rng)))
    assume(len({said for _, said in (exact, numpy, *others)}) == 1)  # (no number happens to be LARGEST, nearly)
    assert numba[1] == numpy[1]
    if numpy[1] is None:
        known = np.isfinite(numpy[0])
        assert np.array_equal(np.isfinite(numba[0]), known)
        spread = max(np.abs(logits - exact[0])[known].max() for logits, _ in others)
        assert np.abs(numba[0] - exact[0])[known].max() <= 1e-3 * np.abs(exact[0][known]).max() + 100 * spread


def test_an_infinite_sink():
    """e^(inf - inf) is nan in either; a sink of -inf is none."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape, np.float32) for shape in ((5, 6, 10), (2, 9, 10), (2, 9, 10)))
    sinks = np.float32([np.inf, -np.inf, 0, np.nan, 3e38, -3e38])
    with np.errstate(invalid="ignore"):
        found, expected = (operations.attention(q, k, v, sinks, 4) for operations in (kernels, gptoss))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.isnan(found).all(axis=(0, 2)).tolist() == [True, False, False, True, False, False]


@pytest.mark.parametrize("T", [1, 3, 42])
def test_a_linear_layer_gives_no_number_beyond_the_largest(T):
    """Dense or packed, whether it comes from a weight, a scale or the bias; and a nan stays one."""
    x, most = np.ones((T, 64), np.float32), np.float32(LARGEST)
    weight, bias = np.zeros((32, 64), np.float32), np.zeros(32, np.float32)
    weight[1, 5], weight[2, 5], bias[3], bias[4], weight[5, 5] = 3e38, 2 * most, 2 * most, most / 2, np.nan
    packed = MXFP4(np.full((32, 2, 16), 0x22, np.uint8), np.full((32, 2), 100, np.uint8))
    packed.scales[[1, 2, 5]] = np.uint8([[240], [253], [255]])
    for form in (weight, float32_to_bf16(weight), packed):
        with np.errstate(all="ignore"):
            found, expected = (np.isfinite(operations.linear(x, form, bias)) for operations in (kernels, gptoss))
        assert np.array_equal(found, expected)
        assert found.all(axis=0)[:6].tolist() == [True, False, False, False, True, False]


def test_a_step_that_leaves_the_range_is_refused_and_changes_nothing(checkpoint):
    path, data, places = checkpoint
    changed = bytearray(data)
    _, shape, first = places["model.embed_tokens.weight"]
    np.frombuffer(changed, np.uint16, np.prod(shape), first).reshape(shape)[7] = float32_to_bf16(np.float32([3e38]))
    (path / "model.safetensors").write_bytes(changed)
    for backend in ("numpy", "numba"):
        model = gptoss.load(path, backend=backend)
        cache = model.new_cache()
        expected = model([1, 2, 3])
        model([1, 2], cache)
        for ids in ([7], [7] * 42, [3] * 41 + [7]):
            with pytest.raises(ValueError, match=r"model: expected numbers up to 1e\+15, found larger ones, inf or"):
                model(ids, cache)
        assert cache.length == 2
        assert np.abs(model([3], cache) - expected[2]).max() < 3e-2
