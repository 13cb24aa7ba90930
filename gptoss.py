"""gpt-oss in NumPy: from a checkpoint on disk to the next token, in reading order.

    number formats -> operations -> KV cache -> model -> sampling

This file knows token ids, not text (tokenizer.py) nor messages (harmony.py); the files on disk are checkpoint.py's.
It is written to be read, and to be right: `load(path, backend="numpy")` runs exactly what stands here. The operations
of a layer (`linear`, `attention` and `experts`, which take nearly all the time, and `rms_norm`, `rotate`, `write` and
`route`) have a fast twin of the same name in kernels.py, and backend="numba" runs those instead. Nothing else differs.

    T  tokens in this call          N  hidden_size                   E  num_local_experts
    S  keys a call can see          F  intermediate_size             K  num_experts_per_tok
    H  query heads                  V  vocab_size                    W  sliding_window
    G  key/value heads              D  head_dim

Sources: the model card (arXiv 2508.10925), github.com/openai/gpt-oss (torch/model.py, torch/weights.py), and the papers
named where they are used.
"""

import math
import os
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from checkpoint import Checkpoint, CheckpointError, Config, read_config, tensor_table

__all__ = ["CheckpointError", "Config", "KVCache", "Model", "generate", "load"]

CHUNK = 512  # tokens that go through the layers at once: bounds the memory of a long prompt


# ---- Number formats -------------------------------------------------------------------------------------------------


class MXFP4(NamedTuple):
    """Packed weights [..., M, N] (OCP Microscaling v1.0): each 32 neighbours along N share one scale."""

    blocks: np.ndarray  # uint8 [..., M, N/32, 16]: two e2m1 numbers a byte, the even element in the low nibble
    scales: np.ndarray  # uint8 [..., M, N/32]: e8m0, worth 2^(byte - 127)


class Int8(NamedTuple):
    """Weights [M, N] quantized at load: each 32 neighbours along N share one scale (the last block may be shorter)."""

    values: np.ndarray  # int8 [M, N]
    scales: np.ndarray  # bf16 [M, ceil(N/32)]


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# Byte 0 is 2^-127, a float32 subnormal: a table gets it right where shifting the byte into the exponent gives 0.
E8M0 = np.ldexp(np.float32(1), np.arange(256) - 127, dtype=np.float32, where=np.arange(256) < 255,
                out=np.full(256, np.nan, np.float32))


def widen(bits):
    """bf16 bit patterns (uint16) -> float32, exactly: bf16 is the upper half of a float32. float32 passes through."""
    return (bits.astype(np.uint32) << 16).view(np.float32) if bits.dtype == np.uint16 else bits


