"""gpt-oss in NumPy: from a checkpoint on disk to the next token, in reading order.

    operations -> KV cache -> model -> sampling

This file knows token ids. It knows no text (tokenizer.py) and no messages (harmony.py); files and their number formats
are checkpoint.py's. It is written to be read, and to be right: `load(path, backend="numpy")` runs exactly what stands
here. The seven OPERATIONS of the forward pass can be replaced by a backend: backend="numba" takes the fast twins of the
same names in kernels.py, and any other object brings its own.

    T  tokens in this call          N  hidden_size                   E  num_local_experts
    S  keys a call can see          F  intermediate_size             K  num_experts_per_tok
    H  query heads                  V  vocab_size                    W  sliding_window
    G  key/value heads              D  head_dim

Sources: the model card (arXiv 2508.10925), github.com/openai/gpt-oss (its torch/), and the papers that are named below.
"""

import math  # noqa: I001
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from adapter import adapt
from checkpoint import CheckpointError as CheckpointError, Config as Config  # what `load` raises, and Model.config
from checkpoint import LARGEST, MXFP4, Adapted, Int8, bf16_to_float32, dequantize, dequantize_int8, expect
from checkpoint import expect_number, float32_to_bf16, part, quantize_int8, read_config, read_tensors

OPERATIONS = ("rms_norm", "linear", "rotate", "store_kv", "attention", "route", "experts")  # in the order of use
CHUNK = 512  # tokens that go through the layers at once: this bounds the memory that a long prompt takes


# ---- Operations -----------------------------------------------------------------------------------------------------

def softmax(x):
    """e^x over its sum, along the last axis. The largest x is taken away first, so that nothing overflows."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(x, weight, eps):
    """x [T, N] / its root mean square, times weight [N] (arXiv 1910.07467)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def to_float32(weight):
    """A matrix [M, N] as float32: MXFP4, Int8, bf16, float16 or float32."""
    return {MXFP4: dequantize, Int8: dequantize_int8}.get(type(weight), bf16_to_float32)(weight)


def linear(x, weight, bias=None):
    """x [T, N] @ weight [M, N]^T + bias [M] -> float32 [T, M]; weight in any form that a checkpoint has it in."""
    if isinstance(weight, Adapted):
        return linear(x, weight.weight, bias) + x @ weight.A.T @ weight.B.T
    M = len(weight[0] if isinstance(weight, tuple) else weight)
    parts = [slice(m, m + 8192) for m in range(0, M, 8192)]  # the unembedding in float32 would be 2.3 GB at once
    y = np.concatenate([x @ to_float32(part(weight, rows)).T for rows in parts], axis=1)
    y = y if bias is None else y + bf16_to_float32(bias)
    return np.where(np.abs(y) <= LARGEST, y, np.nan)  # where float32 ends, each order of summing has another result


def rope_frequencies(config):
    """Radians that each pair of a head turns per position, float32 [D/2]; and the attention factor for cos and sin.

    RoPE (arXiv 2104.09864) has theta^(-2i/D) for pair i. YaRN (arXiv 2309.00071, section 3.2, "NTK-by-parts") stretches
    that to longer contexts. Pairs that turn more than beta_fast times within the original context keep their frequency
    ("extrapolation"). It is divided by `factor` where they turn less than beta_slow times, and blended between."""
    half = config.head_dim // 2
    extrapolated = config.rope_theta ** -(np.arange(half) / half)
    if config.rope_scaling is None:
        return extrapolated.astype(np.float32), 1.0
    yarn = SimpleNamespace(**config.rope_scaling)

    def pair_turning(turns):  # the pair, a real number, that turns this often within the original context
        wavelength = yarn.original_max_position_embeddings / turns
        return half * math.log(wavelength / (2 * math.pi)) / math.log(config.rope_theta)

    low, high = pair_turning(yarn.beta_fast), pair_turning(yarn.beta_slow)
    if yarn.truncate:  # not so in gpt-oss: 8.09 and 17.40 at D = 64 stay as they are
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    ramp = np.clip((np.arange(half) - low) / max(high - low, 0.001), 0, 1)
    frequencies = extrapolated * (1 - ramp) + extrapolated / yarn.factor * ramp
    return frequencies.astype(np.float32), (0.1 * math.log(yarn.factor) + 1 if yarn.factor > 1 else 1.0)


