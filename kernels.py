"""The three operations that take nearly all the time, in Numba: each the fast twin of one in gptoss.py.

    linear      dense weights (bf16 as published, or int8)       x [T, N] -> [T, M]
    attention   sinks, sliding window, online softmax            q [T, H, D] -> [T, H, D]
    experts     MXFP4 weights, straight from their packed bytes  x [T, N] -> [T, N]

This file knows arrays, not models. Letters as in gptoss.py. There are two regimes. For a few tokens (decoding) a weight
is used once or twice, so speed is memory bandwidth: stream each weight once, packed, and convert it in registers. For
many tokens (a prompt) it is arithmetic: some rows of weights are widened to float32 in cache and meet all tokens there.
"""

import math  # noqa: I001

import numba
import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from simd import (
    OFFSET, add, block_scales, dot, first_to_float, fma, high_nibbles, larger, largest_lane, last_to_float, load_f32x8,
    load_f32x16, load_i8x32, load_one_widened, load_pair_f32x8, load_pair_u8x8, load_splat, load_u8x8, load_u8x32,
    load_widened, look_up, look_up_offset, low_nibbles, power_of_two, prefetch, splat, spread_0_1, spread_2_3,
    spread_4_5, spread_6_7, store, sum_lanes, times, times_256, to_float, to_whole, transpose, zeros_f32x8,
    zeros_f32x16, zeros_i32x8,
)

FEW = 16  # a weight that is used for up to so many tokens is streamed for each; for more it is widened once
AHEAD = 2048  # bytes of packed weights between what is computed and what is fetched
SUMS = {"reassoc", "contract", "nsz"}  # sums in any order, so that their loops become vector code; inf and nan stay

# Compiled code is kept on disk beside this file (__pycache__), so only the first run compiles. Numba compiles again
# when this file changes, but knows nothing of simd.py: after editing that one, delete __pycache__.
jit = njit(cache=True, nogil=True, fastmath=SUMS)
inline_jit = njit(cache=True, nogil=True, fastmath=SUMS, forceinline=True)  # what a call would cost is felt
parallel_jit = njit(cache=True, parallel=True, fastmath=SUMS)


# ---- Number formats -------------------------------------------------------------------------------------------------


def widen(x):
    """One bf16 bit pattern (uint16) -> float32, exactly; a float32 passes through."""


@overload(widen, inline="always")
def widen_compiled(x):
    if isinstance(x, types.Float):
        return lambda x: x
    return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)


@jit
def e8m0(byte):
    """2^(byte - 127) as float32: the byte is the exponent. 0 is the subnormal 2^-127, 255 is nan."""
    byte = np.uint32(byte)
    bits = max(byte << np.uint32(23), np.uint32(1 << 22)) | ((byte + np.uint32(1)) >> np.uint32(8))
    return np.uint32(bits).view(np.float32)


@jit
def place(i):
    """Where element i of a row stands once unpacked: the 32 even ones of each two blocks, then their odd ones.

    Packed bytes hold an even element low and an odd one high. Unpacked two blocks at a time they come out in this
    order, and it is cheaper to bring x into it once than each row of the weights out of it.
    """
    return i // 64 * 64 + i % 2 * 32 + i % 64 // 2


