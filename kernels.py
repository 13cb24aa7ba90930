"""The operations of a layer in Numba: each the fast twin of one in gptoss.py. Three take nearly all the time:

    linear      dense weights (bf16 as published, or int8)       x [T, N] -> [T, M]
    attention   sinks, sliding window, online softmax            q [T, H, D] -> [T, H, D]
    experts     MXFP4 weights (mxfp4.py)                         x [T, N] -> [T, N]

This file knows arrays, not models. Letters as in gptoss.py. There are two regimes. For a few tokens (decoding) a weight
is used once or twice, so speed is memory bandwidth: stream each weight once, packed, and convert it in registers. For
many tokens (a prompt) it is arithmetic: some rows of weights are converted once, in cache or in registers, and meet all
tokens there.
"""

import math  # noqa: I001

import numba
import numpy as np
from numba import prange, types
from numba.extending import overload

from mxfp4 import multiply_mxfp4, rounded_to_int16, stream_mxfp4
from simd import (
    add, first_to_float, fma, inline_jit, jit, larger, largest_lane, last_to_float, load_f32x16, load_i8x32,
    load_one_widened, load_splat_f32x16, load_widened, parallel_jit, power_of_two, prefetch, splat_f32x16, store,
    sum_lanes, times, to_whole, transpose, widen, zeros_f32x16,
)

FEW = 16  # dense weights that are used for up to so many tokens are streamed for each; for more, widened once
FEW_MXFP4 = 5  # the same of packed ones, on average over the experts in use
AHEAD = 2048  # bytes of weights between what is computed and what is fetched


# ---- Dense weights and a few tokens: stream them ---------------------------------------------------------------------


@parallel_jit
def stream_bf16(x, weight, y, bias=None):
    """y [T, M] = x [T, N] @ weight [M, N]^T + bias [M]. A plain loop: Numba's own vector code reaches the memory's
    limit."""
    T, N = x.shape
    for m in prange(weight.shape[0]):
        for t in range(T):  # the row stays in the level-1 cache
            total = np.float32(0)
            for n in range(N):
                total += widen(weight[m, n]) * x[t, n]
            y[t, m] = total if bias is None else total + widen(bias[m])


@parallel_jit
def stream_int8(x, values, scales, y, bias=None):
    """y [T, M] = x [T, N] @ (values [M, N] * scales [M, N/32])^T + bias [M]."""
    T, N = x.shape
    whole = N // 32
    flat_x, flat_values = x.reshape(-1), values.reshape(-1)
    for m in prange(values.shape[0]):
        for t in range(T):
            lanes = zeros_f32x16()
            for b in range(whole):
                prefetch(flat_values, m * N + 32 * b + AHEAD)
                w, at = load_i8x32(flat_values, m * N + 32 * b), t * N + 32 * b
                block = times(first_to_float(w), load_f32x16(flat_x, at))
                block = fma(last_to_float(w), load_f32x16(flat_x, at + 16), block)
                lanes = fma(block, splat_f32x16(widen(scales[m, b])), lanes)
            total = sum_lanes(lanes)
            for n in range(32 * whole, N):
                total += np.float32(values[m, n]) * widen(scales[m, whole]) * x[t, n]
            y[t, m] = total if bias is None else total + widen(bias[m])


# ---- Dense weights and many tokens: widen sixteen rows, multiply them by all tokens ----------------------------------


@jit
def widen_bf16(weight, scales, row, tile):
    """tile [N, 16], flat: sixteen rows from `row` on, side by side in float32; where there are fewer the last again."""
    M, N = weight.shape
    for r in range(16):
        for n in range(N):
            tile[16 * n + r] = widen(weight[min(row + r, M - 1), n])


