"""The model equals transformers' GptOssForCausalLM, however the tokens are fed, and sampling chooses from the same ids.

Small random checkpoints (shapes.py). When a comparison fails, the PyTorch twin in train/model.py says which tensor of
which layer was the first to differ.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shapes import SHAPES, SMALL, S, yarn
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import gptoss
from bench.random_checkpoint import write_random
from train import model as twin

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
    model = Recorder(model.config, model.embedding, model.layers, model.norm, model.unembedding, model.operations)
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
    sinks = gptoss.float32_to_bf16(gptoss.bf16_to_float32(model.layers[1].sinks) + 1)
    model.layers[1] = model.layers[1]._replace(sinks=sinks)
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
        frequencies, attention_factor = gptoss.rope_frequencies(config)
        np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)
        assert math.isclose(attention_factor, scale, rel_tol=1e-6)
    low, high = (32 * math.log(4096 / (turns * 2 * math.pi)) / math.log(150000) for turns in (32, 1))
    assert (round(low, 4), round(high, 4)) == (8.0928, 17.398)  # as in the official model


@pytest.mark.parametrize("backend", TOLERANCE)
def test_positions_near_the_end_of_the_context(backend, tmp_path):
    """Positions around 131,000, where an angle is known to 131,000 * 2^-24 = 0.008 only: so transformers gets our
    frequencies, to make the same roundings. In three sliding layers with a window of 5 a token depends on the 12
    before it. From the 13th on it is all the same what the slots before hold, and that transformers has none there."""
    W, first, T = SMALL.sliding_window, 130_985, 30
    config = replace(SMALL, layer_types=(S, S, S), max_position_embeddings=131_072)
    write_random(tmp_path, config, seed=8)
    model, tokens = gptoss.load(tmp_path, backend=backend), np.random.default_rng(2).integers(0, config.vocab_size, T)
    cache = model.new_cache("float32")
    cache.layers = [np.zeros((2, 2, 131_073, config.head_dim), np.float32) for _ in config.layer_types]
    cache.length = first
    found = model(tokens, cache)[3 * (W - 1) :]
    reference = GptOssForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    reference.model.rotary_emb.inv_freq = torch.tensor(model.frequencies)
    with torch.no_grad():
        positions = torch.arange(first, first + T)[None]
        expected = reference(torch.tensor(tokens)[None], position_ids=positions).logits[0, 3 * (W - 1) :].numpy()
        elsewhere = reference(torch.tensor(tokens)[None], position_ids=positions % 1000).logits[0].numpy()
    assert np.abs(found - expected).max() <= TOLERANCE[backend]
    assert np.abs(found - elsewhere[3 * (W - 1) :]).max() > 0.1  # a wrong position would show


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
        found = gptoss.filter_logits(logits, temperature, top_k, top_p, min_p)
        np.testing.assert_array_equal(np.isfinite(found), expected.numpy() > 0)
        np.testing.assert_allclose(gptoss.softmax(found), expected.numpy(), rtol=1e-5)