@jit
def round_to_int16(x, rounded, offsets, scales):
    """x [J, N] -> integers n of 16 bits, times scales [J, N/32]; in the form that `dot_mxfp4` wants.

    rounded int8 [J, 2, N]: n = 256 high + low in the order of `place`, a row's high bytes and then its low ones.
    offsets float32 [J, N/32]: what each of a block's four sums in `two_blocks` has too much, on average. 16 bits are
    2e-5 off, where the bf16 of the official code is 4e-3 off. The half in the scale undoes the doubling in
    `look_up_offset`.
    """
    J, N = x.shape
    most = np.float32(127 * 256 + 127)
    for j in range(J):
        for b in range(N // 32):
            peak, broken, total = np.float32(0), np.float32(0), 0
            for i in range(32 * b, 32 * b + 32):
                peak = max(peak, abs(x[j, i]))
                broken += x[j, i] * np.float32(0)  # nan if any is inf or nan, which max and integers would hide
            steps = most / peak if peak > np.float32(1e-34) else np.float32(0)  # below, it would be infinite
            for i in range(32 * b, 32 * b + 32):
                n = np.int32(np.rint(x[j, i] * steps))
                high = (n + 128) >> 8
                rounded[j, 0, place(i)], rounded[j, 1, place(i)] = high, n - 256 * high
                total += n
            offsets[j, b], scales[j, b] = -OFFSET / 4 * total, peak / most * np.float32(0.5) + broken


def rounded_to_int16(x):
    J, N = x.shape
    arrays = np.empty((J, 2, N), np.int8), np.empty((J, N // 32), np.float32), np.empty((J, N // 32), np.float32)
    round_to_int16(x, *arrays)
    return arrays


# ---- A few tokens: stream the weights -------------------------------------------------------------------------------


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
                w, at = load_i8x32(flat_values, m * N + 32 * b), t * N + 32 * b
                block = times(first_to_float(w), load_f32x16(flat_x, at))
                block = fma(last_to_float(w), load_f32x16(flat_x, at + 16), block)
                lanes = fma(block, splat(scales[m, b]), lanes)
            total = sum_lanes(lanes)
            for n in range(32 * whole, N):
                total += np.float32(values[m, n]) * scales[m, whole] * x[t, n]
            y[t, m] = total if bias is None else total + widen(bias[m])


@inline_jit
def two_blocks(blocks, w_at, x, high, low):
    """Packed blocks at w_at times the x whose bytes are at high and low -> float32[8]: four sums of the one block, four
    of the other. Exact.

    Processors multiply bytes fastest, those of one factor with a sign and those of the other without. So x is 256 high
    + low, and weights are doubled and 12 is added to them: the sums of a block have 12 times its x too much.
    """
    packed = load_u8x32(blocks, w_at)
    even, odd = look_up_offset(low_nibbles(packed)), look_up_offset(high_nibbles(packed))
    sums = times_256(dot(zeros_i32x8(), even, load_i8x32(x, high), odd, load_i8x32(x, high + 32)))
    return to_float(dot(sums, even, load_i8x32(x, low), odd, load_i8x32(x, low + 32)))


@inline_jit
def dot_mxfp4(blocks, scales, row, x, offsets, x_scales, j, B):
    """Row `row` of packed weights times row j of x (see round_to_int16), both of B blocks, an even number; all flat.

    Most of a decoded token's time is spent here. The blocks' sums are scaled and added to 2 x 8 running sums, which
    only the end of the row adds up. Eight blocks at a time, because eight scales cost no more than one.
    """
    total, other, quarter = zeros_f32x8(), zeros_f32x8(), zeros_f32x8()  # an addition waits for the one before
    w, high, low, s = 16 * row * B, 64 * j * B, 64 * j * B + 32 * B, j * B
    for b in range(0, B // 8 * 8, 8):
        prefetch(blocks, w + AHEAD)  # the processor fetches ahead by itself, but not far enough
        prefetch(blocks, w + AHEAD + 64)
        scale = block_scales(load_u8x8(scales, row * B + b), load_f32x8(x_scales, s + b))
        quarter = fma(scale, load_f32x8(offsets, s + b), quarter)
        total = fma(two_blocks(blocks, w, x, high, low), spread_0_1(scale), total)
        other = fma(two_blocks(blocks, w + 32, x, high + 64, low + 64), spread_2_3(scale), other)
        total = fma(two_blocks(blocks, w + 64, x, high + 128, low + 128), spread_4_5(scale), total)
        other = fma(two_blocks(blocks, w + 96, x, high + 192, low + 192), spread_6_7(scale), other)
        w, high, low = w + 128, high + 256, low + 256
    for b in range(B // 8 * 8, B, 2):
        scale = block_scales(load_pair_u8x8(scales, row * B + b), load_pair_f32x8(x_scales, s + b))
        sums = add(two_blocks(blocks, w, x, high, low), load_pair_f32x8(offsets, s + b))
        total = fma(sums, scale, total)
        w, high, low = w + 32, high + 64, low + 64
    half = add(quarter, quarter)
    return sum_lanes(add(add(total, other), add(half, half)))


@jit
def swiglu(gate, up, limit):
    gate, up = min(gate, limit), min(max(up, -limit), limit)
    return gate / (np.float32(1) + np.exp(np.float32(-1.702) * gate)) * (up + np.float32(1))


@parallel_jit
def stream_gate_up(workers, x, offsets, x_scales, tokens, groups, blocks, scales, bias, limit, h):
    """h [J, F]: for the pairs (token, expert) of each group, SwiGLU of the expert's rows 2f (gate) and 2f + 1 (up).

    A worker has its share of the rows of every expert, one after the other as they lie in memory.
    """
    F, B = h.shape[1], blocks.shape[2]
    x, offsets, x_scales = x.reshape(-1), offsets.reshape(-1), x_scales.reshape(-1)
    blocks, scales = blocks.reshape(-1), scales.reshape(-1)
    for worker in prange(workers):
        for g in range(len(groups)):
            e, first, last = groups[g]
            for f in range(F * worker // workers, F * (worker + 1) // workers):
                row = e * 2 * F + 2 * f
                for j in range(first, last):  # the rows stay in the level-1 cache
                    gate = dot_mxfp4(blocks, scales, row, x, offsets, x_scales, tokens[j], B) + widen(bias[e, 2 * f])
                    up = dot_mxfp4(blocks, scales, row + 1, x, offsets, x_scales, tokens[j], B)
                    h[j, f] = swiglu(gate, up + widen(bias[e, 2 * f + 1]), limit)


@parallel_jit
def stream_down(workers, h, offsets, h_scales, groups, blocks, scales, down):
    """down [J, N]: the down projections, without their bias."""
    N, B = down.shape[1], blocks.shape[2]
    h, offsets, h_scales = h.reshape(-1), offsets.reshape(-1), h_scales.reshape(-1)
    blocks, scales = blocks.reshape(-1), scales.reshape(-1)
    for worker in prange(workers):
        for g in range(len(groups)):
            e, first, last = groups[g]
            for n in range(N * worker // workers, N * (worker + 1) // workers):
                for j in range(first, last):
                    down[j, n] = dot_mxfp4(blocks, scales, e * N + n, h, offsets, h_scales, j, B)


# ---- Many tokens: widen sixteen rows, multiply them by all tokens ---------------------------------------------------


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
            tile[16 * n + r] = np.float32(values[m, n]) * scales[m, n // 32]


@jit
def widen_mxfp4(blocks, scales, row, tile):
    """The same of packed weights, flat; they have whole sixteens of rows."""
    B, columns = len(tile) // 512, np.empty(256, np.uint8)
    powers = np.empty(16 * B, np.float32)
    for r in range(16):
        for b in range(B):
            powers[16 * b + r] = e8m0(scales[(row + r) * B + b]) * np.float32(0.5)  # undoes the doubling in look_up
    for b in range(B):
        transpose(blocks, 16 * (row * B + b), 16 * B, columns)
        scale = load_f32x16(powers, 16 * b)
        for i in range(0, 16, 2):  # bytes i and i + 1 of all sixteen: elements 2i to 2i + 3
            packed, at = load_u8x32(columns, 16 * i), 512 * b + 32 * i
            even, odd = look_up(low_nibbles(packed)), look_up(high_nibbles(packed))
            store(tile, at, times(first_to_float(even), scale))
            store(tile, at + 16, times(first_to_float(odd), scale))
            store(tile, at + 32, times(last_to_float(even), scale))
            store(tile, at + 48, times(last_to_float(odd), scale))


def widen_rows(weight, scales, row, tile):
    """The one of the three that fits the weight's type."""


@overload(widen_rows)
def widen_rows_compiled(weight, scales, row, tile):
    function = {types.uint16: widen_bf16, types.int8: widen_int8, types.uint8: widen_mxfp4}[weight.dtype]
    return lambda weight, scales, row, tile: function(weight, scales, row, tile)


@inline_jit
def four_by_sixteen(x, a, b, c, d, N, tile, at, stride):
    """Four rows of x, from a, b, c and d on, times a tile [N, 16] -> four float32[16]. Both are flat; the tile begins
    at `at`, its rows are `stride` apart. Four sums stay in registers, and one load of the tile serves all of them.
    """
    A, B, C, D = zeros_f32x16(), zeros_f32x16(), zeros_f32x16(), zeros_f32x16()
    for n in range(N):
        w = load_f32x16(tile, at + stride * n)
        A, B = fma(w, load_splat(x, a + n), A), fma(w, load_splat(x, b + n), B)
        C, D = fma(w, load_splat(x, c + n), C), fma(w, load_splat(x, d + n), D)
    return A, B, C, D


@parallel_jit
def multiply(workers, x, groups, weight, scales, M, y):
    """y [J, M] = x [J, N] @ W^T, for each group (e, first, last) its tokens with rows e M to e M + M - 1 of the weight.

    A worker widens every `workers`-th sixteen rows, into a tile that stays in its level-2 cache with the group's x.
    """
    N = x.shape[1]
    x = x.reshape(-1)
    for worker in prange(workers):
        tile, out = np.empty(16 * N, np.float32), np.empty(64, np.float32)
        for g in range(len(groups)):
            e, first, last = groups[g]
            for row in range(16 * worker, M, 16 * workers):
                widen_rows(weight, scales, e * M + row, tile)
                for t in range(first, last, 4):
                    a, b, c, d = N * t, N * min(t + 1, last - 1), N * min(t + 2, last - 1), N * min(t + 3, last - 1)
                    A, B, C, D = four_by_sixteen(x, a, b, c, d, N, tile, 0, 16)
                    store(out, 0, A)
                    store(out, 16, B)
                    store(out, 32, C)
                    store(out, 48, D)
                    for i in range(min(4, last - t)):
                        for r in range(min(16, M - row)):
                            y[t + i, row + r] = out[16 * i + r]


@parallel_jit
def swiglu_rows(gate_up, bias, groups, limit, h):
    """h [J, F] = SwiGLU of gate_up [J, 2F] + bias [E, 2F] of each group's expert."""
    J, F = h.shape
    for g in prange(len(groups)):
        e, first, last = groups[g]
        for j in range(first, last):
            for f in range(F):
                gate, up = gate_up[j, 2 * f] + widen(bias[e, 2 * f]), gate_up[j, 2 * f + 1] + widen(bias[e, 2 * f + 1])
                h[j, f] = swiglu(gate, up, limit)


# ---- The three operations -------------------------------------------------------------------------------------------

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
    multiply(numba.get_num_threads(), x, np.array([[0, 0, T]]), weight, scales, M, y)
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


@parallel_jit
def combine(down, bias, places, chosen, weights, y):
    """y [T, N]: token t's K results, which stand in rows `places` [T, K] of down [J, N], weighted and summed."""
    T, K = chosen.shape
    for t in prange(T):
        y[t] = 0
        for k in range(K):
            for n in range(y.shape[1]):
                y[t, n] += weights[t, k] * (down[places[t, k], n] + widen(bias[chosen[t, k], n]))


def experts(x, chosen, weights, layer, limit):
    """Mixture of experts: x [T, N] -> [T, N]; chosen, weights [T, K]. See gptoss.experts."""
    N, E, F = x.shape[1], len(layer.gate_up_bias), layer.down.blocks.shape[2] * 32
    workers, limit = numba.get_num_threads(), np.float32(limit)
    tokens, places, groups = group(chosen, E)
    h, down, y = np.empty((chosen.size, F), np.float32), np.empty((chosen.size, N), np.float32), np.empty_like(x)
    if chosen.size <= FEW * len(groups) and N % 64 == F % 64 == 0:  # dot_mxfp4 takes two blocks at a time
        stream_gate_up(workers, *rounded_to_int16(x), tokens, groups, *layer.gate_up, layer.gate_up_bias, limit, h)
        stream_down(workers, *rounded_to_int16(h), groups, *layer.down, down)
    else:
        gate_up = np.empty((chosen.size, 2 * F), np.float32)
        multiply(workers, x[tokens], groups, *flat(layer.gate_up), 2 * F, gate_up)
        swiglu_rows(gate_up, layer.gate_up_bias, groups, limit, h)
        multiply(workers, h, groups, *flat(layer.down), N, down)
    combine(down, layer.down_bias, places, chosen, weights, y)
    return y


def flat(weight):
    return [part.reshape(-1) for part in weight]


# ---- Attention ------------------------------------------------------------------------------------------------------

KEYS, QUERIES = 32, 4  # keys a step, two vectors; queries that share what is widened for it


@jit
def exp(x):
    """e^x for 16 numbers up to 0, to 2e-7 of each; 0 below -87.7, where e^x leaves float32's normal range.

    x = n ln 2 + r, |r| <= ln 2 / 2: so 2^n times a polynomial in r (Cephes' expf). ln 2 in two parts keeps r exact.
    """
    x = larger(x, splat(np.float32(-88)))  # n = -127
    n = to_whole(times(x, splat(np.float32(1.44269504))))
    r = fma(n, splat(np.float32(2.12194440e-4)), fma(n, splat(np.float32(-0.693359375)), x))
    y = fma(splat(np.float32(1.9875691500e-4)), r, splat(np.float32(1.3981999507e-3)))
    y = fma(y, r, splat(np.float32(8.3334519073e-3)))
    y = fma(y, r, splat(np.float32(4.1665795894e-2)))
    y = fma(y, r, splat(np.float32(1.6666665459e-1)))
    y = fma(y, r, splat(np.float32(5.0000001201e-1)))
    y = fma(y, times(r, r), add(r, splat(np.float32(1))))
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
            left, right = exp(add(left, splat(-new))), exp(add(right, splat(-new)))
            peak[row + i], total[row + i] = new, total[row + i] * shrink[i] + sum_lanes(add(left, right))
        store(p, at, left)
        store(p, at + 16, right)


@jit
def gather(p, shrink, values, row, P, sums):
    """Rows `row` to row + 3 of sums [.., P], shrunk, and to them p [4, KEYS] @ values [KEYS, P]."""
    for first in range(0, P, 16):
        at = row * P + first
        a, b, c, d = four_by_sixteen(p, 0, KEYS, 2 * KEYS, 3 * KEYS, KEYS, values, first, P)
        store(sums, at, fma(load_f32x16(sums, at), splat(shrink[0]), a))
        store(sums, at + P, fma(load_f32x16(sums, at + P), splat(shrink[1]), b))
        store(sums, at + 2 * P, fma(load_f32x16(sums, at + 2 * P), splat(shrink[2]), c))
        store(sums, at + 3 * P, fma(load_f32x16(sums, at + 3 * P), splat(shrink[3]), d))


@parallel_jit
def attend(q, k, v, sinks, window, out):
    """Online softmax (arXiv 1805.02867): one pass over the keys with a running peak, total and weighted sum of values.

    The sink is where the pass begins: a first key whose logit is known and whose value is zero. A thread takes a few
    queries of the H/G heads that share a key (R rows a query) and widens each step's keys and values once for all of
    them. A head is padded to a multiple of 16 with zeros, which change neither products nor sums, and rows to one of 4.
    """
    T, H, D = q.shape
    G, S, _ = k.shape
    R, P, stride = H // G, (D + 15) // 16 * 16, k.strides[0] // k.itemsize
    scale = np.float32(1 / math.sqrt(D))
    for task in prange((T + QUERIES - 1) // QUERIES * G):
        t, g = task // G * QUERIES, task % G
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
                        seen[i] = KEYS, KEYS
                weigh(queries, row, keys, seen, P, p, shrink, peak, total)
                fetch(k, v, ahead + part, ahead + 2 * part)
                gather(p, shrink, values, row, P, sums)
        for row in range(rows):
            for d in range(D):
                out[t + row // R, g * R + row % R, d] = sums[row * P + d] / total[row]


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