@jit
def widen_int8(values, scales, row, tile):
    M, N = values.shape
    for r in range(16):
        for n in range(N):
            m = min(row + r, M - 1)
            tile[16 * n + r] = np.float32(values[m, n]) * widen(scales[m, n // 32])


def widen_rows(weight, scales, row, tile):
    """The one of the two that fits the weight's type."""


@overload(widen_rows)
def widen_rows_compiled(weight, scales, row, tile):
    function = {types.uint16: widen_bf16, types.int8: widen_int8}[weight.dtype]
    return lambda weight, scales, row, tile: function(weight, scales, row, tile)


@inline_jit
def four_by_sixteen(x, a, b, c, d, N, tile, at, stride):
    """Four rows of x, from a, b, c and d on, times a tile [N, 16] -> four float32[16]. Both are flat; the tile begins
    at `at`, its rows are `stride` apart. Four sums stay in registers, and one load of the tile serves all of them.
    """
    A, B, C, D = zeros_f32x16(), zeros_f32x16(), zeros_f32x16(), zeros_f32x16()
    for n in range(N):
        w = load_f32x16(tile, at + stride * n)
        A, B = fma(w, load_splat_f32x16(x, a + n), A), fma(w, load_splat_f32x16(x, b + n), B)
        C, D = fma(w, load_splat_f32x16(x, c + n), C), fma(w, load_splat_f32x16(x, d + n), D)
    return A, B, C, D


@parallel_jit
def multiply(workers, x, weight, scales, y):
    """y [T, M] = x [T, N] @ W^T, of dense weights.

    A worker widens every `workers`-th sixteen rows, into a tile that stays in its level-2 cache while x comes by.
    """
    (T, M), N = y.shape, x.shape[1]
    x = x.reshape(-1)
    for worker in prange(workers):
        tile, out = np.empty(16 * N, np.float32), np.empty(64, np.float32)
        for row in range(16 * worker, M, 16 * workers):
            widen_rows(weight, scales, row, tile)
            for t in range(0, T, 4):
                a, b, c, d = N * t, N * min(t + 1, T - 1), N * min(t + 2, T - 1), N * min(t + 3, T - 1)
                A, B, C, D = four_by_sixteen(x, a, b, c, d, N, tile, 0, 16)
                store(out, 0, A)
                store(out, 16, B)
                store(out, 32, C)
                store(out, 48, D)
                for i in range(min(4, T - t)):
                    for r in range(min(16, M - row)):
                        y[t + i, row + r] = out[16 * i + r]


# ---- The operations -------------------------------------------------------------------------------------------------

NONE = np.empty(0, np.float32)


def linear(x, weight, bias=None):
    """x [T, N] @ weight [M, N]^T + bias [M] -> float32 [T, M]; weight bf16 [M, N], or int8 values and scales."""
    T, x = len(x), np.ascontiguousarray(x)
    quantized = isinstance(weight, tuple)
    M = len(weight[0] if quantized else weight)
    y = np.empty((T, M), np.float32)
    if T <= FEW:
        stream_int8(x, *weight, y, bias) if quantized else stream_bf16(x, weight, y, bias)
        return y
    weight, scales = weight if quantized else (weight, NONE)
    multiply(numba.get_num_threads(), x, weight, scales, y)
    if bias is not None:
        y += (bias.astype(np.uint32) << 16).view(np.float32)
    return y


@jit
def group(chosen, E):
    """The J = T K pairs (token, expert) of chosen [T, K], sorted by expert: the tokens [J] in that order; where in it
    each pair stands [T, K]; and groups int64 [G, 3], for every expert that was chosen: it, its first and last + 1."""
    T, K = chosen.shape
    ends = np.zeros(E + 1, np.int64)
    for t in range(T):
        for k in range(K):
            ends[chosen[t, k] + 1] += 1
    groups, G = np.empty((E, 3), np.int64), 0
    for e in range(E):
        if ends[e + 1]:
            groups[G, 0], groups[G, 1], groups[G, 2] = e, ends[e], ends[e] + ends[e + 1]
            G += 1
        ends[e + 1] += ends[e]
    tokens, places = np.empty(T * K, np.int64), np.empty((T, K), np.int64)
    for t in range(T):
        for k in range(K):
            places[t, k] = ends[chosen[t, k]]
            tokens[places[t, k]] = t
            ends[chosen[t, k]] += 1
    return tokens, places, groups[:G]


@jit
def combine(results, places, weights, y):
    """y [T, N]: token t's K results, which stand in rows `places` [T, K] of results [J, N], weighted and summed."""
    T, K = places.shape
    for t in range(T):  # in one thread: few additions beside those of the products
        y[t] = 0
        for k in range(K):
            for n in range(y.shape[1]):
                y[t, n] += weights[t, k] * results[places[t, k], n]


@jit
def mixture(workers, few, x, chosen, weights, up, up_scales, up_bias, down, down_scales, down_bias, limit):
    """`experts` of arrays, so that Python makes one call and not one for each step. few: FEW_MXFP4."""
    (T, N), (E, _, B, _), J = x.shape, down.shape, chosen.size
    tokens, places, groups = group(chosen, E)
    h, results, y = np.empty((J, 32 * B), np.float32), np.empty((J, N), np.float32), np.empty((T, N), np.float32)
    streamed = J <= few * len(groups) and N % 64 == B % 2 == 0  # dot_mxfp4 takes two blocks at a time
    rounded, offsets, scales = rounded_to_int16(x)
    first = workers, rounded, offsets, scales, tokens, groups, up, up_scales, up_bias, limit, h
    stream_mxfp4(*first) if streamed else multiply_mxfp4(*first)
    rounded, offsets, scales = rounded_to_int16(h)
    then = workers, rounded, offsets, scales, np.arange(J), groups, down, down_scales, down_bias, limit, results
    stream_mxfp4(*then) if streamed else multiply_mxfp4(*then)
    combine(results, places, weights, y)
    return y


def experts(x, chosen, weights, layer, limit):
    """Mixture of experts: x [T, N] -> [T, N]; chosen, weights [T, K]. See gptoss.experts."""
    up, down = (*layer.gate_up, layer.gate_up_bias), (*layer.down, layer.down_bias)
    return mixture(numba.get_num_threads(), FEW_MXFP4, x, chosen, weights, *up, *down, np.float32(limit))


# Four small ones. NumPy takes several calls for each, and in a model whose weights have just driven code and data out
# of the caches, a call takes four times as long as by itself.


@jit
def rms_norm(x, weight, eps):
    """x [T, N] / its root mean square, times weight [N]."""
    y = np.empty_like(x)
    for t in range(len(x)):
        total = np.float32(0)
        for n in range(x.shape[1]):
            total += x[t, n] * x[t, n]
        rms = np.sqrt(total / np.float32(x.shape[1]) + np.float32(eps))
        for n in range(x.shape[1]):
            y[t, n] = x[t, n] / rms * widen(weight[n])
    return y


@jit
def rotate(x, cos, sin):
    """RoPE on x [T, heads, D]; cos, sin [T, 1, D/2]. See gptoss.rotate."""
    T, heads, D = x.shape
    y, half = np.empty_like(x), D // 2
    for t in range(T):
        for h in range(heads):
            for d in range(half):
                a, b = x[t, h, d], x[t, h, half + d]
                y[t, h, d] = a * cos[t, 0, d] - b * sin[t, 0, d]
                y[t, h, half + d] = b * cos[t, 0, d] + a * sin[t, 0, d]
    return y


def narrow(array, x):
    """float32 -> what `array` holds: the nearest bf16 pattern (uint16), ties to even, or x itself."""


@overload(narrow, inline="always")
def narrow_compiled(array, x):
    if isinstance(array.dtype, types.Float):
        return lambda array, x: x

    def to_bf16(array, x):
        bits = np.float32(x).view(np.uint32)
        return (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)

    return to_bf16


@jit
def store_kv(kv, k, v):
    """kv [2, G, T, D], a part of the cache, becomes k and v [T, G, D]. See gptoss.store_kv."""
    _, G, T, D = kv.shape
    for t in range(T):
        for g in range(G):
            for d in range(D):
                kv[0, g, t, d], kv[1, g, t, d] = narrow(kv, k[t, g, d]), narrow(kv, v[t, g, d])


@jit
def route(logits, K):
    """The K best of E experts for each token: chosen int64 [T, K], weights float32 [T, K]. See gptoss.route.

    An expert's rank is how many come before it: the greater ones, of equals the earlier ones, and nan comes last.
    """
    T, E = logits.shape
    chosen, weights = np.empty((T, K), np.int64), np.empty((T, K), np.float32)
    for t in range(T):
        for e in range(E):
            rank, b = 0, logits[t, e]
            for other in range(E):
                a = logits[t, other]
                same = a == b or a != a and b != b
                rank += a > b or a == a and b != b or same and other < e
            if rank < K:
                chosen[t, rank] = e
        total = np.float32(0)
        for k in range(K):
            weights[t, k] = np.exp(logits[t, chosen[t, k]] - logits[t, chosen[t, 0]])
            total += weights[t, k]
        for k in range(K):
            weights[t, k] /= total
    return chosen, weights


# ---- Attention ------------------------------------------------------------------------------------------------------

KEYS, QUERIES = 32, 4  # keys a step, two vectors; queries that share what is widened for it


@jit
def exp(x):
    """e^x for 16 numbers up to 0, to 2e-7 of each; 0 below -87.7, where e^x leaves float32's normal range.

    x = n ln 2 + r, |r| <= ln 2 / 2: so 2^n times a polynomial in r (Cephes' expf). ln 2 in two parts keeps r exact.
    """
    x = larger(x, splat_f32x16(np.float32(-88)))  # n = -127
    n = to_whole(times(x, splat_f32x16(np.float32(1.44269504))))
    r = fma(n, splat_f32x16(np.float32(2.12194440e-4)), fma(n, splat_f32x16(np.float32(-0.693359375)), x))
    y = fma(splat_f32x16(np.float32(1.9875691500e-4)), r, splat_f32x16(np.float32(1.3981999507e-3)))
    y = fma(y, r, splat_f32x16(np.float32(8.3334519073e-3)))
    y = fma(y, r, splat_f32x16(np.float32(4.1665795894e-2)))
    y = fma(y, r, splat_f32x16(np.float32(1.6666665459e-1)))
    y = fma(y, r, splat_f32x16(np.float32(5.0000001201e-1)))
    y = fma(y, times(r, r), add(r, splat_f32x16(np.float32(1))))
    return times(y, power_of_two(n))


@jit
def widen_step(x, at, n, D, P, rows):
    """rows, flat [KEYS, P]: the first n = n rows of D numbers that lie at x's element `at`, in float32; D <= P."""
    whole = D // 16 * 16
    for s in range(n):
        for d in range(0, whole, 16):
            store(rows, s * P + d, load_widened(x, at + s * D + d))
        for d in range(whole, D):
            rows[s * P + d] = load_one_widened(x, at + s * D + d)


@jit
def widen_columns(x, at, n, D, columns, tile):
    """tile, flat [D, 16]: the same of up to sixteen rows, side by side."""
    L = 16 // x.itemsize  # numbers that `transpose` takes of a row
    if n < 16 or D % L:
        for s in range(n):
            for d in range(D):
                tile[16 * d + s] = load_one_widened(x, at + s * D + d)
        return
    for first in range(0, D, L):
        transpose(x, at + first, D, columns)
        for d in range(L):
            store(tile, 16 * (first + d), load_widened(columns, 16 * d))


@inline_jit
def fetch(k, v, first, last):
    """Asks for elements first to last - 1 of both, a cache line of 64 bytes at a time."""
    for i in range(first, last, 64 // k.itemsize):
        prefetch(k, i)
        prefetch(v, i)


@jit
def weigh(queries, row, keys, seen, P, p, shrink, peak, total):
    """p [4, KEYS] = e^(score - peak) of rows `row` to row + 3 with a step's keys, of which row + i sees keys seen[i, 0]
    to seen[i, 1] - 1. Where the peak rises, what was summed so far is to be multiplied by shrink [4]."""
    q = row * P
    for half in range(0, KEYS, 16):
        a, b, c, d = four_by_sixteen(queries, q, q + P, q + 2 * P, q + 3 * P, P, keys, half * P, 16)
        store(p, half, a)
        store(p, half + KEYS, b)
        store(p, half + 2 * KEYS, c)
        store(p, half + 3 * KEYS, d)
    for i in range(4):
        first, last, at = seen[i, 0], seen[i, 1], i * KEYS
        p[at : at + first] = -np.inf
        p[at + last : at + KEYS] = -np.inf
        left, right, shrink[i] = zeros_f32x16(), zeros_f32x16(), 1
        if first < last:
            left, right = load_f32x16(p, at), load_f32x16(p, at + 16)
            new = max(peak[row + i], largest_lane(larger(left, right)))
            if new > peak[row + i]:
                shrink[i] = np.exp(peak[row + i] - new)
            left, right = exp(add(left, splat_f32x16(-new))), exp(add(right, splat_f32x16(-new)))
            peak[row + i], total[row + i] = new, total[row + i] * shrink[i] + sum_lanes(add(left, right))
        store(p, at, left)
        store(p, at + 16, right)


@jit
def gather(p, shrink, values, row, P, sums):
    """Rows `row` to row + 3 of sums [.., P], shrunk, and to them p [4, KEYS] @ values [KEYS, P]."""
    for first in range(0, P, 16):
        at = row * P + first
        a, b, c, d = four_by_sixteen(p, 0, KEYS, 2 * KEYS, 3 * KEYS, KEYS, values, first, P)
        store(sums, at, fma(load_f32x16(sums, at), splat_f32x16(shrink[0]), a))
        store(sums, at + P, fma(load_f32x16(sums, at + P), splat_f32x16(shrink[1]), b))
        store(sums, at + 2 * P, fma(load_f32x16(sums, at + 2 * P), splat_f32x16(shrink[2]), c))
        store(sums, at + 3 * P, fma(load_f32x16(sums, at + 3 * P), splat_f32x16(shrink[3]), d))


@jit
def attend_some(q, k, v, sinks, window, out, t, g):
    """Rows of `out` for the queries t to t + QUERIES - 1 (those there are) of the heads that share key/value head g.

    Online softmax (arXiv 1805.02867): one pass over the keys with a running peak, total and weighted sum of values. The
    sink is where the pass begins: a first key whose logit is known and whose value is zero. Each step's keys and values
    are widened once for all R heads of all queries. A head is padded to a multiple of 16 with zeros, which change
    neither products nor sums, and rows to one of 4.
    """
    T, H, D = q.shape
    G, S, _ = k.shape
    R, P, stride = H // G, (D + 15) // 16 * 16, k.strides[0] // k.itemsize
    scale = np.float32(1 / math.sqrt(D))
    rows = min(QUERIES, T - t) * R
    padded = (rows + 3) // 4 * 4
    queries, sums = np.zeros(padded * P, np.float32), np.zeros(padded * P, np.float32)
    peak, total, seen = np.zeros(padded, np.float32), np.ones(padded, np.float32), np.empty((4, 2), np.int64)
    keys, values = np.zeros(KEYS * P, np.float32), np.zeros(KEYS * P, np.float32)
    p, shrink, columns = np.empty(4 * KEYS, np.float32), np.empty(4, np.float32), np.empty(16 * 8, k.dtype)
    for row in range(rows):
        peak[row] = widen(sinks[g * R + row % R])
        for d in range(D):
            queries[row * P + d] = q[t + row // R, g * R + row % R, d] * scale
    begin, end = max(0, S - T + t - window + 1), S - T + t + rows // R
    for first in range(begin, end, KEYS):
        n, at = min(KEYS, end - first), g * stride + first * D
        for half in range(0, n, 16):
            widen_columns(k, at + half * D, min(16, n - half), D, columns, keys[half * P :])
        widen_step(v, at, n, D, P, values)
        for row in range(0, padded, 4):
            # Meanwhile the next step's, a part at a time: all at once they would have to be waited for.
            ahead, part = at + (KEYS + KEYS * row // padded) * D, KEYS * D * 2 // padded
            fetch(k, v, ahead, ahead + part)
            for i in range(4):
                position = S - T + t + (row + i) // R
                seen[i, 0] = min(max(0, position - window + 1 - first), KEYS)
                seen[i, 1] = min(n, position + 1 - first) if row + i < rows else 0
                if seen[i, 0] >= seen[i, 1]:
                    seen[i, 0], seen[i, 1] = KEYS, KEYS
            weigh(queries, row, keys, seen, P, p, shrink, peak, total)
            fetch(k, v, ahead + part, ahead + 2 * part)
            gather(p, shrink, values, row, P, sums)
    for row in range(rows):
        for d in range(D):
            out[t + row // R, g * R + row % R, d] = sums[row * P + d] / total[row]


@parallel_jit
def attend(q, k, v, sinks, window, out):
    """All queries and heads, a few at a time; each thread takes its share."""
    T, G = len(q), len(k)
    for task in prange((T + QUERIES - 1) // QUERIES * G):
        attend_some(q, k, v, sinks, window, out, task // G * QUERIES, task % G)


def attention(q, k, v, sinks, window):
    """The last T of S positions attend -> float32 [T, H, D]; q [T, H, D], k, v [G, S, D]. See gptoss.attention.

    k and v may be the filled parts of longer buffers: a head's keys lie one after the other, heads any stride apart.
    """
    packed = (k.shape[2] * k.itemsize, k.itemsize)
    if k.strides[1:] != packed or v.strides != k.strides:
        k, v = np.ascontiguousarray(k), np.ascontiguousarray(v)
    out = np.empty_like(q)
    attend(q, k, v, sinks, window, out)
    return out
