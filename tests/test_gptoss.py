"""The model without another to compare it with: the cache, sampling, generation, a backend of one's own, arguments.

Needs NumPy only: a single one of these tests starts within two seconds.
"""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from shapes import SMALL

import gptoss
from bench.random_checkpoint import write_random

NANO = Path(__file__).resolve().parent.parent / "nano"


def test_int8_weights_are_half_a_step_off():
    """Steps are max / 127, rounded to bf16 (0.4%), and at least 2^-126: half a step off, at any size."""
    rng, size = np.random.default_rng(0), 60
    blocks = rng.standard_normal((size, 2, 32)) * 2.0 ** rng.integers(-140, 100, (size, 2, 1))
    blocks[3:5] = 0
    weight = gptoss.float32_to_bf16(blocks.reshape(size, 64)[:, :50])
    exact = np.pad(gptoss.bf16_to_float32(weight), ((0, 0), (0, 14))).reshape(size, 2, 32).astype(np.float64)
    int8 = gptoss.quantize_int8(weight)
    step = gptoss.bf16_to_float32(int8.scales).astype(np.float64)
    peak = np.abs(exact).max(axis=-1)
    assert int8.scales.dtype == np.uint16
    assert np.all(np.abs(step - peak / 127) <= np.maximum(peak / 127 / 256, 2.0**-126))
    values = np.pad(int8.values, ((0, 0), (0, 14))).reshape(size, 2, 32)
    assert np.all(np.abs(values * step[..., None] - exact) <= 0.5001 * step[..., None])
    assert np.all(np.abs(values).max(axis=-1)[peak > 2.0**-119] >= 126)


# ---- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small")
    write_random(path, SMALL, seed=6)
    return gptoss.load(path, backend="numpy")


def close(a, b, tolerance=2e-5):
    return np.abs(a - b).max() < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whatever_is_fed_and_rewound_the_cache_is_that_of_its_tokens(small, dtype):
    """Random pieces and rewinds: logits always equal those of one pass over the same tokens, cache type for type.

    In bfloat16 two orders of summing that differ by 1e-6 may round a key or value to neighbours, 1/128 apart: of the
    order of 1e-2 in a logit of size 1, where a wrong or missing key would make a difference of size 1.
    """
    tolerance = {"float32": 2e-5, "bfloat16": 3e-2}[dtype]
    rng = np.random.default_rng(3)
    cache, held = small.new_cache(dtype), []
    for _ in range(60):
        piece = rng.integers(0, SMALL.vocab_size, rng.choice([1, 1, 1, 2, 4, 5, 6, 12])).tolist()
        logits = small(piece, cache)
        held += piece
        assert cache.length == len(held)
        assert close(logits, small(held, small.new_cache(dtype), logits_to_keep=len(piece)), tolerance)
        if rng.random() < 0.4:
            n = int(rng.integers(0, len(held) + 3))
            assert cache.rewind(n) == cache.length == min(n, len(held))
            held = held[:n]


def test_rewind_is_exact(small):
    """From every length back to every other one, at the edges of the window and past them; then further back."""
    W = SMALL.sliding_window
    for length in (W - 1, W, W + 1, 4 * W):
        tokens = np.arange(length) % SMALL.vocab_size
        for n in range(length + 2):
            cache = small.new_cache("float32")
            small(tokens, cache)
            assert cache.rewind(n) == cache.length == min(n, length)
            again = cache.rewind(max(0, n - 2))
            expected = small(np.append(tokens[:again], 3), logits_to_keep=1)
            assert close(small([3], cache), expected)
    for bad in (-1, 1.5, "1", None, True, math.nan, [1]):
        with pytest.raises(ValueError, match="rewind: expected an integer of at least 0, found"):
            cache.rewind(bad)
    assert cache.rewind(np.int64(3)) == 3


def test_the_room_of_a_cache(small):
    """Arrays double when they are full, up to the context and one slot more, so that a view of them is never whole."""
    cache = small.new_cache()
    for token in range(300):
        small([token % SMALL.vocab_size], cache)
        assert all(cache.length < kv.shape[2] <= max(64, 2 * cache.length) for kv in cache.layers)
    small(np.zeros(SMALL.max_position_embeddings - 300, int), cache)
    assert {kv.shape for kv in cache.layers} == {(2, 2, SMALL.max_position_embeddings + 1, 10)}
    assert cache.layers[1].dtype == np.uint16 and small.new_cache("float32").layers[1].dtype == np.float32
    with pytest.raises(ValueError, match="cache dtype"):
        small.new_cache("float16")


