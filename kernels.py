"""The operations of a layer in Numba: the fast twins of those of the same names in gptoss.py, and in the same order.

This file knows arrays, not models. Three operations take nearly all of the time: `linear` with dense weights (bf16 as
published, or int8), `attention`, and `experts` with MXFP4 weights (whose products are in mxfp4.py). A product with
weights has two regimes. For few tokens (decoding) a weight is used a few times, so the speed is that of the memory: it
is streamed once, as it is stored, and converted in registers. For many tokens (a prompt) it is that of arithmetic: some
rows of weights are converted at a time, into a tile that stays in a cache or in registers, and meet many tokens there.

    T  tokens in this call          N  inputs of a row, M  rows      E  experts, K of them for a token
    S  keys a call can see          F  intermediate_size             J  pairs of token and expert, T * K
    H  query heads                  D  head_dim                      B  blocks of 32 numbers in a row
    G  key/value heads              P  D, up to a multiple of 16     R  query heads for a key/value head, H/G
"""

import math

import numba
import numpy as np
from numba import prange

import simd
from checkpoint import MXFP4, Adapted, Int8, bf16_to_float32, part
from compiled import in_turn, inline_jit, jit, parallel_jit
from mxfp4 import AHEAD, bounded, multiply_mxfp4, quantize_activations, stream_mxfp4, swiglu
from simd import to_float32

NO_SCALES = np.empty((0, 0), np.uint16)  # those of weights that have none
FEW = 16  # tokens for which dense weights are streamed; for more they are converted in tiles (measured, as the next)
FEW_MXFP4 = 5  # the same for packed weights, in tokens of an expert, on average over the experts in use
KEYS, QUERIES = 32, 4  # keys that attention takes at a time (two vectors), and queries that share their conversion


# ---- rms_norm -------------------------------------------------------------------------------------------------------
# NumPy takes several calls for rms_norm, rotate, store_kv, route. In a model each costs four times what it does alone.

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
            y[t, n] = x[t, n] / rms * weight[n]
    return y


# ---- linear ---------------------------------------------------------------------------------------------------------

@parallel_jit
def stream_rows(x, weight, y):
    """y [T, M] = x [T, N] @ weight [M, N]^T. Numba makes vector code of this plain loop by itself."""
    T, N = x.shape
    for m in prange(weight.shape[0]):
        for t in range(T):  # the row stays in the level-1 cache
            total = np.float32(0)
            for n in range(N):
                total += to_float32(weight[m, n]) * x[t, n]
            y[t, m] = total


@jit
def add_four_rows(x, t, weight, n, first, last, y):
    """y[t, first:last] += x[t, n : n + 4] @ weight[n : n + 4, first:last]."""
    a, b, c, d = x[t, n], x[t, n + 1], x[t, n + 2], x[t, n + 3]
    p, q, r, s = weight[n, first:last], weight[n + 1, first:last], weight[n + 2, first:last], weight[n + 3, first:last]
    out = y[t, first:last]
    for m in range(len(out)):
        out[m] += a * to_float32(p[m]) + b * to_float32(q[m]) + c * to_float32(r[m]) + d * to_float32(s[m])