def round_to_bf16(x):
    """float32 -> bf16 bit patterns (uint16), to the nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def dequantize(weight):
    """MXFP4 [..., M, N] -> float32 [..., M, N], exactly."""
    values = np.stack([E2M1[weight.blocks & 15], E2M1[weight.blocks >> 4]], axis=-1)  # [..., M, N/32, 16, 2]
    values = values.reshape(*weight.scales.shape, 32) * E8M0[weight.scales][..., None]
    return values.reshape(*weight.scales.shape[:-1], -1)


def quantize_int8(weight):
    """bf16 [M, N] -> Int8, to the nearest of 255 steps between -max and max of each block."""
    M, N = weight.shape
    values, scales = np.empty((M, N), np.int8), np.empty((M, -(-N // 32)), np.uint16)
    for r in range(0, M, 4096):  # 47 MB of float32 at a time at N = 2880
        x = widen(weight[r : r + 4096])
        x = np.pad(x, ((0, 0), (0, -N % 32))).reshape(len(x), -1, 32)
        scale = round_to_bf16(np.abs(x).max(-1) / 127)  # at most 0.4% off, so max stays below 127.5 steps
        scales[r : r + 4096] = scale = np.maximum(scale, 0x0080)  # 2^-126: what is smaller would be coarser
        steps = np.rint(x / widen(scale)[..., None]).astype(np.int8)
        values[r : r + 4096] = steps.reshape(len(x), -1)[:, :N]
    return Int8(values, scales)


# ---- Operations -----------------------------------------------------------------------------------------------------


def rms_norm(x, weight, eps):
    """x [T, N] / its root mean square, times weight [N] (arXiv 1910.07467)."""
    mean = np.vecdot(x, x)[..., None] / np.float32(x.shape[-1])
    return x / np.sqrt(mean + np.float32(eps)) * widen(weight)


def rope_frequencies(config):
    """Radians a position, float32 [D/2], and the factor on cos and sin: RoPE (arXiv 2104.09864) stretched by YaRN
    (arXiv 2309.00071, section 3). Fast pairs stay, slow ones are slowed by `factor`, those between are blended."""
    half = config.head_dim // 2
    extrapolated = config.rope_theta ** -(np.arange(half) / half)
    if config.rope_scaling is None:
        return extrapolated.astype(np.float32), 1.0
    yarn = SimpleNamespace(**config.rope_scaling)

    def pair_turning(turns):  # the pair (a real number) that turns so often within the original context
        wavelength = yarn.original_max_position_embeddings / turns
        return half * math.log(wavelength / (2 * math.pi)) / math.log(config.rope_theta)

    low, high = pair_turning(yarn.beta_fast), pair_turning(yarn.beta_slow)
    if yarn.truncate:  # not so in gpt-oss: 8.09 and 17.40 at D = 64 stay as they are
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    ramp = np.clip((np.arange(half) - low) / max(high - low, 0.001), 0, 1)
    frequencies = extrapolated * (1 - ramp) + extrapolated / yarn.factor * ramp
    return frequencies.astype(np.float32), 0.1 * math.log(yarn.factor) + 1 if yarn.factor > 1 else 1.0


def rotate(x, cos, sin):
    """RoPE on x [T, heads, D]; cos, sin [T, 1, D/2]. A pair is (d, d + D/2): the HALVES of a head, not neighbours."""
    half = x.shape[-1] // 2
    a, b, y = x[..., :half], x[..., half:], np.empty_like(x)
    y[..., :half] = a * cos - b * sin
    y[..., half:] = b * cos + a * sin
    return y


def linear(x, weight, bias=None):
    """x [T, N] @ weight [M, N]^T + bias [M] -> float32 [T, M]; weight bf16 or Int8."""
    quantized = isinstance(weight, Int8)
    M = len(weight.values if quantized else weight)
    y = np.empty((len(x), M), np.float32)
    for r in range(0, M, 8192):  # the unembedding in float32 would be 2.3 GB at once
        rows = slice(r, r + 8192)
        if quantized:
            w = weight.values[rows] * np.repeat(widen(weight.scales[rows]), 32, axis=1)[:, : x.shape[1]]
        else:
            w = widen(weight[rows])
        y[:, rows] = x @ w.T
    return y if bias is None else y + widen(bias)


def write(kv, k, v):
    """kv [2, G, T, D], a part of the cache, becomes k and v [T, G, D]; in bf16 where the cache holds bf16."""
    new = np.stack([k, v]).swapaxes(1, 2)
    kv[:] = round_to_bf16(new) if kv.dtype == np.uint16 else new


def attention(q, k, v, sinks, window):
    """Grouped-query attention of the last T of S positions -> float32 [T, H, D].

    q [T, H, D]; k, v [G, S, D], float32 or bf16; sinks [H]. Query t stands at position S - T + t and sees the keys up
    to itself, at most the last `window` (itself included). A sink is a logit that joins the softmax and brings no
    value: a head may look at nothing (arXiv 2309.17453; here learned, one a head).

        T = 3 queries, S = 5 keys, window = 3        keys  0 1 2 3 4
                                              position 2   x x x . .
                                              position 3   . x x x .
                                              position 4   . . x x x
    """
    T, H, D = q.shape
    G, S, _ = k.shape
    q = q.reshape(T, G, H // G, D)  # query head h belongs to key/value head h // (H/G)
    position, key = np.arange(S - T, S)[:, None], np.arange(S)[None, :]
    visible = (key <= position) & (key > position - window)  # [T, S]
    sinks = widen(sinks).reshape(G, H // G, 1, 1)
    out = np.empty((T, G, H // G, D), np.float32)
    for g in range(G):
        scores = q[:, g].transpose(1, 0, 2) @ widen(k[g]).T / np.float32(math.sqrt(D))  # [H/G, T, S]
        scores = np.where(visible, scores, -np.inf)
        peak = np.maximum(scores.max(axis=-1, keepdims=True), sinks[g])
        p = np.exp(scores - peak)
        p /= p.sum(axis=-1, keepdims=True) + np.exp(sinks[g] - peak)
        out[:, g] = (p @ widen(v[g])).transpose(1, 0, 2)
    return out.reshape(T, H, D)


def swiglu(gate_up, limit):
    """Clamped SwiGLU: gate_up [T, 2F] -> [T, F]. Gate and up are interleaved: even columns gate, odd columns up."""
    gate = np.minimum(gate_up[..., 0::2], np.float32(limit))
    up = np.clip(gate_up[..., 1::2], np.float32(-limit), np.float32(limit))
    return gate / (1 + np.exp(np.float32(-1.702) * gate)) * (up + 1)


def route(logits, K):
    """The K best of E experts for each token -> chosen int [T, K], weights float32 [T, K], a softmax over those K."""
    chosen = np.ascontiguousarray(np.argsort(-logits, axis=-1, kind="stable")[:, :K])
    best = logits[np.arange(len(logits))[:, None], chosen]
    weights = np.exp(best - best[:, :1])
    return chosen, weights / weights.sum(axis=-1, keepdims=True)


def experts(x, chosen, weights, layer, limit):
    """Mixture of experts: x [T, N] -> [T, N]. Each expert sees the tokens that chose it: up, SwiGLU, down, weighted."""
    y = np.zeros_like(x)
    for e in np.unique(chosen):
        t, slot = np.nonzero(chosen == e)
        gate_up = dequantize(MXFP4(layer.gate_up.blocks[e], layer.gate_up.scales[e]))  # [2F, N]
        down = dequantize(MXFP4(layer.down.blocks[e], layer.down.scales[e]))  # [N, F]
        h = swiglu(x[t] @ gate_up.T + widen(layer.gate_up_bias[e]), limit)  # [tokens of e, F]
        y[t] += weights[t, slot, None] * (h @ down.T + widen(layer.down_bias[e]))
    return y


# ---- KV cache -------------------------------------------------------------------------------------------------------


class KVCache:
    """The keys and values of the tokens so far: for each layer an array [2, G, room, D], and how many it holds.

    New tokens are written behind the last. When the room is used up, a new array gets those that are still in sight:
    all in a full layer, the last W - 1 in a sliding one, which costs no more after 100,000 tokens than after 128. What
    is counted is never written over, so an interrupted step does no harm. `rewind` needs the snapshots (at most 16 of 3
    MiB for 20b): what has left the window is gone.
    """

    SNAPSHOTS = 16

    def __init__(self, config, dtype="bfloat16"):
        if dtype not in ("bfloat16", "float32"):
            raise ValueError(f'cache dtype: expected "bfloat16" or "float32", found {dtype!r}')
        self.length = 0  # tokens held
        self.limit, self.window = config.max_position_embeddings, config.sliding_window
        self.sliding = {i for i, kind in enumerate(config.layer_types) if kind == "sliding_attention"}
        stored = np.uint16 if dtype == "bfloat16" else np.float32
        empty = np.empty((2, config.num_key_value_heads, 0, config.head_dim), stored)
        self.layers = [(empty, 0)] * len(config.layer_types)
        self.pending = {}  # what `layers` will be when the step is through every layer
        self.snapshots = {}  # length -> what the sliding ones of `layers` were then

    def extend(self, i, T):
        """Make room for T tokens in layer i: all keys and values this step can see, [2, G, S, D], of which the last T
        are yet to be written."""
        kv, end = self.layers[i]
        seen = min(end, self.window - 1) if i in self.sliding else end  # before the new ones
        if end + T >= kv.shape[2]:  # one stays free: kernels.py is compiled for parts of arrays, not for whole ones too
            new = np.empty((*kv.shape[:2], max(64, 2 * (seen + T)), kv.shape[3]), kv.dtype)
            new[:, :, :seen] = kv[:, :, end - seen : end]
            kv, end = new, seen
        self.pending[i] = kv, end + T
        return kv[:, :, end - seen : end + T]

    def commit(self, T):
        """The T tokens are through every layer: count them. Until now the cache was as before, whatever interrupts."""
        self.layers, self.length = [self.pending[i] for i in range(len(self.layers))], self.length + T
        if T > 1 or self.length % self.window == 0:  # after each piece of a prompt, and now and then in a reply
            recent = {i: kv[:, :, max(0, end - self.window) : end] for i, (kv, end) in enumerate(self.layers)}
            self.snapshots[self.length] = {i: (recent[i].copy(), recent[i].shape[2]) for i in self.sliding}
            if len(self.snapshots) > self.SNAPSHOTS:  # forget the one nearest to its predecessor, never the newest
                at = [0, *sorted(self.snapshots)]
                del self.snapshots[at[min(range(1, len(at) - 1), key=lambda j: at[j] - at[j - 1])]]

    def rewind(self, n):
        """Drop tokens so that at most n remain, as many as can be restored exactly; return how many remain.

        A state at length p with the last h keys can go on from m <= p if those in sight, m-W+1 ... m-1, are among them.
        """
        if n < 0:
            raise ValueError(f"rewind: expected a length of at least 0, found {n}")
        if n >= self.length:
            return self.length

        def restores(p, state):
            return all(p - h <= max(0, min(p, n) - self.window + 1) for _, h in state.values())

        now = {i: self.layers[i] for i in self.sliding}
        nothing = {i: (kv, 0) for i, (kv, _) in now.items()}
        states = self.snapshots | {0: nothing, self.length: now}
        p = max((p for p in states if restores(p, states[p])), key=lambda p: min(p, n))
        self.length = min(p, n)
        self.layers = [(kv, self.length) for kv, _ in self.layers]
        for i, (kv, h) in states[p].items():
            self.layers[i] = kv, h - (p - self.length)
        self.snapshots = {p: state for p, state in self.snapshots.items() if p <= self.length}
        return self.length


# ---- Model ----------------------------------------------------------------------------------------------------------


class Model:
    """A loaded model: `model(tokens, cache)` gives logits. Its tensors are views into the mapped file."""

    def __init__(self, config, top, layers, operations):
        self.config, self.layers, self.operations = config, layers, operations
        self.embedding, self.norm, self.unembedding = top.embedding, top.norm, top.unembedding
        self.frequencies, self.rope_factor = rope_frequencies(config)

    def new_cache(self, dtype="bfloat16"):
        return KVCache(self.config, dtype)

    def __call__(self, tokens, cache=None, *, logits_to_keep=0):
        """Logits float32 [T, V] of T token ids that follow what `cache` holds, to which they are added.
        `logits_to_keep=n` computes the last n rows only. Raises ValueError for no tokens, ids outside the vocabulary,
        or more tokens than the context holds."""
        ids = check_tokens(tokens, self.config.vocab_size)
        if not 0 <= logits_to_keep:
            raise ValueError(f"logits_to_keep: expected 0 or more, found {logits_to_keep}")
        cache = self.new_cache("float32") if cache is None else cache
        if cache.length + len(ids) > cache.limit:
            raise ValueError(f"{cache.length + len(ids)} tokens are more than the context of {cache.limit}")
        first = len(ids) - (logits_to_keep or len(ids))
        kept = []
        for start in range(0, len(ids), CHUNK):
            x = self.hidden(ids[start : start + CHUNK], cache)
            kept.append(x[max(0, first - start) :])
        x = self.operations.rms_norm(np.concatenate(kept), self.norm, self.config.rms_norm_eps)
        return self.operations.linear(x, self.unembedding)

    def hidden(self, ids, cache):
        """ids [T] through all layers -> the residual stream [T, N] before the last norm."""
        x = widen(self.embedding[ids])  # [T, N]
        angles = np.arange(cache.length, cache.length + len(ids), dtype=np.float32)[:, None, None] * self.frequencies
        cos, sin = np.cos(angles) * np.float32(self.rope_factor), np.sin(angles) * np.float32(self.rope_factor)
        for i in range(len(self.layers)):
            x = x + self.attend(i, x, cos, sin, cache)
            x = x + self.mlp(i, x)
        cache.commit(len(ids))
        return x

    def attend(self, i, x, cos, sin, cache):
        """What layer i's attention adds to the residual stream: x [T, N] -> [T, N]."""
        c, layer, T = self.config, self.layers[i], len(x)
        linear, rotate = self.operations.linear, self.operations.rotate
        x = self.operations.rms_norm(x, layer.attn_norm, c.rms_norm_eps)
        q = linear(x, layer.q_weight, layer.q_bias).reshape(T, c.num_attention_heads, c.head_dim)  # [T, H, D]
        k = linear(x, layer.k_weight, layer.k_bias).reshape(T, c.num_key_value_heads, c.head_dim)  # [T, G, D]
        v = linear(x, layer.v_weight, layer.v_bias).reshape(T, c.num_key_value_heads, c.head_dim)
        keys, values = kv = cache.extend(i, T)  # [G, S, D] each
        self.operations.write(kv[:, :, -T:], rotate(k, cos, sin), v)
        window = c.sliding_window if c.layer_types[i] == "sliding_attention" else c.max_position_embeddings
        y = self.operations.attention(rotate(q, cos, sin), keys, values, layer.sinks, window)  # [T, H, D]
        return linear(y.reshape(T, -1), layer.o_weight, layer.o_bias)  # [T, N]

    def mlp(self, i, x):
        """What layer i's experts add to the residual stream: x [T, N] -> [T, N]."""
        c, layer = self.config, self.layers[i]
        x = self.operations.rms_norm(x, layer.mlp_norm, c.rms_norm_eps)
        logits = self.operations.linear(x, layer.router_weight, layer.router_bias)  # [T, E]
        chosen, weights = self.operations.route(logits, c.num_experts_per_tok)  # [T, K] each
        return self.operations.experts(x, chosen, weights, layer, c.swiglu_limit)