def test_a_cache_of_another_model_is_refused(small, tmp_path):
    """Also of one with the same shape: its keys and values would give wrong logits in silence."""
    write_random(tmp_path, SMALL, seed=7)
    other = gptoss.load(tmp_path, backend="numpy")
    with pytest.raises(ValueError, match="cache: expected one that this model made"):
        small([1], other.new_cache())
    with pytest.raises(ValueError, match="cache: expected one that this model made"):
        gptoss.generate(small, [1], cache=other.new_cache())


def test_an_interrupted_step_leaves_the_cache_as_it_was(small, monkeypatch):
    tokens = np.arange(40)
    expected = small(tokens)
    for failing_layer in range(3):
        cache = small.new_cache("float32")
        small(tokens[:20], cache)
        mlp = type(small).mlp

        def interrupt(self, i, x, at=failing_layer, mlp=mlp):
            if i == at:
                raise KeyboardInterrupt
            return mlp(self, i, x)

        with monkeypatch.context() as patch:
            patch.setattr(type(small), "mlp", interrupt)
            with pytest.raises(KeyboardInterrupt):
                small(tokens[30:37], cache)
        assert cache.length == 20
        assert close(small(tokens[20:], cache), expected[20:])


def test_a_long_prompt_goes_in_chunks(small, monkeypatch):
    """No array grows with the square of the tokens, or with tokens times vocabulary."""
    seen = []

    def note(name, operation):
        size = {"linear": 0, "attention": 1}[name]  # rows of a weight [M, N]; keys of k [G, S, D]
        return lambda a, b, *rest: seen.append((name, len(a), b.shape[size])) or operation(a, b, *rest)

    operations = {name: note(name, getattr(gptoss, name)) for name in ("linear", "attention")}
    monkeypatch.setattr(small, "operations", SimpleNamespace(**vars(small.operations) | operations))
    tokens = np.arange(1000) % SMALL.vocab_size
    last = small(tokens, logits_to_keep=1)
    assert last.shape == (1, SMALL.vocab_size)
    assert max(T for name, T, _ in seen if name == "attention") == gptoss.CHUNK < 1000
    assert [T for name, T, M in seen if (name, M) == ("linear", SMALL.vocab_size)] == [1]
    assert max(keys for name, T, keys in seen if name == "attention") == 1000
    monkeypatch.setattr(gptoss, "CHUNK", 1000)
    assert close(last, small(tokens, logits_to_keep=1))
    assert small(tokens).shape == (1000, SMALL.vocab_size)
    with pytest.raises(ValueError, match="tokens: expected at most 1024, the context, found 1025"):
        small(np.zeros(1025, int), logits_to_keep=1)


# ---- sampling and generation ----------------------------------------------------------------------------------------


def test_sampling_at_hardly_any_temperature_and_of_no_numbers():
    """1e-50 is 0 in float32. A broken model is not to speak on."""
    rng, logits = np.random.default_rng(0), np.float32([1, 3, 2.999, -30])
    for temperature in (1e-3 / 100, 1e-40, 1e-50):
        assert gptoss.sample(logits, rng, temperature) == 1
    for broken in (np.nan, np.inf):
        logits[2] = broken
        for how in ({}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}):
            with pytest.raises(ValueError, match=f"expected numbers, found {broken}"):
                gptoss.sample(logits, rng, **how)


def test_sampling_never_draws_what_is_ruled_out():
    """Of 1,300 ids 40 may come, and all of them do."""
    rng, logits = np.random.default_rng(0), np.full(1300, -np.inf, np.float32)
    allowed = rng.choice(1300, 40, replace=False)
    logits[allowed] = 3
    assert {gptoss.sample(logits, rng) for _ in range(2000)} == set(allowed.tolist())


def test_sampling_draws_by_probability():
    """20,000 draws of four ids: each frequency within 4 standard deviations, at most sqrt(p (1 - p) / n) = 0.0036."""
    p = np.array([0.1, 0.5, 0.25, 0.15])
    rng = np.random.default_rng(0)
    counts = np.bincount([gptoss.sample(np.log(p), rng) for _ in range(20000)], minlength=4)
    assert np.abs(counts / 20000 - p).max() < 4 * 0.0036


def test_generate(small):
    prompt = list(range(12))
    run = lambda **options: list(gptoss.generate(small, prompt, max_tokens=20, **options))  # noqa: E731
    assert run(seed=4) == run(seed=4) != run(seed=5)
    assert run(temperature=0) == run(temperature=0, seed=1)
    tokens = run(temperature=0, stop=())
    assert len(tokens) == 20
    stop = tokens[6]
    assert run(temperature=0, stop=[stop]) == tokens[: tokens.index(stop) + 1]  # the stop token comes last

    cache = small.new_cache()
    first = list(gptoss.generate(small, prompt, max_tokens=5, temperature=0, stop=(), cache=cache))
    assert cache.length == 12 + 4  # all but the last id
    rest = list(gptoss.generate(small, first[-1:], max_tokens=15, temperature=0, stop=(), cache=cache))
    assert first + rest == tokens

    full = gptoss.generate(small, np.zeros(1020, int), temperature=0, stop=())
    assert len(list(full)) == 5  # ids 1021 ... 1024 are read, the last is not


