"""The operations of a layer in Numba: each the fast twin of one in gptoss.py. Three take nearly all the time:

    linear      dense weights (bf16 as published, or int8)       x [T, N] -> [T, M]
    attention   sinks, sliding window, online softmax            q [T, H, D] -> [T, H, D]
    experts     MXFP4 weights, straight from their packed bytes  x [T, N] -> [T, N]

This file knows arrays, not models. Letters as in gptoss.py. There are two regimes. For a few tokens (decoding) a weight
is used once or twice, so speed is memory bandwidth: stream each weight once, packed, and convert it in registers. For
many tokens (a prompt) it is arithmetic: some rows of weights are converted once, in cache or in registers, and meet all
tokens there.
"""

import math  # noqa: I001

import numba
import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from simd import (
    OFFSET, add, block_scales, dot, first_to_float, fma, high_nibbles, larger, largest_lane, last_to_float,
    load_apart_i32x8, load_columns_u8x32, load_f32x8, load_f32x16, load_i8x32, load_i32x8, load_one_widened,
    load_pair_f32x8, load_pair_u8x8, load_splat_f32x8, load_splat_f32x16, load_splat_i8x32, load_splat_i32x8, load_u8x8,
    load_u8x32, load_widened, look_up_offset, low_nibbles, power_of_two, prefetch, splat_f32x16, spread_0_1, spread_2_3,
    spread_4_5, spread_6_7, splat_f32x8, store, sum_lanes, times, times_256, to_float, to_whole, transpose, zeros_f32x8,
    zeros_f32x16, zeros_i32x8,
)

FEW = 16  # dense weights that are used for up to so many tokens are streamed for each; for more, widened once
FEW_MXFP4 = 5  # the same of packed ones, on average over the experts in use
MANY = 64  # tokens that packed weights meet once converted; their x fit into half a level-2 cache
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
def e8m0(byte):
    """2^(byte - 127) as float32: the byte is the exponent. 0 is the subnormal 2^-127, 255 is nan."""
    byte = np.uint32(byte)
    bits = max(byte << np.uint32(23), np.uint32(1 << 22)) | ((byte + np.uint32(1)) >> np.uint32(8))
    return np.uint32(bits).view(np.float32)


@jit
def place(i):
    """Where in its two blocks element i of a row stands once unpacked: first the 32 even ones, then the odd ones.

    Packed bytes hold an even element low and an odd one high. Unpacked two blocks at a time they come out in this
    order, and it is cheaper to bring x into it once than each row of the weights out of it.
    """
    return i % 2 * 32 + i % 64 // 2