def load(path, *, backend="numba", dense_dtype="bfloat16"):
    """The model in directory `path` (HF or original/ layout). Maps the files; a weight is read when it is first used.

    backend: "numpy", the operations above, or "numba", their fast twins. dense_dtype: "bfloat16", as published, or
    "int8", which quantizes the attention and unembedding weights now (half the bytes to read for each token, but a copy
    in memory). Raises CheckpointError.
    """
    if backend not in ("numpy", "numba"):
        raise ValueError(f'backend: expected "numpy" or "numba", found {backend!r}')
    if dense_dtype not in ("bfloat16", "int8"):
        raise ValueError(f'dense_dtype: expected "bfloat16" or "int8", found {dense_dtype!r}')
    if not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such directory")
    config, layout = read_config(path)
    checkpoint = Checkpoint(path)
    top, layers = SimpleNamespace(), [SimpleNamespace() for _ in range(config.num_hidden_layers)]
    for name, (field, i, dtype, shape) in tensor_table(config, layout).items():
        setattr(top if i is None else layers[i], field, checkpoint.view(name, dtype, shape))

    Q, KV = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    for layer in layers:
        if layout == "original":  # q, k and v are one tensor there; a row slice of a view is a view
            layer.q_weight, layer.k_weight, layer.v_weight = np.split(layer.qkv_weight, [Q, Q + KV])
            layer.q_bias, layer.k_bias, layer.v_bias = np.split(layer.qkv_bias, [Q, Q + KV])
        layer.attn_norm, layer.mlp_norm = widen(layer.attn_norm), widen(layer.mlp_norm)  # once, not at each token
        layer.gate_up = MXFP4(layer.gate_up_blocks, layer.gate_up_scales)
        layer.down = MXFP4(layer.down_blocks, layer.down_scales)
        if dense_dtype == "int8":
            for field in ("q_weight", "k_weight", "v_weight", "o_weight"):
                setattr(layer, field, quantize_int8(getattr(layer, field)))
    if dense_dtype == "int8":
        top.unembedding = quantize_int8(top.unembedding)
    if backend == "numba":
        import kernels as operations  # here, so that the NumPy backend needs no Numba
    else:
        operations = sys.modules[__name__]
    return Model(config, top, layers, operations)


