"""Products with MXFP4 weights, straight from their packed bytes: where most of a token's time is spent.

The weights are packed as published: a block is 32 numbers of 4 bits (e2m1) and the byte of their common scale (e8m0).
They are multiplied as integers, because processors multiply bytes fastest:

    w  doubled, the 16 values of e2m1 are integers from -12 to 12. One instruction looks them up, as bytes.
    x  is rounded to integers of 16 bits, with a scale for each block ("activation quantization"). This is 2e-5 off in
       the mean, 80 times closer than the bf16 of the official code. The 16 bits are two bytes: x = 256 high + low.

One factor of such a product must have no sign. So 12, the zero point, is added to w, and 12 times the sum of a block's
x is subtracted from the result ("zero-point compensation"). All products of bytes and their sums are exact.

    T  rows of x                                            M  rows of weights, N  numbers of each
    J  pairs of token and expert: rows of y                 B  blocks of a row, N/32

`stream_mxfp4` is for a few tokens. It takes row by row of the weights as they lie in memory, and its limit is how fast
they come. `multiply_mxfp4` is for many: sixteen rows are unpacked at a time, and meet up to MANY tokens.
"""

import numpy as np
from numba import prange

import simd
from checkpoint import LARGEST
from compiled import inline_jit, jit, parallel_jit

MANY = 64  # tokens that unpacked weights meet at a time: 64 * 2 bytes * 2,880 = 370 KB of x, half a level-2 cache
AHEAD = 2048  # bytes between the weights in use and those asked for: a processor asks by itself, but not so far ahead


# ---- Activation quantization ----------------------------------------------------------------------------------------

@jit
def deinterleaved(i):
    """Where element i of a row stands in the order in which two blocks are unpacked: 32 even elements, 32 odd ones.

    A packed byte has an even element in its low half and an odd one in its high half. It is cheaper to bring x into
    this order, once, than every row of the weights out of it."""
    return i % 2 * 32 + i % 64 // 2


