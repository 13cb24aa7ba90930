"""The model equals transformers' GptOssForCausalLM, however the tokens are fed; the cache, sampling and generation.

Small random checkpoints in which no two dimensions are equal (a swapped axis cannot hide), windows of 4 and 5 with
sequences over three times as long, and one with the real window of 128. When a comparison fails, the PyTorch twin in
nano/model.py says which tensor of which layer was the first to differ.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import gptoss
from checkpoint import Config, write_random
from train import model as twin

S, F = "sliding_attention", "full_attention"


def yarn(**changes):
    published = {"factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096}
    return published | {"truncate": False} | changes


SMALL = Config(
    vocab_size=211, hidden_size=96, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, head_dim=10, num_local_experts=7, num_experts_per_tok=4, sliding_window=5,
    rope_theta=150000.0, layer_types=(S, F, S), rope_scaling=yarn(), max_position_embeddings=1024, eos_token_id=(7, 9),
)
SHAPES = {  # name: (config, tokens)
    "window 5": (SMALL, 17),
    "window 4, full attention first": (
        replace(SMALL, vocab_size=173, hidden_size=32, intermediate_size=160, num_hidden_layers=2, layer_types=(F, S),
                num_attention_heads=9, num_key_value_heads=3, head_dim=14, num_local_experts=5, num_experts_per_tok=2,
                sliding_window=4), 13),
    "window 128, 4 layers": (
        replace(SMALL, num_hidden_layers=4, layer_types=(S, F, S, F), head_dim=16, num_attention_heads=10,
                sliding_window=128), 300),
    "one expert of three, YaRN at work": (
        replace(SMALL, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=1, head_dim=22,
                num_local_experts=3, num_experts_per_tok=1, rope_theta=10000.0, swiglu_limit=0.7,
                rope_scaling=yarn(factor=8.0, original_max_position_embeddings=512)), 90),
}
# float32 carries 6e-8 a rounding; through a few layers of sums over about 100 terms, on logits of size 1, that grew to
# 3e-6 here, both against transformers and between orders of summing. Numba also rounds the experts' inputs to int16:
# 2e-5 of a block's size in each of two products a layer, seen as 1e-4 in logits after three layers.
TOLERANCE = {"numpy": 2e-5, "numba": 5e-4}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    """A random checkpoint in each layout that can hold it, some tokens, and transformers' logits for them."""
    config, T = SHAPES[request.param]
    paths = {"hf": tmp_path_factory.mktemp("hf")}
    if config.layer_types[0] == S:  # original/ cannot say anything else
        paths["original"] = tmp_path_factory.mktemp("original")
    for layout, path in paths.items():
        write_random(path, config, layout, seed=5, shards=3)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, T)
    reference = GptOssForCausalLM.from_pretrained(paths["hf"], dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = reference(torch.tensor(tokens)[None]).logits[0].numpy()
    assert 0.5 < logits.std() < 3
    return SimpleNamespace(config=config, paths=paths, tokens=tokens, reference=reference, logits=logits)


class Recorder(gptoss.Model):
    """A Model that keeps what each layer adds to the residual stream."""

    def attend(self, i, *args):
        return self.record(f"layer {i}, attention", super().attend(i, *args))

    def mlp(self, i, *args):
        return self.record(f"layer {i}, experts", super().mlp(i, *args))

    def record(self, name, value):
        self.seen = {**getattr(self, "seen", {}), name: value}
        return value


def first_difference(case, model, tolerance):
    """Which tensor is the first to differ from the PyTorch twin, and by how much."""
    model.__class__ = Recorder
    model(case.tokens)
    torch_model, expected = twin.load(case.paths["hf"]), {}
    for i, layer in enumerate(torch_model.model.layers):
        for module, name in (layer.self_attn, "attention"), (layer.mlp, "experts"):
            module.register_forward_hook(lambda _, __, out, name=f"layer {i}, {name}": expected.update(
                {name: (out[0][0] if isinstance(out, tuple) else out[0]).detach().numpy()}))
    with torch.no_grad():
        torch_model(torch.tensor(case.tokens)[None])
    for name, value in model.seen.items():
        difference = np.abs(value - expected[name]).max()
        if not difference <= tolerance:
            return f"first to differ: {name}, by {difference:.1e}"
    return "every layer agrees in one pass: look at the embedding, the last norm, the unembedding or the cache"


def assert_equal(case, model, logits, tolerance, what):
    difference = np.abs(logits - case.logits[-len(logits):]).max()
    if not difference <= tolerance:
        pytest.fail(f"{what}: logits differ by {difference:.1e}; {first_difference(case, model, tolerance)}")


@pytest.mark.parametrize("backend", TOLERANCE)
def test_logits_equal_transformers(case, backend):
    tokens, T, tolerance = case.tokens, len(case.tokens), TOLERANCE[backend]
    for layout, path in case.paths.items():
        model = gptoss.load(path, backend=backend)
        assert_equal(case, model, model(tokens), tolerance, f"{layout}, one pass")
        assert_equal(case, model, model(tokens, logits_to_keep=2), tolerance, f"{layout}, the last two only")
        W = case.config.sliding_window
        for size in (1, 3, W - 1, W, W + 1):  # a few tokens and many, at the edges of the window
            if size == 1 and T > 100:
                continue
            cache = model.new_cache("float32")
            rows = [model(tokens[n : n + size], cache) for n in range(0, T, size)]
            assert_equal(case, model, np.concatenate(rows), tolerance, f"{layout}, {size} at a time")
        cache = model.new_cache("float32")
        rows = [model(tokens[: T - 9], cache), *(model(tokens[n : n + 1], cache) for n in range(T - 9, T))]
        assert_equal(case, model, np.concatenate(rows), tolerance, f"{layout}, a prompt and then one by one")


def test_a_failed_comparison_names_the_layer(case):
    model = gptoss.load(case.paths["hf"], backend="numpy")
    layer = model.layers[1]
    layer.sinks = gptoss.round_to_bf16(gptoss.widen(layer.sinks) + 1)
    with pytest.raises(pytest.fail.Exception, match="first to differ: layer 1, attention"):
        assert_equal(case, model, model(case.tokens), 2e-5, "a changed sink")


def test_the_pytorch_twin_equals_transformers(case):
    """Whole, and layer by layer on transformers' own inputs to each."""
    ours = twin.load(case.paths["hf"])
    inputs, outputs = {}, {}
    for i, layer in enumerate(case.reference.model.layers):
        for name in "input_layernorm", "self_attn", "mlp":
            def keep(module, args, kwargs, out, key=(i, name)):
                inputs[key], outputs[key] = (args, kwargs), out[0] if isinstance(out, tuple) else out
            layer.get_submodule(name).register_forward_hook(keep, with_kwargs=True)
    ids = torch.tensor(case.tokens)[None]
    with torch.no_grad():
        case.reference(ids)
        assert (ours(ids)[0] - torch.tensor(case.logits)).abs().max() < 2e-5
        T = len(case.tokens)
        speed, stretch = twin.yarn_frequencies(case.config)
        angle = torch.arange(T)[None, None, :, None] * speed
        causal = torch.ones(T, T, dtype=torch.bool).tril()
        near = causal.triu(1 - case.config.sliding_window)
        for (i, name), (args, kwargs) in inputs.items():
            x = args[0] if args else kwargs["hidden_states"]
            module = ours.model.layers[i].get_submodule(name)
            mask = near if case.config.layer_types[i] == S else causal
            extra = (angle.cos() * stretch, angle.sin() * stretch, mask[None, None]) if name == "self_attn" else ()
            out = module(x, *extra)
            out = out[0] if isinstance(out, tuple) else out
            difference = (out - outputs[i, name].view_as(out)).abs().max()
            assert difference < 2e-5, f"layer {i}, {name}: differs by {difference:.1e}"


@pytest.mark.parametrize("truncate", [False, True])
def test_rope_frequencies_equal_transformers(truncate):
    """float32 powers there, float64 ones rounded at the end here: a few roundings of 6e-8 apart."""
    for head_dim, theta, factor, original in (64, 150000.0, 32.0, 4096), (10, 10000.0, 8.0, 64), (32, 1e6, 4.0, 1024):
        config = replace(SMALL, head_dim=head_dim, rope_theta=theta,
                         rope_scaling=yarn(factor=factor, original_max_position_embeddings=original, truncate=truncate))
        theirs = GptOssConfig(head_dim=head_dim, max_position_embeddings=int(factor * original), rope_parameters={
            "rope_type": "yarn", "rope_theta": theta} | config.rope_scaling)
        expected, scale = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
        frequencies, rope_factor = gptoss.rope_frequencies(config)
        np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)
        assert math.isclose(rope_factor, scale, rel_tol=1e-6)
    low, high = (32 * math.log(4096 / (turns * 2 * math.pi)) / math.log(150000) for turns in (32, 1))
    assert (round(low, 4), round(high, 4)) == (8.0928, 17.398)  # as in the official model