# ---- Sampling -------------------------------------------------------------------------------------------------------


def check_tokens(tokens, vocab_size):
    """tokens as an int array [T], T >= 1, each from 0 to vocab_size - 1; ValueError otherwise."""
    ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
    if ids.ndim != 1 or not len(ids):
        raise ValueError("the prompt is empty: expected at least one token id" if not ids.size
                         else f"tokens: expected a sequence of ids, found an array of shape {list(ids.shape)}")
    if ids.dtype.kind not in "iu":
        raise ValueError(f"tokens: expected integer ids, found {ids.dtype}")
    outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if len(outside):
        at = outside[0]
        raise ValueError(f"token {at} of the prompt: expected an id from 0 to {vocab_size - 1}, found {ids[at]}")
    return ids.astype(np.int64)


def shortlist(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """What may be drawn from logits [V] at a temperature above 0: ids [n] and weights [n], of which the best has 1.
    top_k, top_p and min_p cut in transformers' order."""
    p = logits - logits.max()
    p /= np.float32(max(temperature, 1e-30))  # a float32 below that is soon 0
    np.exp(p, out=p)
    ids, top_k = range(len(p)), top_k if top_k < len(p) else 0
    if top_k or top_p < 1:
        # Most of 201,088 need no sort. All p below this together weigh less than 1 - top_p: none is in the nucleus.
        total = p.sum(dtype=np.float64)
        least = np.partition(p, -top_k)[-top_k] if top_k else (1 - top_p) / len(p) * total
        ids = np.flatnonzero(p >= least)
        ids = ids[np.argsort(-p[ids], kind="stable")][: top_k or None]
        p = p[ids].astype(np.float64)
        nucleus = np.cumsum(p) - p < top_p * (p.sum() if top_k else total)
        ids, p = ids[nucleus], p[nucleus]
    if min_p:
        ids, p = np.array(ids)[p >= min_p], p[p >= min_p]
    return ids, p


def sample(logits, rng, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """One id drawn from logits [V]; temperature 0: the best."""
    best = int(np.argmax(logits))  # the first nan, if there is any
    if not math.isfinite(logits[best]):
        raise ValueError(f"logits: expected numbers, found {logits[best]}")
    if temperature == 0:
        return best
    ids, p = shortlist(logits, temperature, top_k, top_p, min_p)
    sums = np.add.reduceat(p, np.arange(0, len(p), 512)).astype(np.float64)
    upto = np.cumsum(sums)  # of every 512 weights: a running sum of all 201,088 takes several times as long as the rest
    drawn = rng.random() * upto[-1]
    b = min(np.searchsorted(upto, drawn, side="right"), len(upto) - 1)
    within = np.cumsum(p[512 * b : 512 * b + 512], dtype=np.float64)
    drawn = (drawn - (upto[b] - sums[b])) / sums[b] * within[-1]
    return int(ids[512 * b + min(np.searchsorted(within, drawn, side="right"), len(within) - 1)])


def generate(model, tokens, *, max_tokens=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=None, stop=None,
             cache=None):
    """Yield the ids that follow `tokens` as they come, a stop id last.

    Ends at an id in `stop` (None: the checkpoint's eos ids), after max_tokens, or when the context is full.
    temperature=0 is greedy; the same seed gives the same ids. With a `cache`, `tokens` follow what it holds, and
    afterwards it holds all but the last id yielded. Raises ValueError for arguments out of range, at once and not at
    the first id.
    """
    whole, real = (int, np.integer), (int, float, np.number)
    for name, value, kind, fits, expected in (
        ("temperature", temperature, real, lambda x: 0 <= x < math.inf, "a number of at least 0"),
        ("top_k", top_k, whole, lambda x: x >= 0, "an integer of at least 0"),
        ("top_p", top_p, real, lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
        ("min_p", min_p, real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
        ("max_tokens", 1 if max_tokens is None else max_tokens, whole, lambda x: x >= 1, "an integer of at least 1"),
    ):
        if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
            raise ValueError(f"{name}: expected {expected}, found {value!r}")
    ids = check_tokens(tokens, model.config.vocab_size)
    cache = model.new_cache() if cache is None else cache
    if cache.length + len(ids) > cache.limit:
        raise ValueError(f"a prompt of {cache.length + len(ids)} tokens is longer than the context of {cache.limit}")
    stop = set(model.config.eos_token_id if stop is None else stop)
    room = cache.limit - cache.length - len(ids) + 1
    return _generate(model, ids, min(room, max_tokens or room), (temperature, top_k, top_p, min_p),
                     np.random.default_rng(seed), stop, cache)


def _generate(model, ids, max_tokens, sampling, rng, stop, cache):
    for _ in range(max_tokens):
        token = sample(model(ids, cache, logits_to_keep=1)[-1], rng, *sampling)
        yield token
        if token in stop:
            return
        ids = np.array([token])
