"""Products with MXFP4 weights, straight from their packed bytes: where most of a token's time is spent.

Weights are packed as published: 32 numbers of 4 bits (e2m1) and the byte of their common scale (e8m0) are a block. They
meet x in integers. x is rounded to 16 bits for each block, which leaves it 2e-5 off, 200 times closer than the bf16 of
the official code, and taken apart into two bytes; the numbers of 4 bits, doubled, are whole, and a table makes bytes of
them in one instruction. Products of bytes and their sums are exact.

    J  rows of x: tokens, or pairs of token and expert      M  rows of weights, N  numbers of each
    E  experts                                              B  blocks of a row, N/32

`stream_mxfp4` is for a few tokens: it takes row by row of the weights as they lie in memory, and its limit is how fast
they come. `multiply_mxfp4` is for many: sixteen rows are converted once and meet all tokens.
"""

import numpy as np  # noqa: I001
from numba import prange

from simd import (
    OFFSET, add, block_scales, dot, fma, high_nibbles, inline_jit, jit, load_apart_i32x8, load_columns_u8x32,
    load_f32x8, load_i32x8, load_i8x32, load_pair_f32x8, load_pair_u8x8, load_splat_f32x8, load_splat_i32x8,
    load_splat_i8x32, load_u8x32, load_u8x8, look_up_offset, low_nibbles, parallel_jit, prefetch, splat_f32x8,
    spread_0_1, spread_2_3, spread_4_5, spread_6_7, store, sum_lanes, times, times_256, to_float, widen,
    zeros_f32x8, zeros_i32x8,
)

MANY = 64  # tokens that packed weights meet once converted; their x fit into half a level-2 cache
AHEAD = 2048  # bytes of packed weights between what is computed and what is fetched


# ---- x in two bytes -------------------------------------------------------------------------------------------------


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
    """x [J, N] -> what round_to_int16 makes of it: rounded, offsets, scales."""
    J, N = x.shape
    rounded, offsets = np.empty((J, (N + 63) // 64, 2, 64), np.int8), np.empty((J, N // 32), np.int32)
    scales = np.empty((J, N // 32), np.float32)
    if J <= 16:  # sooner done than the other threads wake
        round_to_int16(x, rounded, offsets, scales)
    else:
        round_many_to_int16(x, rounded, offsets, scales)
    return rounded, offsets, scales


# ---- A few tokens: stream the weights -------------------------------------------------------------------------------


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
    """Clamped SwiGLU of one gate and one up. See gptoss.swiglu."""
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
def sixteen_rows(x, offsets, x_scales, tokens, blocks, scales, row, B, columns, sums):
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
            at = 128 * (tokens[j] * ((B + 1) // 2) + b // 2) + b % 2 * 16  # see `place`
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
    x, offsets, x_scales = x.reshape(-1), offsets.reshape(-1), x_scales.reshape(-1)
    blocks, scales = blocks.reshape(-1), scales.reshape(-1)
    for worker in prange(workers):
        columns, sums = np.empty(16 * B, np.uint8), np.empty(16 * MANY, np.float32)
        for g in range(len(groups)):
            e, first, last = groups[g]
            for start in range(first, last, MANY):
                some = tokens[start : min(start + MANY, last)]
                for m in range(16 * worker, M, 16 * workers):
                    sixteen_rows(x, offsets, x_scales, some, blocks, scales, e * M + m, B, columns, sums)
                    for j in range(len(some)):
                        for r in range(0, 16, 2):
                            gate = sums[16 * j + r] + widen(bias[e, m + r])
                            up = sums[16 * j + r + 1] + widen(bias[e, m + r + 1])
                            if gated:
                                y[start + j, (m + r) // 2] = swiglu(gate, up, limit)
                            else:
                                y[start + j, m + r], y[start + j, m + r + 1] = gate, up