def test_logits_processor(small):
    """It sees the ids generated so far and each step's logits, and what it gives -inf is not drawn."""
    seen = []

    def only_even(ids, logits):
        seen.append(list(ids))
        assert logits.shape == (SMALL.vocab_size,) and logits.dtype == np.float32
        return np.where(np.arange(len(logits)) % 2, -np.inf, logits)

    for how in ({"temperature": 0}, {"seed": 1}, {"seed": 2, "top_p": 0.5}):
        seen.clear()
        ids = list(gptoss.generate(small, [1, 2], max_tokens=9, stop=(), logits_processor=only_even, **how))
        assert all(id % 2 == 0 for id in ids) and seen == [ids[:n] for n in range(9)]
    nothing = gptoss.generate(small, [1], logits_processor=lambda ids, logits: np.full_like(logits, -np.inf))
    with pytest.raises(ValueError, match="logits: expected numbers, found -inf"):
        next(nothing)


# ---- backends -------------------------------------------------------------------------------------------------------


def test_any_object_is_a_backend(small, tmp_path):
    """Of seven operations it may have one: the others are gptoss.py's."""
    write_random(tmp_path, SMALL, seed=6)
    called = []

    def route(logits, K):
        called.append(logits.shape)
        return gptoss.route(logits, K)

    model = gptoss.load(tmp_path, backend=SimpleNamespace(route=route))
    assert np.array_equal(model([1, 2, 3]), small([1, 2, 3])) and called == [(3, SMALL.num_local_experts)] * 3
    assert vars(model.operations) == {name: getattr(gptoss, name) for name in gptoss.OPERATIONS} | {"route": route}
    with pytest.raises(ValueError, match="backend: expected .* an object with some of gptoss.OPERATIONS"):
        gptoss.load(tmp_path, backend=object())


def test_a_subclass_watches(tmp_path):
    class Watched(gptoss.Model):
        def mlp(self, i, x):
            seen.append((i, x.shape))
            return super().mlp(i, x)

    seen = []
    write_random(tmp_path, SMALL, seed=6)
    gptoss.load(tmp_path, backend="numpy", model=Watched)([1, 2])
    assert seen == [(i, (2, SMALL.hidden_size)) for i in range(3)]


def test_operations_are_those_of_the_forward_pass():
    """In the order in which a layer first uses each."""
    used = []
    ops = {name: lambda *args, name=name: used.append(name) or getattr(gptoss, name)(*args)
           for name in gptoss.OPERATIONS}
    model = gptoss.load(NANO, backend=SimpleNamespace(**ops))
    model([1])
    assert tuple(dict.fromkeys(used)) == gptoss.OPERATIONS


def test_eos_of_the_checkpoint_ends_generation(small, monkeypatch):
    tokens = list(gptoss.generate(small, [1, 2, 3], max_tokens=10, temperature=0, stop=()))
    monkeypatch.setattr(small, "config", replace(small.config, eos_token_id=(tokens[3],)))
    assert list(gptoss.generate(small, [1, 2, 3], temperature=0)) == tokens[: tokens.index(tokens[3]) + 1]