@pytest.mark.parametrize("backend", TOLERANCE)
def test_greedy_generation_equals_transformers(case, backend):
    model = gptoss.load(case.paths["hf"], backend=backend)
    prompt, n = case.tokens[:11], 12
    generated = list(gptoss.generate(model, prompt, max_tokens=n, temperature=0, stop=(),
                                     cache=model.new_cache("float32")))
    with torch.no_grad():
        expected = case.reference.generate(torch.tensor(prompt)[None], max_new_tokens=n, min_new_tokens=n,
                                           do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generated == expected[0, len(prompt):].tolist()


def test_int8_weights_are_half_a_step_off():
    """Steps are max / 127, rounded to bf16 (0.4%), and at least 2^-126: half a step off, at any size."""
    rng, size = np.random.default_rng(0), 60
    blocks = rng.standard_normal((size, 2, 32)) * 2.0 ** rng.integers(-140, 100, (size, 2, 1))
    blocks[3:5] = 0
    weight = gptoss.round_to_bf16(blocks.reshape(size, 64)[:, :50])
    exact = np.pad(gptoss.widen(weight), ((0, 0), (0, 14))).reshape(size, 2, 32).astype(np.float64)
    int8 = gptoss.quantize_int8(weight)
    step = gptoss.widen(int8.scales).astype(np.float64)
    peak = np.abs(exact).max(axis=-1)
    assert int8.scales.dtype == np.uint16
    assert np.all(np.abs(step - peak / 127) <= np.maximum(peak / 127 / 256, 2.0**-126))
    values = np.pad(int8.values, ((0, 0), (0, 14))).reshape(size, 2, 32)
    assert np.all(np.abs(values * step[..., None] - exact) <= 0.5001 * step[..., None])
    assert np.all(np.abs(values).max(axis=-1)[peak > 2.0**-119] >= 126)


def test_int8_weights_change_little(case):
    """255 steps a block leave an error of up to half a step: 1/254 of the block's peak, about 0.5% of its size (root
    mean square), in each product; they grow to a percent or so of the logits. A token whose router stood at a tie may
    go to another expert and differ by more: hence the median. Both backends make the same of them."""
    for backend in TOLERANCE:
        model = gptoss.load(case.paths["hf"], backend=backend, dense_dtype="int8")
        logits = model(case.tokens)
        error = np.median(np.linalg.norm(logits - case.logits, axis=1) / np.linalg.norm(case.logits, axis=1))
        assert 1e-4 < error < 0.03, error
        if backend == "numpy":
            twin_logits = logits
    assert np.abs(logits - twin_logits).max() < TOLERANCE["numba"]


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
            remain = cache.rewind(n)
            assert 0 <= remain <= min(n, len(held)) and remain == cache.length
            held = held[:remain]
            if not held:
                cache.rewind(0)


def test_rewind_is_near(small):
    W = SMALL.sliding_window
    for length in (W - 1, W, W + 1, 4 * W):
        tokens = np.arange(length) % SMALL.vocab_size
        for n in range(length + 1):
            cache = small.new_cache()
            for token in tokens:
                small([token], cache)
            # exact within the first window and one step back; otherwise at most a window lost
            assert cache.rewind(n) >= (n if length <= W or n >= length - 1 else max(0, n - W))
        for n in range(length):  # and once more: what the first left must be enough, or it goes back further
            cache = small.new_cache("float32")
            for token in tokens:
                small([token], cache)
            again = cache.rewind(max(0, cache.rewind(n) - 1))
            expected = small(np.append(tokens[:again], 3), logits_to_keep=1)
            assert close(small([3], cache), expected)
    cache = small.new_cache()
    small(np.arange(3 * W), cache)  # a prompt ...
    for token in range(70):  # ... and a reply, longer than the room of its sliding layers
        small([token % SMALL.vocab_size], cache)
    assert cache.rewind(3 * W + 2) == 3 * W  # back at the end of the prompt
    with pytest.raises(ValueError, match="rewind: expected a length of at least 0, found -1"):
        cache.rewind(-1)


def test_a_model_without_sliding_layers_rewinds_anywhere(tmp_path):
    write_random(tmp_path, replace(SMALL, layer_types=(F, F, F)), seed=6)
    model = gptoss.load(tmp_path, backend="numpy")
    cache, tokens = model.new_cache("float32"), np.arange(30)
    model(tokens, cache)
    assert cache.rewind(11) == 11
    assert close(model(tokens[11:], cache), model(tokens)[11:])


def test_sliding_layers_keep_a_window_and_snapshots_are_few(small):
    cache = small.new_cache()
    for token in range(300):
        small([token % SMALL.vocab_size], cache)
    W = SMALL.sliding_window
    for i, (kv, end) in enumerate(cache.layers):
        most = max(64, 2 * W) if SMALL.layer_types[i] == S else 2 * 300
        assert end <= kv.shape[2] <= most
    assert all(kv.shape[2] == end == W for state in cache.snapshots.values() for kv, end in state.values())
    assert len(cache.snapshots) == cache.SNAPSHOTS
    gaps = np.diff([0, *sorted(cache.snapshots), 300])
    assert gaps.max() < 300 / 4  # they cover the whole sequence
    assert cache.layers[1][0].dtype == np.uint16 and small.new_cache("float32").layers[1][0].dtype == np.float32
    with pytest.raises(ValueError, match="cache dtype"):
        small.new_cache("float16")


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
    monkeypatch.setattr(small, "operations", SimpleNamespace(**vars(gptoss) | operations))
    tokens = np.arange(1000) % SMALL.vocab_size
    last = small(tokens, logits_to_keep=1)
    assert last.shape == (1, SMALL.vocab_size)
    assert max(T for name, T, _ in seen if name == "attention") == gptoss.CHUNK < 1000
    assert [T for name, T, M in seen if (name, M) == ("linear", SMALL.vocab_size)] == [1]
    assert max(keys for name, T, keys in seen if name == "attention") == 1000
    monkeypatch.setattr(gptoss, "CHUNK", 1000)
    assert close(last, small(tokens, logits_to_keep=1))
    assert small(tokens).shape == (1000, SMALL.vocab_size)
    with pytest.raises(ValueError, match="1025 tokens are more than the context of 1024"):
        small(np.zeros(1025, int), logits_to_keep=1)


# ---- sampling and generation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature, top_k, top_p, min_p", [
    (1.0, 0, 1.0, 0.0), (0.7, 0, 1.0, 0.0), (1.3, 10, 1.0, 0.0), (1.0, 0, 0.9, 0.0), (1.0, 0, 0.05, 0.0),
    (1.0, 0, 1.0, 0.1), (0.8, 30, 0.8, 0.02), (2.0, 1000, 0.999, 0.0), (1.0, 0, 1e-9, 0.0), (1.0, 1, 1.0, 0.0),
    (1.0, 300, 0.7, 0.0), (1.0, 9999, 1.0, 0.0),
])
def test_sampling_chooses_from_what_transformers_chooses_from(temperature, top_k, top_p, min_p):
    """A float32 score of up to 36 is 36 * 2^-24 off, and again after the division: 4e-6 of what exp makes of it."""
    rng = np.random.default_rng(8)
    for V in (300, 5000):
        logits = (3 * rng.standard_normal(V)).astype(np.float32)
        scores = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits, dtype=torch.float64)[None])
        if top_k:
            scores = TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1:
            scores = TopPLogitsWarper(top_p)(None, scores)
        if min_p:
            scores = MinPLogitsWarper(min_p)(None, scores)
        expected = torch.softmax(scores[0], -1)
        ids, p = gptoss.shortlist(logits, temperature, top_k, top_p, min_p)
        assert set(ids) == set(expected.nonzero()[:, 0].tolist())
        np.testing.assert_allclose(p / p.sum(), expected.numpy()[list(ids)], rtol=1e-5)


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