@jit
def round_to_int16(x, rounded, offsets, scales):
    """x [J, N] -> integers n of 16 bits, times scales [J, N/32]; in the form that products with MXFP4 want.

    rounded int8 [J, N/64 (up), 2, 64]: n = 256 high + low in the order of `place`, for each two blocks the high bytes
    and then the low ones. offsets int32 [J, N/32]: what a block's sum has too much, negative (see `two_blocks`). 16
    bits are 2e-5 off, where the bf16 of the official code is 4e-3 off. The half in the scale undoes the doubling in
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
                rounded[j, b // 2, 0, place(i)], rounded[j, b // 2, 1, place(i)] = high, n - 256 * high
                total += n
            offsets[j, b], scales[j, b] = -OFFSET * total, peak / most * np.float32(0.5) + broken


@parallel_jit
def round_many_to_int16(x, rounded, offsets, scales):
    for j in prange(len(x)):
        round_to_int16(x[j : j + 1], rounded[j : j + 1], offsets[j : j + 1], scales[j : j + 1])


@jit
def rounded_to_int16(x):
    J, N = x.shape
    rounded, offsets = np.empty((J, (N + 63) // 64, 2, 64), np.int8), np.empty((J, N // 32), np.int32)
    scales = np.empty((J, N // 32), np.float32)
    if J <= FEW:
        round_to_int16(x, rounded, offsets, scales)
    else:
        round_many_to_int16(x, rounded, offsets, scales)
    return rounded, offsets, scales


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
                prefetch(flat_values, m * N + 32 * b + AHEAD)
                w, at = load_i8x32(flat_values, m * N + 32 * b), t * N + 32 * b
                block = times(first_to_float(w), load_f32x16(flat_x, at))
                block = fma(last_to_float(w), load_f32x16(flat_x, at + 16), block)
                lanes = fma(block, splat_f32x16(widen(scales[m, b])), lanes)
            total = sum_lanes(lanes)
            for n in range(32 * whole, N):
                total += np.float32(values[m, n]) * widen(scales[m, whole]) * x[t, n]
            y[t, m] = total if bias is None else total + widen(bias[m])


@inline_jit
def two_blocks(blocks, w, x, at):
    """Packed blocks at w times the x whose bytes begin at `at` -> float32[8]: four sums of the one block, four of the
    other. Exact.

    Processors multiply bytes fastest, those of one factor with a sign and those of the other without. So x is 256 high
    + low, and weights are doubled and 12 is added to them: the sums of a block have 12 times its x too much.
    """
    packed = load_u8x32(blocks, w)
    even, odd = look_up_offset(low_nibbles(packed)), look_up_offset(high_nibbles(packed))
    sums = times_256(dot(zeros_i32x8(), even, load_i8x32(x, at), odd, load_i8x32(x, at + 32)))
    return to_float(dot(sums, even, load_i8x32(x, at + 64), odd, load_i8x32(x, at + 96)))


@inline_jit
def dot_mxfp4(blocks, scales, row, x, offsets, x_scales, j, B):
    """Row `row` of packed weights times row j of x (see round_to_int16), both of B blocks, an even number; all flat.

    Most of a decoded token's time is spent here. The blocks' sums are scaled and added to 2 x 8 running sums, which
    only the end of the row adds up. Eight blocks at a time, because eight scales cost no more than one.
    """
    total, other, excess = zeros_f32x8(), zeros_f32x8(), zeros_f32x8()  # an addition waits for the one before
    w, at, s = 16 * row * B, 64 * j * B, j * B
    for b in range(0, B // 8 * 8, 8):
        prefetch(blocks, w + AHEAD)  # the processor fetches ahead by itself, but not far enough
        prefetch(blocks, w + AHEAD + 64)
        scale = block_scales(load_u8x8(scales, row * B + b), load_f32x8(x_scales, s + b))
        excess = fma(scale, to_float(load_i32x8(offsets, s + b)), excess)
        total = fma(two_blocks(blocks, w, x, at), spread_0_1(scale), total)
        other = fma(two_blocks(blocks, w + 32, x, at + 128), spread_2_3(scale), other)
        total = fma(two_blocks(blocks, w + 64, x, at + 256), spread_4_5(scale), total)
        other = fma(two_blocks(blocks, w + 96, x, at + 384), spread_6_7(scale), other)
        w, at = w + 128, at + 512
    for b in range(B // 8 * 8, B, 2):
        scale = block_scales(load_pair_u8x8(scales, row * B + b), load_pair_f32x8(x_scales, s + b))
        sums = add(two_blocks(blocks, w, x, at), to_float(load_apart_i32x8(offsets, s + b)))
        total = fma(sums, scale, total)
        w, at = w + 32, at + 128
    return sum_lanes(add(add(total, other), excess))


@jit
def swiglu(gate, up, limit):
    gate, up = min(gate, limit), min(max(up, -limit), limit)
    return gate / (np.float32(1) + np.exp(np.float32(-1.702) * gate)) * (up + np.float32(1))


@parallel_jit
def stream_mxfp4(workers, x, offsets, x_scales, tokens, groups, blocks, scales, bias, limit, y):
    """y [J, M]: for each group (e, first, last), x of its tokens, rounded to int16, times expert e's weights [M, N]^T,
    and its bias [M]. Where y has M/2 columns: SwiGLU of that, of which rows 2f are gates and rows 2f + 1 ups.

    A worker has its share of the rows of every expert, one after the other as they lie in memory.
    """
    (_, M, B, _), results = blocks.shape, y.shape[1]
    gated = results < M
    x, offsets, x_scales = x.reshape(-1), offsets.reshape(-1), x_scales.reshape(-1)
    blocks, scales = blocks.reshape(-1), scales.reshape(-1)
    for worker in prange(workers):
        for g in range(len(groups)):
            e, first, last = groups[g]
            for m in range(results * worker // workers, results * (worker + 1) // workers):
                row = 2 * m if gated else m
                for j in range(first, last):  # the rows stay in the level-1 cache
                    out = dot_mxfp4(blocks, scales, e * M + row, x, offsets, x_scales, tokens[j], B)
                    out += widen(bias[e, row])
                    if gated:
                        up = dot_mxfp4(blocks, scales, e * M + row + 1, x, offsets, x_scales, tokens[j], B)
                        out = swiglu(out, up + widen(bias[e, row + 1]), limit)
                    y[j, m] = out


# ---- Many tokens: convert sixteen rows, multiply them by all tokens -------------------------------------------------


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


@inline_jit
def eight_rows(blocks, at, stride):
    """One block of each of eight rows, `stride` bytes apart -> eight vectors of the bytes of `look_up_offset`: of each
    row the four even elements of its first four bytes, the four odd ones, the even ones of the next four bytes, ..."""
    a, b, c, d = load_columns_u8x32(blocks, at, stride)
    return (look_up_offset(low_nibbles(a)), look_up_offset(high_nibbles(a)), look_up_offset(low_nibbles(b)),
            look_up_offset(high_nibbles(b)), look_up_offset(low_nibbles(c)), look_up_offset(high_nibbles(c)),
            look_up_offset(low_nibbles(d)), look_up_offset(high_nibbles(d)))  # fmt: skip


@inline_jit
def add_products(sums, even, odd, more_even, more_odd, x, at):
    """To the four sums are added eight rows' products, and eight more rows', with the eight x whose bytes begin at
    `at`: high bytes and low ones apart, because an addition waits for the one before."""
    A, B, a, b = sums
    x_even, x_odd = load_splat_i8x32(x, at), load_splat_i8x32(x, at + 32)
    A, B = dot(A, even, x_even, odd, x_odd), dot(B, more_even, x_even, more_odd, x_odd)
    x_even, x_odd = load_splat_i8x32(x, at + 64), load_splat_i8x32(x, at + 96)
    return A, B, dot(a, even, x_even, odd, x_odd), dot(b, more_even, x_even, more_odd, x_odd)


@jit
def sixteen_rows(x, offsets, x_scales, tokens, blocks, scales, row, B, stride, columns, sums):
    """sums [len(tokens), 16] = x of the tokens, rounded to int16, times rows `row` to row + 15 of packed weights.

    The arithmetic of `dot_mxfp4`, but a lane is a row here. A block of sixteen rows is converted once, and stays in
    registers until it has met all tokens. columns [16 B] is for the scales, side by side.
    """
    for r in range(16):
        for b in range(B):
            columns[16 * b + r] = scales[(row + r) * B + b]
    one = splat_f32x8(np.float32(1))
    sums[:] = 0
    for b in range(B):
        at = 16 * (row * B + b)
        w, v = eight_rows(blocks, at, 16 * B), eight_rows(blocks, at + 8 * 16 * B, 16 * B)
        w_scale = block_scales(load_u8x8(columns, 16 * b), one)
        v_scale = block_scales(load_u8x8(columns, 16 * b + 8), one)
        for r in range(16):
            prefetch(blocks, at + 16 * B * r + 128)
        for j in range(len(tokens)):
            s = tokens[j] * B + b
            x_scale, excess = load_splat_f32x8(x_scales, s), load_splat_i32x8(offsets, s)
            at = tokens[j] * stride + b // 2 * 128 + b % 2 * 16  # see `place`
            four = zeros_i32x8(), zeros_i32x8(), excess, excess
            four = add_products(four, w[0], w[1], v[0], v[1], x, at)
            four = add_products(four, w[2], w[3], v[2], v[3], x, at + 4)
            four = add_products(four, w[4], w[5], v[4], v[5], x, at + 8)
            high, other_high, low, other_low = add_products(four, w[6], w[7], v[6], v[7], x, at + 12)
            total, other = to_float(add(times_256(high), low)), to_float(add(times_256(other_high), other_low))
            store(sums, 16 * j, fma(total, times(w_scale, x_scale), load_f32x8(sums, 16 * j)))
            store(sums, 16 * j + 8, fma(other, times(v_scale, x_scale), load_f32x8(sums, 16 * j + 8)))


@parallel_jit
def multiply_mxfp4(workers, x, offsets, x_scales, tokens, groups, blocks, scales, bias, limit, y):
    """The same as stream_mxfp4. A worker has every `workers`-th sixteen rows of each expert, and takes MANY tokens at a
    time, whose x stay in its level-2 cache."""
    _, M, B, _ = blocks.shape
    gated = y.shape[1] < M
    stride = 128 * x.shape[1]
    x, offsets, x_scales = x.reshape(-1), offsets.reshape(-1), x_scales.reshape(-1)
    blocks, scales = blocks.reshape(-1), scales.reshape(-1)
    for worker in prange(workers):
        columns, sums = np.empty(16 * B, np.uint8), np.empty(16 * MANY, np.float32)
        for g in range(len(groups)):
            e, first, last = groups[g]
            for start in range(first, last, MANY):
                some = tokens[start : min(start + MANY, last)]
                for m in range(16 * worker, M, 16 * workers):
                    sixteen_rows(x, offsets, x_scales, some, blocks, scales, e * M + m, B, stride, columns, sums)
                    for j in range(len(some)):
                        for r in range(0, 16, 2):
                            out = sums[16 * j + r] + widen(bias[e, m + r])
                            up = sums[16 * j + r + 1] + widen(bias[e, m + r + 1])
                            if gated:
                                y[start + j, (m + r) // 2] = swiglu(out, up, limit)
                            else:
                                y[start + j, m + r], y[start + j, m + r + 1] = out, up


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
    """`experts` of arrays: one call for all steps, because a call from Python takes longer than some of them."""
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


@jit
def write(kv, k, v):
    """kv [2, G, T, D], a part of the cache, becomes k and v [T, G, D]. See gptoss.write."""
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
    """All queries and heads, a few at a time: a task of some microseconds, of which each thread takes its share."""
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