@pytest.mark.parametrize("arguments, message", [
    ({"tokens": []}, "tokens: expected ids from 0 to 210, found none"),
    ({"tokens": None}, "tokens: expected ids from 0 to 210, found None"),
    ({"tokens": 1.5}, "tokens: expected ids from 0 to 210, found 1.5"),
    ({"tokens": [0, 211]}, "tokens: expected ids from 0 to 210, found 211"),
    ({"tokens": [-1]}, "tokens: expected ids from 0 to 210, found -1"),
    ({"tokens": [2**70]}, "tokens: expected ids from 0 to 210, found 1180591620717411303424"),
    ({"tokens": [True]}, "tokens: expected ids from 0 to 210, found True"),
    ({"tokens": "hello"}, "tokens: expected ids from 0 to 210, found 'h'"),
    ({"tokens": [0.5]}, "tokens: expected ids from 0 to 210, found 0.5"),
    ({"tokens": [[1, 2], [3]]}, "tokens: expected ids from 0 to 210, found [1, 2]"),
    ({"tokens": np.ones((1, 2), int)}, "tokens: expected ids from 0 to 210, found array([1, 1])"),
    ({"tokens": [0] * 1025}, "tokens: expected at most 1024, the context, found 1025 with the cache"),
    ({"temperature": -0.1}, "temperature: expected a number of at least 0, found -0.1"),
    ({"temperature": math.nan}, "temperature: expected a number of at least 0, found nan"),
    ({"temperature": "hot"}, "temperature: expected a number of at least 0, found 'hot'"),
    ({"temperature": math.inf}, "temperature: expected a number of at least 0, found inf"),
    ({"temperature": None}, "temperature: expected a number of at least 0, found None"),
    ({"temperature": True}, "temperature: expected a number of at least 0, found True"),
    ({"temperature": 10**400}, "temperature: expected a number of at least 0, found 1000"),
    ({"top_p": 0}, "top_p: expected a number from 1e-09 to 1, found 0"),
    ({"top_p": 1.01}, "top_p: expected a number from 1e-09 to 1, found 1.01"),
    ({"top_p": math.nan}, "top_p: expected a number from 1e-09 to 1, found nan"),
    ({"top_k": -1}, "top_k: expected an integer of at least 0, found -1"),
    ({"top_k": 2.5}, "top_k: expected an integer of at least 0, found 2.5"),
    ({"min_p": 2}, "min_p: expected a number from 0 to 1, found 2"),
    ({"max_tokens": 0}, "max_tokens: expected an integer of at least 1, found 0"),
    ({"seed": -1}, "seed: expected an integer of at least 0, found -1"),
    ({"seed": "x"}, "seed: expected an integer of at least 0, found 'x'"),
    ({"seed": math.nan}, "seed: expected an integer of at least 0, found nan"),
    ({"stop": "<|end|>"}, "stop: expected an integer of at least 0, found '<'"),
    ({"stop": 1.5}, "stop: expected an integer of at least 0, found 1.5"),
    ({"cache": 5}, "cache: expected one that this model made, found another"),
    ({"logits_processor": 5}, "logits_processor: expected a function, found 5"),
    ({"model": "nano"}, "model: expected what gptoss.load gives, found nano"),
])
def test_bad_arguments_are_refused_at_once(small, arguments, message):
    with pytest.raises(ValueError) as caught:
        gptoss.generate(**{"model": small, "tokens": [1, 2]} | arguments)  # not at the first id
    assert message in str(caught.value)
    if "tokens" in arguments:
        with pytest.raises(ValueError, match="^tokens: "):
            small(arguments["tokens"])


def test_one_id_is_a_sequence_too(small):
    assert np.array_equal(small(3), small([3])) and np.array_equal(small(np.uint64(3)), small(range(3, 4)))
    first = next(gptoss.generate(small, 3, temperature=0))
    assert list(gptoss.generate(small, [3], temperature=0, stop=first)) == [first]


def test_every_argument_of_a_wrong_type_is_refused(small):
    """And by a sentence. What is right may be among them: the answer is one, or an array."""
    cache, rng = small.new_cache(), np.random.default_rng(0)
    small([1, 2, 3], cache)
    things = [None, True, 1.5, -1, math.nan, math.inf, 2**70, 10**400, "x", b"x", [], [None], {}, {1: 2}, set(),
              object(), np.zeros((2, 2)), np.array(1.5), np.array(["1"]), iter([]), int, 1j, range(3)]
    sampling = ("temperature", "top_k", "top_p", "min_p")
    calls = [
        small, cache.rewind, small.new_cache, gptoss.operations_of, lambda x: small([1], x),
        lambda x: small([1], logits_to_keep=x), lambda x: gptoss.load(x, backend="numpy"),
        lambda x: gptoss.load(NANO, backend="numpy", dense_dtype=x),
        *(lambda x, name=name: gptoss.sample(np.zeros(4), rng, **{name: x})
          for name in sampling),
        *(lambda x, name=name: gptoss.generate(**{"model": small, "tokens": [1], name: x})
          for name in (*sampling, "model", "tokens", "max_tokens", "seed", "stop", "cache")),
    ]
    refused = 0
    for call in calls:
        for thing in things:
            try:
                call(thing)
            except ValueError as error:
                assert ": expected " in str(error) and len(str(error)) < 800
                refused += 1
    assert refused > 0.8 * len(calls) * len(things)


@pytest.mark.parametrize("logits", [None, 3.0, [[1.0, 2.0]], np.zeros((1, 4)), np.full(4, -np.inf), [1.0, np.nan]])
def test_a_processor_that_gives_no_logits(logits, small):
    with pytest.raises(ValueError, match="logits: expected numbers, found"):
        next(gptoss.generate(small, [1], logits_processor=lambda ids, given: logits))


def test_load_refuses_unknown_options(tmp_path):
    for option in ({"backend": "cuda"}, {"dense_dtype": "int4"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected"):
            gptoss.load(tmp_path, **option)
    with pytest.raises(gptoss.CheckpointError, match="no such directory"):
        gptoss.load(tmp_path / "nowhere")