def test_sampling_finds_the_place_in_two_steps():
    """Of 1,300 weights 700 are 1, the rest 0: half-way into the k-th 700th is the k-th of them. Blocks of 512 end at
    512 and 1,024; the last is short, and one may be empty."""
    rng, logits = np.random.default_rng(0), np.full(1300, -np.inf, np.float32)
    for among in (1300, 790):
        chosen = np.sort(rng.choice(among, 700, replace=False)) + 1300 - among
        logits[:] = -np.inf
        logits[chosen] = 3
        for k in range(700):
            u = SimpleNamespace(random=lambda k=k: (k + 0.5) / 700)
            assert gptoss.sample(logits, u) == chosen[k]


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


def test_eos_of_the_checkpoint_ends_generation(small, monkeypatch):
    tokens = list(gptoss.generate(small, [1, 2, 3], max_tokens=10, temperature=0, stop=()))
    monkeypatch.setattr(small, "config", replace(small.config, eos_token_id=(tokens[3],)))
    assert list(gptoss.generate(small, [1, 2, 3], temperature=0)) == tokens[: tokens.index(tokens[3]) + 1]


@pytest.mark.parametrize("arguments, message", [
    ({"tokens": []}, "the prompt is empty"),
    ({"tokens": [0, 211]}, "token 1 of the prompt: expected an id from 0 to 210, found 211"),
    ({"tokens": [-1]}, "token 0 of the prompt: expected an id from 0 to 210, found -1"),
    ({"tokens": [0.5]}, "tokens: expected integer ids, found float64"),
    ({"tokens": [[1, 2]]}, "tokens: expected a sequence of ids"),
    ({"tokens": [0] * 1025}, "a prompt of 1025 tokens is longer than the context of 1024"),
    ({"temperature": -0.1}, "temperature: expected a number of at least 0, found -0.1"),
    ({"temperature": math.nan}, "temperature: expected a number of at least 0, found nan"),
    ({"temperature": "hot"}, "temperature: expected a number of at least 0, found 'hot'"),
    ({"top_p": 0}, "top_p: expected a number above 0 and at most 1, found 0"),
    ({"top_p": 1.01}, "top_p: expected a number above 0 and at most 1, found 1.01"),
    ({"top_k": -1}, "top_k: expected an integer of at least 0, found -1"),
    ({"top_k": 2.5}, "top_k: expected an integer of at least 0, found 2.5"),
    ({"min_p": 2}, "min_p: expected a number from 0 to 1, found 2"),
    ({"max_tokens": 0}, "max_tokens: expected an integer of at least 1, found 0"),
])
def test_bad_arguments_are_refused_at_once(small, arguments, message):
    arguments = {"tokens": [1, 2]} | arguments
    with pytest.raises(ValueError) as caught:
        gptoss.generate(small, **arguments)  # not at the first id
    assert message in str(caught.value)
    if list(arguments) == ["tokens"] and len(arguments["tokens"]) < 1000:
        with pytest.raises(ValueError, match="tokens?|prompt"):
            small(arguments["tokens"])


def test_load_refuses_unknown_options(tmp_path):
    for option in ({"backend": "cuda"}, {"dense_dtype": "int4"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected"):
            gptoss.load(tmp_path, **option)
    with pytest.raises(gptoss.CheckpointError, match="no such directory"):
        gptoss.load(tmp_path / "nowhere")