@parallel_jit
def stream_columns(workers, x, weight, y):
    """y [T, M] = x [T, N] @ weight [N, M]: unpacked experts lie this way. A worker has its share of the M columns. Four
    rows are added to y at a time, so that y is read and written a quarter as often."""
    (T, N), M = x.shape, y.shape[1]
    for worker in prange(workers):
        first, last = M * worker // workers, M * (worker + 1) // workers
        y[:, first:last] = 0
        for n in range(0, N // 4 * 4, 4):
            for t in range(T):  # the rows stay in the level-1 cache
                add_four_rows(x, t, weight, n, first, last, y)
        for n in range(N // 4 * 4, N):
            for t in range(T):
                for m in range(first, last):
                    y[t, m] += x[t, n] * to_float32(weight[n, m])


@parallel_jit
def stream_int8(x, values, scales, y):
    """y [T, M] = x [T, N] @ (values [M, N] * scales [M, B])^T; the last block may be short."""
    T, N = x.shape
    whole = N // 32
    flat_x, flat_values = x.reshape(-1), values.reshape(-1)
    for m in prange(values.shape[0]):
        for t in range(T):
            sums = simd.zeros_f32x16()
            for b in range(whole):
                simd.prefetch(flat_values, m * N + 32 * b + AHEAD)
                w, at = simd.load_i8x32(flat_values, m * N + 32 * b), t * N + 32 * b
                block = simd.mul(simd.low_half_to_float32(w), simd.load_f32x16(flat_x, at))
                block = simd.fma(simd.high_half_to_float32(w), simd.load_f32x16(flat_x, at + 16), block)
                sums = simd.fma(block, simd.splat_f32x16(to_float32(scales[m, b])), sums)
            total = simd.reduce_add(sums)
            for n in range(32 * whole, N):
                total += np.float32(values[m, n]) * to_float32(scales[m, whole]) * x[t, n]
            y[t, m] = total


@jit
def convert_rows(weight, scales, row, tile):
    """tile [N, 16], flat: rows `row` to row + 15 side by side in float32, as far as there are so many."""
    for n in range(weight.shape[1]):
        column, out = weight[row : row + 16, n], tile[16 * n : 16 * n + 16]
        for r in range(len(column)):
            if len(scales):
                out[r] = np.float32(column[r]) * to_float32(scales[row + r, n // 32])
            else:
                out[r] = to_float32(column[r])


@inline_jit
def four_by_sixteen(x, a, b, c, d, count, tile, at, stride):
    """Four vectors of `count` numbers, which begin at x's elements a, b, c and d, times a tile [count, 16] -> four
    float32[16]. Both arrays are flat; the tile begins at `at`, and its rows are `stride` apart. The four sums stay in
    registers, and each load of the tile serves all of them."""
    sum_a, sum_b, sum_c, sum_d = simd.zeros_f32x16(), simd.zeros_f32x16(), simd.zeros_f32x16(), simd.zeros_f32x16()
    for n in range(count):
        w = simd.load_f32x16(tile, at + stride * n)
        sum_a = simd.fma(w, simd.load_splat_f32x16(x, a + n), sum_a)
        sum_b = simd.fma(w, simd.load_splat_f32x16(x, b + n), sum_b)
        sum_c = simd.fma(w, simd.load_splat_f32x16(x, c + n), sum_c)
        sum_d = simd.fma(w, simd.load_splat_f32x16(x, d + n), sum_d)
    return sum_a, sum_b, sum_c, sum_d


@inline_jit
def store_four(array, at, stride, vectors):
    for i in range(4):
        simd.store(array, at + i * stride, vectors[i])


@parallel_jit
def multiply(workers, x, weight, scales, y):
    """y [T, M] = x [T, N] @ weight^T. A worker converts every `workers`-th sixteen rows, for its level-2 cache."""
    (T, M), N = y.shape, x.shape[1]
    x = x.reshape(-1)
    for worker in prange(workers):
        tile, out = np.empty(16 * N, np.float32), np.empty(64, np.float32)
        for row in range(16 * worker, M, 16 * workers):
            convert_rows(weight, scales, row, tile)
            for t in range(0, T, 4):
                a, b, c, d = N * t, N * min(t + 1, T - 1), N * min(t + 2, T - 1), N * min(t + 3, T - 1)
                store_four(out, 0, 16, four_by_sixteen(x, a, b, c, d, N, tile, 0, 16))
                for i in range(min(4, T - t)):
                    for r in range(min(16, M - row)):
                        y[t + i, row + r] = out[16 * i + r]


@jit
def add_bias(y, bias):
    """y [T, M] += bias [M], and nan for what is beyond LARGEST. See gptoss.linear."""
    for t in range(len(y)):
        for m in range(len(bias)):
            y[t, m] = bounded(y[t, m] + bias[m])


@in_turn
def linear(x, weight, bias=None):
    """x [T, N] @ weight [M, N]^T + bias [M] -> float32 [T, M]; weight in any form that gptoss.linear takes."""
    if isinstance(weight, Adapted):
        return linear(x, weight.weight, bias) + x @ weight.A.T @ weight.B.T
    x, workers = np.ascontiguousarray(x), numba.get_num_threads()
    y = np.empty((len(x), len(weight[0] if isinstance(weight, tuple) else weight)), np.float32)
    bias = np.zeros(y.shape[1], np.float32) if bias is None else bf16_to_float32(bias)
    weight, scales = weight if isinstance(weight, Int8) else (weight, NO_SCALES)
    if isinstance(weight, MXFP4):  # of one expert
        tokens, starts = np.arange(len(x)), np.array([0, len(x)])
        streamed = len(x) <= FEW_MXFP4 and x.shape[1] % 64 == 0
        expert_linear(streamed, workers, x, tokens, starts, weight.blocks[None], weight.scales[None], bias[None], False,
                      np.float32(0), y)
    else:
        weight = weight.view(np.int16) if weight.dtype == np.float16 else weight  # its bits: see simd.to_float32
        if len(x) > FEW:
            multiply(workers, x, weight, scales, y)
        elif scales is not NO_SCALES:
            stream_int8(x, weight, scales, y)
        elif weight.flags.c_contiguous:
            stream_rows(x, weight, y)
        else:
            stream_columns(workers, x, weight.T, y)
        add_bias(y, bias)
    return y


# ---- rotate, store_kv -----------------------------------------------------------------------------------------------

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


@jit
def store_kv_bf16(kv, k, v):
    _, G, T, D = kv.shape
    for i in range(2):
        for t in range(T):
            for g in range(G):
                for d in range(D):
                    bits = np.float32(k[t, g, d] if i == 0 else v[t, g, d]).view(np.uint32)
                    nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))  # ties to even
                    kv[i, g, t, d] = nearest >> np.uint32(16)


def store_kv(kv, k, v):
    """kv [2, G, T, D], a part of the cache, becomes k and v [T, G, D]. See gptoss.store_kv."""
    if kv.dtype == np.uint16:
        store_kv_bf16(kv, k, v)
    else:
        kv[0], kv[1] = k.swapaxes(0, 1), v.swapaxes(0, 1)


# ---- attention ------------------------------------------------------------------------------------------------------

@jit
def exp(x):
    """e^x for 16 numbers up to 0, to 2e-7 of each; 0 below -87.68 (float32's normal numbers end at e^-87.34).

    x = n ln 2 + r, |r| <= ln 2 / 2: so 2^n times a polynomial in r (Cephes' expf). ln 2 in two parts keeps r exact."""
    x = simd.max(x, simd.splat_f32x16(np.float32(-88)))  # n = -127
    n = simd.round(simd.mul(x, simd.splat_f32x16(np.float32(1.44269504))))
    r = simd.fma(n, simd.splat_f32x16(np.float32(-0.693359375)), x)
    r = simd.fma(n, simd.splat_f32x16(np.float32(2.12194440e-4)), r)
    y = simd.splat_f32x16(np.float32(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = simd.fma(y, r, simd.splat_f32x16(np.float32(c)))
    y = simd.fma(y, simd.mul(r, r), simd.add(r, simd.splat_f32x16(np.float32(1))))
    return simd.mul(y, simd.power_of_two(n))


@jit
def convert_values(x, at, n, D, P, rows):
    """The first n rows of rows [KEYS, P], flat, in float32: the n vectors of D numbers from x's element `at` on."""
    for s in range(n):
        for d in range(0, D - 15, 16):
            simd.store(rows, s * P + d, simd.load_as_f32x16(x, at + s * D + d))
        for d in range(D // 16 * 16, D):
            rows[s * P + d] = simd.load_as_float32(x, at + s * D + d)


@jit
def convert_keys(x, at, n, D, columns, tile):
    """The first n columns of tile [D, 16], flat, in float32: n <= 16 vectors of D numbers, from x's element `at` on."""
    L = 16 // x.itemsize  # numbers that `transpose` takes of a vector
    if n < 16 or D % L:
        for s in range(n):
            for d in range(D):
                tile[16 * d + s] = simd.load_as_float32(x, at + s * D + d)
        return
    for first in range(0, D, L):
        simd.transpose(x, at + first, D, columns)
        for d in range(L):
            simd.store(tile, 16 * (first + d), simd.load_as_f32x16(columns, 16 * d))


@inline_jit
def prefetch_kv(k, v, first, last):
    """Asks for elements first to last - 1 of both, a cache line of 64 bytes at a time."""
    for i in range(first, last, 64 // k.itemsize):
        simd.prefetch(k, i)
        simd.prefetch(v, i)


@jit
def softmax_step(queries, row, keys, seen, P, p, shrink, peak, total):
    """p [4, KEYS] = e^(score - peak) of rows `row` to row + 3 with a step's keys, of which row + i sees keys seen[i, 0]
    to seen[i, 1] - 1. Where the peak rises, what was summed so far has to be multiplied by shrink [4]."""
    q = row * P
    for half in range(0, KEYS, 16):
        scores = four_by_sixteen(queries, q, q + P, q + 2 * P, q + 3 * P, P, keys, half * P, 16)
        store_four(p, half, KEYS, scores)
    for i in range(4):
        first, last, at = seen[i, 0], seen[i, 1], i * KEYS
        p[at : at + first] = -np.inf
        p[at + last : at + KEYS] = -np.inf
        left, right, shrink[i] = simd.zeros_f32x16(), simd.zeros_f32x16(), 1
        if first < last:
            left, right = simd.load_f32x16(p, at), simd.load_f32x16(p, at + 16)
            new = max(peak[row + i], simd.reduce_max(simd.max(left, right)))
            if new > peak[row + i]:
                shrink[i] = np.exp(peak[row + i] - new)
            left, right = exp(simd.add(left, simd.splat_f32x16(-new))), exp(simd.add(right, simd.splat_f32x16(-new)))
            peak[row + i] = new
            total[row + i] = total[row + i] * shrink[i] + simd.reduce_add(simd.add(left, right))
        simd.store(p, at, left)
        simd.store(p, at + 16, right)


@jit
def accumulate_values(p, shrink, values, row, P, sums):
    """Rows `row` to row + 3 of sums [.., P] become sums * shrink [4] + p [4, KEYS] @ values [KEYS, P]."""
    for first in range(0, P, 16):
        at = row * P + first
        a, b, c, d = four_by_sixteen(p, 0, KEYS, 2 * KEYS, 3 * KEYS, KEYS, values, first, P)
        a = simd.fma(simd.load_f32x16(sums, at), simd.splat_f32x16(shrink[0]), a)
        b = simd.fma(simd.load_f32x16(sums, at + P), simd.splat_f32x16(shrink[1]), b)
        c = simd.fma(simd.load_f32x16(sums, at + 2 * P), simd.splat_f32x16(shrink[2]), c)
        d = simd.fma(simd.load_f32x16(sums, at + 3 * P), simd.splat_f32x16(shrink[3]), d)
        store_four(sums, at, P, (a, b, c, d))


@jit
def attend_some(q, k, v, sinks, window, out, t, g):
    """Rows of `out` for the queries t to t + QUERIES - 1 (those there are) of the R heads that share key/value head g.

    Online softmax (arXiv 1805.02867): one pass over the keys with a running peak, total and weighted sum of values. The
    sink is where the pass begins: a first key whose logit is known and whose value is zero. Each step's keys and values
    are converted once for all R heads of all queries. Heads are padded to P numbers with zeros, which change neither
    products nor sums, and rows to a multiple of 4."""
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
        peak[row] = sinks[g * R + row % R]
        total[row] += max(peak[row], 0) * 0  # 1; nan if the sink is inf, as e^(inf - inf) is
        for d in range(D):
            queries[row * P + d] = q[t + row // R, g * R + row % R, d] * scale
    begin, end = max(0, S - T + t - window + 1), S - T + t + rows // R
    for first in range(begin, end, KEYS):
        n, at = min(KEYS, end - first), g * stride + first * D
        for half in range(0, n, 16):
            convert_keys(k, at + half * D, min(16, n - half), D, columns, keys[half * P :])
        convert_values(v, at, n, D, P, values)
        for row in range(0, padded, 4):
            # Asks for a part of the next step's keys and values. A core would have to wait if asked for all at once.
            ahead, part = at + (KEYS + KEYS * row // padded) * D, KEYS * D * 2 // padded
            prefetch_kv(k, v, ahead, ahead + part)
            for i in range(4):
                position = S - T + t + (row + i) // R
                seen[i, 0] = min(max(0, position - window + 1 - first), KEYS)
                seen[i, 1] = min(n, position + 1 - first) if row + i < rows else 0
                if seen[i, 0] >= seen[i, 1]:
                    seen[i, 0], seen[i, 1] = KEYS, KEYS
            softmax_step(queries, row, keys, seen, P, p, shrink, peak, total)
            prefetch_kv(k, v, ahead + part, ahead + 2 * part)
            accumulate_values(p, shrink, values, row, P, sums)
    for row in range(rows):
        for d in range(D):
            out[t + row // R, g * R + row % R, d] = sums[row * P + d] / total[row]


@parallel_jit
def attend(q, k, v, sinks, window, out):
    """All queries and heads, a few at a time; each thread takes its share."""
    for task in prange((len(q) + QUERIES - 1) // QUERIES * len(k)):
        attend_some(q, k, v, sinks, window, out, task // len(k) * QUERIES, task % len(k))


@in_turn
def attention(q, k, v, sinks, window):
    """The last T of S positions attend -> float32 [T, H, D]; q [T, H, D], k, v [G, S, D]. See gptoss.attention.

    k and v may be parts of longer buffers: a head's keys lie one after the other, heads any stride apart."""
    if k.strides[1:] != (k.shape[2] * k.itemsize, k.itemsize) or v.strides != k.strides:
        k, v = np.ascontiguousarray(k), np.ascontiguousarray(v)
    out = np.empty_like(q)
    attend(q, k, v, bf16_to_float32(sinks), window, out)
    return out


# ---- route, experts -------------------------------------------------------------------------------------------------

@jit
def route(logits, K):
    """The K best of E experts for each token: chosen int64 [T, K], weights float32 [T, K]. See gptoss.route.

    An expert's rank is how many come before it: the greater ones, of equals the earlier ones, and nan comes last."""
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
        for i in range(K):
            weights[t, i] = np.exp(logits[t, chosen[t, i]] - logits[t, chosen[t, 0]])
            total += weights[t, i]
        for i in range(K):
            weights[t, i] /= total
    return chosen, weights


@jit
def group(chosen, E):
    """Sorts the J pairs (token, expert) of chosen [T, K] by expert -> tokens [J], the token of each pair in that order;
    places [T, K], where each stands there; starts [E + 1]: e has pairs starts[e] to starts[e + 1] - 1; experts used."""
    flat = chosen.flatten()
    order = np.argsort(flat, kind="mergesort")  # pairs of one expert keep their order
    places = np.empty(len(flat), np.int64)
    places[order] = np.arange(len(flat))
    starts = np.searchsorted(flat[order], np.arange(E + 1))
    return order // chosen.shape[1], places.reshape(chosen.shape), starts, np.count_nonzero(np.diff(starts))


@jit
def expert_linear(streamed, workers, x, tokens, starts, blocks, scales, bias, gated, limit, y):
    """y [J, ..]: x of the tokens through the linear layer of their expert, and SwiGLU if gated. See stream_mxfp4."""
    values, compensation, x_scales = quantize_activations(x)
    if streamed:
        stream_mxfp4(workers, values, compensation, x_scales, tokens, starts, blocks, scales, bias, gated, limit, y)
    else:
        multiply_mxfp4(workers, values, compensation, x_scales, tokens, starts, blocks, scales, bias, gated, limit, y)


@jit
def moe(workers, few, x, chosen, weights, gate_up, gate_up_scales, gate_up_bias, down, down_scales, down_bias, limit):
    """`experts` with arrays as arguments. One function, so that Python makes one call and not one for each step."""
    (T, N), (E, _, B, _), J = x.shape, down.shape, chosen.size
    tokens, places, starts, used = group(chosen, E)
    h, results, y = np.empty((J, 32 * B), np.float32), np.empty((J, N), np.float32), np.zeros((T, N), np.float32)
    streamed = J <= few * used and N % 64 == 0 and B % 2 == 0  # dot_mxfp4 takes blocks in pairs
    gated = gate_up.shape[1] == 2 * h.shape[1]  # always so; but for a literal True Numba would compile all twice
    expert_linear(streamed, workers, x, tokens, starts, gate_up, gate_up_scales, gate_up_bias, gated, limit, h)
    expert_linear(streamed, workers, h, np.arange(J), starts, down, down_scales, down_bias, not gated, limit, results)
    for t in range(T):  # in one thread: few additions beside those of the products
        for i in range(len(weights[t])):
            for n in range(N):
                y[t, n] += weights[t, i] * results[places[t, i], n]
    return y


@in_turn
def experts(x, chosen, weights, layer, limit):
    """Mixture of experts: x [T, N] -> [T, N]; chosen, weights [T, K]. See gptoss.experts."""
    limit = np.float32(limit)
    if isinstance(layer.gate_up, MXFP4) and isinstance(layer.down, MXFP4):
        gate_up = *layer.gate_up, bf16_to_float32(layer.gate_up_bias)
        down = *layer.down, bf16_to_float32(layer.down_bias)
        return moe(numba.get_num_threads(), FEW_MXFP4, x, chosen, weights, *gate_up, *down, limit)
    y = np.zeros_like(x)  # unpacked or adapted ones: one after the other, as in gptoss.experts
    for e in np.unique(chosen):
        t, slot = np.nonzero(chosen == e)
        gate_up = linear(x[t], part(layer.gate_up, e), layer.gate_up_bias[e])  # [tokens of e, 2F]
        h = swiglu(gate_up[:, 0::2], gate_up[:, 1::2], limit)
        y[t] += weights[t, slot, None] * linear(h, part(layer.down, e), layer.down_bias[e])
    return y