@jit
def quantize_row(x, values, compensation, scales):
    """x [N] -> integers n of 16 bits, and a scale [N/32] for each block: x = 2 n scale (2: weights are doubled).

    values int8 [N/64 (rounded up), 2, 64]: of each two blocks the 64 high bytes, then the 64 low ones, `deinterleaved`;
    n = 256 high + low. compensation int32 [N/32]: -12 times the sum of a block's n."""
    most = np.float32(127 * 256 + 127)  # 32,639: the largest n whose high and low are signed bytes
    for b in range(len(x) // 32):
        peak, broken, total = np.float32(0), np.float32(0), 0
        for i in range(32 * b, 32 * b + 32):
            peak = max(peak, abs(x[i]))
            broken += x[i] * np.float32(0)  # 0; nan if any x is inf or nan, which max and integers would hide
        steps = most / peak if peak > np.float32(1e-34) else np.float32(0)  # for a smaller peak it would be inf
        for i in range(32 * b, 32 * b + 32):
            n = np.int32(np.rint(x[i] * steps))
            high = (n + 128) >> 8
            values[b // 2, 0, deinterleaved(i)], values[b // 2, 1, deinterleaved(i)] = high, n - 256 * high
            total += n
        compensation[b], scales[b] = -simd.ZERO_POINT * total, peak / most * np.float32(0.5) + broken


@parallel_jit
def quantize_rows(x, values, compensation, scales):
    for t in prange(len(x)):
        quantize_row(x[t], values[t], compensation[t], scales[t])


@jit
def quantize_activations(x):
    """x [T, N] -> values, compensation and scales of all rows: see quantize_row."""
    T, N = x.shape
    values, scales = np.empty((T, (N + 63) // 64, 2, 64), np.int8), np.empty((T, N // 32), np.float32)
    compensation = np.empty((T, N // 32), np.int32)
    if T > 16:
        quantize_rows(x, values, compensation, scales)
    else:  # sooner done than other threads wake up
        for t in range(T):
            quantize_row(x[t], values[t], compensation[t], scales[t])
    return values, compensation, scales


# ---- A few tokens: stream the weights -------------------------------------------------------------------------------

@inline_jit
def two_blocks(blocks, w, x, at):
    """The packed blocks at w and w + 16 times the x whose bytes begin at `at` -> float32[8]: four sums of products of
    the first block, four of the second. Exact, before compensation."""
    packed = simd.load_u8x32(blocks, w)
    even, odd = simd.look_up_e2m1(simd.low_nibbles(packed)), simd.look_up_e2m1(simd.high_nibbles(packed))
    high = simd.dot(simd.zeros_i32x8(), even, simd.load_i8x32(x, at), odd, simd.load_i8x32(x, at + 32))
    both = simd.dot(simd.mul_256(high), even, simd.load_i8x32(x, at + 64), odd, simd.load_i8x32(x, at + 96))
    return simd.int32_to_float32(both)


@inline_jit
def dot_mxfp4(blocks, scales, row, x, compensation, x_scales, j, B):
    """Row `row` of packed weights times row j of quantized x, both of B blocks, an even number. All arrays are flat.

    Most of a decoded token's time is spent here. Each block's sums are scaled and added to running sums of eight lanes,
    which are added up at the end of the row. There are two of them, so that an fma need not wait for the one before.
    Eight blocks are taken at a time, because eight scales cost no more than one."""
    total, other, compensated = simd.zeros_f32x8(), simd.zeros_f32x8(), simd.zeros_f32x8()
    w, at, s = 16 * row * B, 64 * j * B, j * B
    for b in range(0, B // 8 * 8, 8):
        simd.prefetch(blocks, w + AHEAD)
        simd.prefetch(blocks, w + AHEAD + 64)
        scale = simd.mul_e8m0(simd.load_u8x8(scales, row * B + b), simd.load_f32x8(x_scales, s + b))
        compensated = simd.fma(scale, simd.int32_to_float32(simd.load_i32x8(compensation, s + b)), compensated)
        total = simd.fma(two_blocks(blocks, w, x, at), simd.spread_0_1(scale), total)
        other = simd.fma(two_blocks(blocks, w + 32, x, at + 128), simd.spread_2_3(scale), other)
        total = simd.fma(two_blocks(blocks, w + 64, x, at + 256), simd.spread_4_5(scale), total)
        other = simd.fma(two_blocks(blocks, w + 96, x, at + 384), simd.spread_6_7(scale), other)
        w, at = w + 128, at + 512
    for b in range(B // 8 * 8, B, 2):
        scale = simd.mul_e8m0(simd.load_pair_u8x8(scales, row * B + b), simd.load_pair_f32x8(x_scales, s + b))
        sums = simd.int32_to_float32(simd.load_apart_i32x8(compensation, s + b))
        total = simd.fma(simd.add(two_blocks(blocks, w, x, at), sums), scale, total)
        w, at = w + 32, at + 128
    return simd.reduce_add(simd.add(simd.add(total, other), compensated))


@inline_jit
def bounded(x):
    """x, or nan if it is larger than LARGEST. See gptoss.linear."""
    return x if abs(x) <= np.float32(LARGEST) else np.float32(np.nan)


@jit
def swiglu(gate, up, limit):
    """Clamped SwiGLU of a gate and an up, or of arrays of them. See gptoss.swiglu."""
    gate, up = np.minimum(gate, limit), np.minimum(np.maximum(up, -limit), limit)
    return gate / (np.float32(1) + np.exp(np.float32(-1.702) * gate)) * (up + np.float32(1))


@parallel_jit
def stream_mxfp4(workers, x, compensation, x_scales, tokens, starts, blocks, scales, bias, gated, limit, y):
    """y [J, M]: for pairs j from starts[e] to starts[e + 1] - 1, the quantized x of tokens[j] times expert e's weights
    [M, N]^T, plus its bias [M]. If gated, y [J, M/2] is SwiGLU of that: rows 2m are gates, rows 2m + 1 ups.

    A worker has its share of the rows of every expert, one after the other as they lie in memory."""
    (_, M, B, _), results = blocks.shape, y.shape[1]
    x, compensation, x_scales = x.reshape(-1), compensation.reshape(-1), x_scales.reshape(-1)
    blocks, scales = blocks.reshape(-1), scales.reshape(-1)
    for worker in prange(workers):
        for e in range(len(starts) - 1):
            for m in range(results * worker // workers, results * (worker + 1) // workers):
                row = 2 * m if gated else m
                for j in range(starts[e], starts[e + 1]):  # the rows stay in the level-1 cache
                    gate = dot_mxfp4(blocks, scales, e * M + row, x, compensation, x_scales, tokens[j], B)
                    y[j, m] = gate = bounded(gate + bias[e, row])
                    if gated:
                        up = dot_mxfp4(blocks, scales, e * M + row + 1, x, compensation, x_scales, tokens[j], B)
                        y[j, m] = swiglu(gate, bounded(up + bias[e, row + 1]), limit)


# ---- Many tokens: unpack sixteen rows, multiply them by all tokens --------------------------------------------------

@inline_jit
def unpack_eight_rows(blocks, at, stride):
    """One block of each of eight rows, `stride` bytes apart -> eight vectors of doubled weights plus 12. They hold, of
    each row, the four even elements of its first four bytes, the four odd ones, the even ones of the next four, ..."""
    a, b, c, d = simd.load_columns_u8x32(blocks, at, stride)
    return (simd.look_up_e2m1(simd.low_nibbles(a)), simd.look_up_e2m1(simd.high_nibbles(a)),
            simd.look_up_e2m1(simd.low_nibbles(b)), simd.look_up_e2m1(simd.high_nibbles(b)),
            simd.look_up_e2m1(simd.low_nibbles(c)), simd.look_up_e2m1(simd.high_nibbles(c)),
            simd.look_up_e2m1(simd.low_nibbles(d)), simd.look_up_e2m1(simd.high_nibbles(d)))


@inline_jit
def add_products(sums, even, odd, more_even, more_odd, x, at):
    """Adds the products with the eight x whose bytes begin at `at` to four sums: of rows 0-7 and 8-15, each with the
    high bytes and with the low ones. Four sums, so that no addition has to wait for the one before."""
    high, more_high, low, more_low = sums
    x_even, x_odd = simd.load_splat_i8x32(x, at), simd.load_splat_i8x32(x, at + 32)
    high, more_high = simd.dot(high, even, x_even, odd, x_odd), simd.dot(more_high, more_even, x_even, more_odd, x_odd)
    x_even, x_odd = simd.load_splat_i8x32(x, at + 64), simd.load_splat_i8x32(x, at + 96)
    low, more_low = simd.dot(low, even, x_even, odd, x_odd), simd.dot(more_low, more_even, x_even, more_odd, x_odd)
    return high, more_high, low, more_low


@jit
def multiply_sixteen_rows(x, compensation, x_scales, tokens, blocks, scales, row, B, columns, sums):
    """sums [len(tokens), 16] = quantized x of the tokens times rows `row` to row + 15 of packed weights.

    The arithmetic is that of dot_mxfp4, but a lane is a row here. A block of sixteen rows is unpacked once, and stays
    in registers (AVX-512 has enough) until it has met all tokens. columns [16 B]: room for the scales side by side."""
    for r in range(16):
        for b in range(B):
            columns[16 * b + r] = scales[(row + r) * B + b]
    sums[:] = 0
    for b in range(B):
        at = 16 * (row * B + b)
        w, v = unpack_eight_rows(blocks, at, 16 * B), unpack_eight_rows(blocks, at + 8 * 16 * B, 16 * B)
        w_scale = simd.mul_e8m0(simd.load_u8x8(columns, 16 * b), simd.splat_f32x8(np.float32(1)))
        v_scale = simd.mul_e8m0(simd.load_u8x8(columns, 16 * b + 8), simd.splat_f32x8(np.float32(1)))
        for r in range(16):
            simd.prefetch(blocks, at + 16 * B * r + 128)  # eight blocks ahead, in each of the rows
        for j in range(len(tokens)):
            s = tokens[j] * B + b
            x_scale, start = simd.load_splat_f32x8(x_scales, s), simd.load_splat_i32x8(compensation, s)
            x_at = 128 * (tokens[j] * ((B + 1) // 2) + b // 2) + b % 2 * 16  # where this block's x begin, deinterleaved
            four = simd.zeros_i32x8(), simd.zeros_i32x8(), start, start
            four = add_products(four, w[0], w[1], v[0], v[1], x, x_at)
            four = add_products(four, w[2], w[3], v[2], v[3], x, x_at + 4)
            four = add_products(four, w[4], w[5], v[4], v[5], x, x_at + 8)
            high, more_high, low, more_low = add_products(four, w[6], w[7], v[6], v[7], x, x_at + 12)
            total = simd.int32_to_float32(simd.add(simd.mul_256(high), low))
            more = simd.int32_to_float32(simd.add(simd.mul_256(more_high), more_low))
            simd.store(sums, 16 * j, simd.fma(total, simd.mul(w_scale, x_scale), simd.load_f32x8(sums, 16 * j)))
            simd.store(sums, 16 * j + 8, simd.fma(more, simd.mul(v_scale, x_scale), simd.load_f32x8(sums, 16 * j + 8)))


@parallel_jit
def multiply_mxfp4(workers, x, compensation, x_scales, tokens, starts, blocks, scales, bias, gated, limit, y):
    """stream_mxfp4 for many tokens; M is a multiple of 16. A worker has every `workers`-th sixteen rows of experts."""
    _, M, B, _ = blocks.shape
    x, compensation, x_scales = x.reshape(-1), compensation.reshape(-1), x_scales.reshape(-1)
    blocks, scales = blocks.reshape(-1), scales.reshape(-1)
    for worker in prange(workers):
        columns, sums = np.empty(16 * B, np.uint8), np.empty(16 * MANY, np.float32)
        for e in range(len(starts) - 1):
            for start in range(starts[e], starts[e + 1], MANY):
                some = tokens[start : min(start + MANY, starts[e + 1])]
                for m in range(16 * worker, M, 16 * workers):
                    multiply_sixteen_rows(x, compensation, x_scales, some, blocks, scales, e * M + m, B, columns, sums)
                    for j in range(len(some)):
                        for r in range(0, 16, 2):
                            gate = bounded(sums[16 * j + r] + bias[e, m + r])
                            up = bounded(sums[16 * j + r + 1] + bias[e, m + r + 1])
                            if gated:
                                y[start + j, (m + r) // 2] = swiglu(gate, up, limit)
                            else:
                                y[start + j, m + r], y[start + j, m + r + 1] = gate, up