def rotate(x, cos, sin):
    """RoPE on x [T, heads, D]; cos, sin [T, 1, D/2]. A pair is (d, d + D/2): the HALVES of a head, not neighbours."""
    a, b = np.split(x, 2, axis=-1)  # [T, heads, D/2] each
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def store_kv(kv, k, v):
    """Stores k and v [T, G, D] in the slots kv [2, G, T, D] of a cache, rounded to bf16 if the cache holds bf16."""
    new = np.stack([k, v]).swapaxes(1, 2)  # [2, G, T, D]
    kv[:] = float32_to_bf16(new) if kv.dtype == np.uint16 else new


def attention(q, k, v, sinks, window):
    """Grouped-query attention of the last T of S positions -> float32 [T, H, D].

    q [T, H, D]; k, v [G, S, D], float32 or bf16; sinks [H]. Query t stands at position S - T + t and sees the keys up
    to itself, at most the last `window` (itself included). A sink is a learned logit of each head that takes part in
    the softmax and has no value, so that a head may look at nothing (arXiv 2309.17453).

        T = 3 queries, S = 5 keys, window = 3        keys  0 1 2 3 4  sink
                                              position 2   x x x . .   x
                                              position 3   . x x x .   x
                                              position 4   . . x x x   x
    """
    (T, H, D), (G, S, _) = q.shape, k.shape
    position, key = np.arange(S - T, S)[:, None], np.arange(S)
    visible = (key <= position) & (key > position - window)  # [T, S]
    q = q.reshape(T, G, H // G, D).transpose(1, 2, 0, 3)  # [G, H/G, T, D]: query head h has key/value head h // (H/G)
    sinks = bf16_to_float32(sinks).reshape(G, H // G, 1, 1)
    out = np.empty((G, H // G, T, D), np.float32)
    for g in range(G):  # one key/value head at a time: the scores of all would take G times the memory
        scores = q[g] @ bf16_to_float32(k[g]).T / math.sqrt(D)  # [H/G, T, S]
        scores = np.where(visible, scores, -np.inf)
        sink = np.broadcast_to(sinks[g], (H // G, T, 1))
        p = softmax(np.concatenate([scores, sink], axis=-1))  # [H/G, T, S + 1]
        out[g] = p[..., :-1] @ bf16_to_float32(v[g])  # [H/G, T, D]
    return out.transpose(2, 0, 1, 3).reshape(T, H, D)


def route(logits, K):
    """The K best of E experts for each token: chosen int [T, K], and their weights [T, K], a softmax over those K."""
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, :K]
    return chosen, softmax(np.take_along_axis(logits, chosen, axis=-1))


def swiglu(gate_up, limit):
    """Clamped SwiGLU: gate_up [T, 2F] -> [T, F]. Gate and up are interleaved: even columns gate, odd columns up."""
    gate = np.minimum(gate_up[..., 0::2], limit)  # clamped from above only
    up = np.clip(gate_up[..., 1::2], -limit, limit)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)  # gate * sigmoid(1.702 gate) * (up + 1)


def experts(x, chosen, weights, layer, limit):
    """Mixture of experts: x [T, N] -> [T, N]. Each expert sees the tokens that chose it: up, SwiGLU, down, weighted."""
    y = np.zeros_like(x)
    for e in np.unique(chosen):
        t, slot = np.nonzero(chosen == e)
        h = swiglu(linear(x[t], part(layer.gate_up, e), layer.gate_up_bias[e]), limit)  # [tokens of e, F]
        y[t] += weights[t, slot, None] * linear(h, part(layer.down, e), layer.down_bias[e])
    return y


# ---- KV cache -------------------------------------------------------------------------------------------------------

class KVCache:
    """The keys and values of the tokens so far: for each layer [2, G, room, D], of which `length` slots are in use.

    A sliding layer keeps all of its keys too, although its queries see the last W only. That costs 24 KB a token at
    the 20b shape, and it makes `rewind` exact: a chat can go back to any earlier token and go on from there."""

    def __init__(self, model, dtype="bfloat16"):
        c, stored = model.config, {"bfloat16": np.uint16, "float32": np.float32}.get(str(dtype))
        expect(stored, ValueError, "cache dtype", '"bfloat16" or "float32"', repr(dtype))
        self.model, self.length, self.limit = model, 0, c.max_position_embeddings
        self.layers = [np.empty((2, c.num_key_value_heads, 0, c.head_dim), stored)] * c.num_hidden_layers

    def extend(self, i, T):
        """Layer i's keys and values with T new slots at their end: [2, G, S, D], S = length + T.

        The new slots count once `length` is raised, after the last layer. Whatever interrupts a step does no harm."""
        kv, S = self.layers[i], self.length + T
        if S >= kv.shape[2]:  # One slot stays free: a whole array is contiguous, and Numba compiles for those apart.
            kv = np.empty((*kv.shape[:2], min(max(64, 2 * S), self.limit + 1), kv.shape[3]), kv.dtype)
            kv[:, :, : self.length] = self.layers[i][:, :, : self.length]
            self.layers[i] = kv
        return kv[:, :, :S]

    def rewind(self, n):
        """Drop tokens so that min(n, length) remain; return how many remain."""
        self.length = min(expect_number(n, int, 0, math.inf, ValueError, "rewind"), self.length)
        return self.length


# ---- Model ----------------------------------------------------------------------------------------------------------

class Layer(NamedTuple):
    """The tensors of a layer, in the order of use. Matrices are [outputs, inputs], in the form that the checkpoint has
    them in: MXFP4 or bf16 as published (bf16 as its bits, uint16), float16, float32; or Int8, or Adapted."""
    attn_norm: np.ndarray  # float32 [N]
    q_weight: np.ndarray  # bf16 [H D, N]
    q_bias: np.ndarray  # float32 [H D]
    k_weight: np.ndarray  # bf16 [G D, N]
    k_bias: np.ndarray  # float32 [G D]
    v_weight: np.ndarray  # bf16 [G D, N]
    v_bias: np.ndarray  # float32 [G D]
    sinks: np.ndarray  # float32 [H]
    o_weight: np.ndarray  # bf16 [N, H D]
    o_bias: np.ndarray  # float32 [N]
    mlp_norm: np.ndarray  # float32 [N]
    router_weight: np.ndarray  # bf16 [E, N]
    router_bias: np.ndarray  # float32 [E]
    gate_up: MXFP4  # [E, 2F, N]
    gate_up_bias: np.ndarray  # float32 [E, 2F]
    down: MXFP4  # [E, N, F]
    down_bias: np.ndarray  # float32 [E, N]


class Model:
    """A loaded model: `model(tokens, cache)` gives logits. Its matrices are views into mapped files (int8: copies)."""

    def __init__(self, config, embedding, layers, norm, unembedding, operations, files=None):
        self.config, self.operations, self.files = config, operations, files or {}  # files: see LocalEngine
        self.embedding = embedding  # bf16 [V, N]
        self.layers = layers  # a Layer each
        self.norm = norm  # float32 [N]
        self.unembedding = unembedding  # bf16 [V, N]
        self.frequencies, self.attention_factor = rope_frequencies(config)

    def new_cache(self, dtype="bfloat16"):
        return KVCache(self, dtype)

    def __call__(self, tokens, cache=None, *, logits_to_keep=0):
        """Reads T token ids that follow those in `cache`, and adds them to it -> the logits after each, float32 [T, V].

        Without a cache it takes one of float32. `logits_to_keep=n`: the last n rows (0: all). Raises ValueError for
        tokens and caches that do not fit, and where activations leave the range that float32 can calculate with."""
        cache = self.new_cache("float32") if cache is None else cache
        ids = check_tokens(tokens, self, cache)
        first = len(ids) - (expect_number(logits_to_keep, int, 0, math.inf, ValueError, "logits_to_keep") or len(ids))
        chunks = range(0, len(ids), CHUNK)  # of each a copy of what is kept, so that the rest can be freed
        x = np.concatenate([self.hidden(ids[n : n + CHUNK], cache)[max(0, first - n) :].copy() for n in chunks])
        x = self.operations.rms_norm(x, self.norm, self.config.rms_norm_eps)  # [logits to keep, N]
        return self.operations.linear(x, self.unembedding)

    @np.errstate(all="ignore")  # what overflows is refused below, in a sentence; NumPy would print its warnings first
    def hidden(self, ids, cache):
        """ids [T] through all layers -> the residual stream [T, N] before the last norm."""
        x = bf16_to_float32(self.embedding[ids])  # [T, N]
        cos, sin = self.rope_tables(cache.length, len(ids))  # [T, 1, D/2] each
        for i in range(len(self.layers)):
            x = x + self.attend(i, x, cos, sin, cache)
            x = x + self.mlp(i, x)
        expect(np.abs(x).max() <= LARGEST, ValueError, "model", f"numbers up to {LARGEST:g}", "larger ones, inf or nan")
        cache.length += len(ids)
        return x

    def rope_tables(self, start, T):
        """cos and sin [T, 1, D/2] of each pair's angle at the positions start ... start + T - 1."""
        angles = np.arange(start, start + T, dtype=np.float32)[:, None, None] * self.frequencies
        return np.cos(angles) * self.attention_factor, np.sin(angles) * self.attention_factor

    def attend(self, i, x, cos, sin, cache):
        """What layer i's attention adds to the residual stream: x [T, N] -> [T, N]."""
        c, layer, ops, T = self.config, self.layers[i], self.operations, len(x)
        x = ops.rms_norm(x, layer.attn_norm, c.rms_norm_eps)
        q = ops.linear(x, layer.q_weight, layer.q_bias).reshape(T, c.num_attention_heads, c.head_dim)  # [T, H, D]
        k = ops.linear(x, layer.k_weight, layer.k_bias).reshape(T, c.num_key_value_heads, c.head_dim)  # [T, G, D]
        v = ops.linear(x, layer.v_weight, layer.v_bias).reshape(T, c.num_key_value_heads, c.head_dim)  # [T, G, D]
        kv = cache.extend(i, T)  # [2, G, S, D]
        ops.store_kv(kv[:, :, -T:], ops.rotate(k, cos, sin), v)
        window = c.sliding_window if c.layer_types[i] == "sliding_attention" else cache.limit
        keys, values = kv[:, :, -(window + T - 1) :]  # the first of T queries sees window - 1 keys before its own
        y = ops.attention(ops.rotate(q, cos, sin), keys, values, layer.sinks, window)  # [T, H, D]
        return ops.linear(y.reshape(T, -1), layer.o_weight, layer.o_bias)  # [T, N]

    def mlp(self, i, x):
        """What layer i's experts add to the residual stream: x [T, N] -> [T, N]."""
        c, layer, ops = self.config, self.layers[i], self.operations
        x = ops.rms_norm(x, layer.mlp_norm, c.rms_norm_eps)
        logits = ops.linear(x, layer.router_weight, layer.router_bias)  # [T, E]
        chosen, weights = ops.route(logits, c.num_experts_per_tok)  # [T, K] each
        return ops.experts(x, chosen, weights, layer, c.swiglu_limit)


def load(path, *, backend="numba", dense_dtype="bfloat16", adapter=None, model=Model):
    """The model in directory `path`, in either layout, mapped: a weight is read when it is used. Or CheckpointError.

    backend: "numpy", the operations above; "numba", their fast twins in kernels.py; or an object with some of them.
    dense_dtype: "int8" quantizes the attention and unembedding weights now: half the bytes to read for each token, but
    a copy in memory. adapter: the directory of a LoRA adapter (adapter.py). model: a subclass to build."""
    expect(str(dense_dtype) in ("bfloat16", "int8"), ValueError, "dense_dtype", '"bfloat16" or "int8"', dense_dtype)
    operations, (config, layout) = operations_of(backend), read_config(str(path))  # (a number would be an open file)
    top, layers, files = read_tensors(str(path), config, layout)  # {field: array}, and such a dict for each layer
    for tensors in (top, *layers):
        for field, array in tensors.items():
            if field.endswith(("norm", "bias", "sinks")):
                tensors[field] = np.array(bf16_to_float32(array))  # once, not at each token
            elif dense_dtype == "int8" and field in ("q_weight", "k_weight", "v_weight", "o_weight", "unembedding"):
                tensors[field] = quantize_int8(array)
    if adapter is not None:
        adapt(layers, str(adapter), config)
    layers = [Layer(**layer) for layer in layers]
    return model(config, top["embedding"], layers, top["norm"], top["unembedding"], operations, files)


def operations_of(backend):
    """The OPERATIONS of a backend, as attributes; those that it does not have are the ones in this file."""
    if str(backend) == "numba":
        import kernels as backend  # here, so that the NumPy backend needs no Numba
    known = str(backend) == "numpy" or any(callable(getattr(backend, name, None)) for name in OPERATIONS)
    expect(known, ValueError, "backend", '"numpy", "numba" or an object with some of gptoss.OPERATIONS', repr(backend))
    return SimpleNamespace(**{name: getattr(backend, name, globals()[name]) for name in OPERATIONS})


# ---- Sampling -------------------------------------------------------------------------------------------------------

def filter_logits(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """logits [V] / temperature, with -inf for every id that top_k, top_p or min_p rule out, one after the other."""
    logits = (logits - logits.max()) / max(temperature, 1e-30)  # the largest is 0; below 1e-45 float32 has 0, and 0/0
    if 0 < top_k < len(logits):  # keep the top_k largest
        logits = np.where(logits >= np.partition(logits, -top_k)[-top_k], logits, -np.inf)
    if top_p < 1:  # keep the likeliest ids up to where their probabilities reach top_p ("nucleus", arXiv 1904.09751)
        p = softmax(logits.astype(np.float64))
        likely = np.flatnonzero(p > (1 - top_p) / len(p))  # the others have less than 1 - top_p in all: no need to sort
        likely = likely[np.argsort(-p[likely], kind="stable")]
        beyond = np.cumsum(p[likely]) - p[likely] >= top_p  # those before it have reached top_p
        logits = np.where(np.isin(np.arange(len(p)), likely[~beyond]), logits, -np.inf)
    if min_p:  # keep the ids at least min_p times as likely as the likeliest
        logits = np.where(logits >= math.log(min_p), logits, -np.inf)
    return logits


def sample(logits, rng, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """One id drawn from logits [V]; temperature 0: the best."""
    temperature, top_k, top_p, min_p = check_sampling(temperature, top_k, top_p, min_p)
    best, flat = int(np.argmax(logits)), np.ravel(logits)  # the first nan: a broken model is not to speak on
    expect(flat.shape == np.shape(logits) and np.isfinite(flat[best]), ValueError, "logits", "numbers", str(flat[best]))
    if temperature == 0:
        return best
    p = softmax(filter_logits(logits, temperature, top_k, top_p, min_p).astype(np.float64))
    return int(rng.choice(len(p), p=p))


def generate(model, tokens, *, max_tokens=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=None, stop=None,
             cache=None, logits_processor=None):
    """Yield the ids that follow `tokens` as they come, a stop id last.

    Ends at an id in `stop` (None: the checkpoint's eos ids), after max_tokens, or when the context is full.
    temperature=0 is greedy; the same seed gives the same ids. With a `cache`, `tokens` follow what it holds, and
    afterwards it holds all but the last id yielded. `logits_processor(ids, logits)` gets the ids generated so far and
    the next logits [V], and returns those to use (-inf forbids an id). Raises ValueError for bad arguments, at once."""
    sampling = check_sampling(temperature, top_k, top_p, min_p, max_tokens)
    expect(hasattr(model, "new_cache"), ValueError, "model", "what gptoss.load gives", model)
    cache = model.new_cache() if cache is None else cache
    ids = check_tokens(tokens, model, cache)
    room = cache.limit - cache.length - len(ids) + 1  # the last id is not read
    stop = model.config.eos_token_id if stop is None else stop if np.iterable(stop) else [stop]
    stop = {expect_number(id, int, 0, math.inf, ValueError, "stop") for id in stop}
    rng = np.random.default_rng(seed if seed is None else expect_number(seed, int, 0, math.inf, ValueError, "seed"))
    processed = logits_processor or (lambda ids, logits: logits)
    expect(callable(processed), ValueError, "logits_processor", "a function", logits_processor)

    def steps(unread, generated):
        while len(generated) < min(room, max_tokens or room):
            logits = model(unread, cache, logits_to_keep=1)[-1]  # [V]
            generated.append(sample(processed(generated, logits), rng, *sampling))
            yield generated[-1]
            if generated[-1] in stop:
                return
            unread = generated[-1:]

    return steps(ids, [])


# ---- Arguments ------------------------------------------------------------------------------------------------------

def check_tokens(tokens, model, cache):
    """tokens as an int array [T], T >= 1, of ids that the model knows and the cache has room for. Or ValueError."""
    ids, V = [*tokens] if np.iterable(tokens) else [tokens], model.config.vocab_size
    bad = [id for id in ids if isinstance(id, bool) or not isinstance(id, int | np.integer) or not 0 <= id < V][:1]
    expect(ids and not bad, ValueError, "tokens", f"ids from 0 to {V - 1}", f"{bad[0]!r}" if bad else "none")
    expect(getattr(cache, "model", None) is model, ValueError, "cache", "one that this model made", "another")
    total = cache.length + len(ids)
    expect(total <= cache.limit, ValueError, "tokens", f"at most {cache.limit}, the context", f"{total} with the cache")
    return np.array(ids)


def check_sampling(temperature, top_k, top_p, min_p, max_tokens=None):
    """(temperature, top_k, top_p, min_p) as `sample` takes them; ValueError if one, or max_tokens, is out of range."""
    expect_number(1 if max_tokens is None else max_tokens, int, 1, math.inf, ValueError, "max_tokens")
    return (expect_number(temperature, float, 0, math.inf, ValueError, "temperature"),
            expect_number(top_k, int, 0, math.inf, ValueError, "top_k"),
            expect_number(top_p, float, 1e-9, 1, ValueError, "top_p"),
            expect_number(min_p, float, 0, 1, ValueError, "min_p"))
