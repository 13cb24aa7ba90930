"""The three operations that take nearly all the time, in Numba: each the fast twin of one in gptoss.py.

    linear      dense weights (bf16 as published, or int8)       x [T, N] -> [T, M]
    attention   sinks, sliding window, online softmax            q [T, H, D] -> [T, H, D]
    experts     MXFP4 weights, straight from their packed bytes  x [T, N] -> [T, N]

This file knows arrays, not models. Letters as in gptoss.py. There are two regimes. For a few tokens (decoding) a weight
is used once or twice, so speed is memory bandwidth: stream each weight once, packed, and convert it in registers. For
many tokens (a prompt) it is arithmetic: a tile of weights is widened to float32 in cache and multiplied by all tokens.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import numpy as np
from numba import njit, prange, types
from numba.extending import overload
from threadpoolctl import ThreadpoolController

from simd import (
    E2M1_TWICE,
    OFFSET,
    add,
    block_scales,
    dot,
    first_to_float,
    fma,
    high_nibbles,
    larger,
    largest_lane,
    last_to_float,
    load_f32x8,
    load_f32x16,
    load_i8x32,
    load_one_widened,
    load_pair_f32x8,
    load_pair_u8x8,
    load_u8x8,
    load_u8x32,
    load_widened,
    look_up,
    look_up_offset,
    low_nibbles,
    power_of_two,
    prefetch,
    splat,
    spread_0_1,
    spread_2_3,
    spread_4_5,
    spread_6_7,
    store,
    sum_lanes,
    times,
    times_256,
    to_float,
    to_whole,
    zeros_f32x8,
    zeros_f32x16,
    zeros_i32x8,
)

FEW = 4  # up to so many tokens the weights are streamed; above, they are widened tile by tile
TILE = 96 * 2880  # numbers in a tile of weights: as float32 they fill a 1 MiB level-2 cache
AHEAD = 2048  # bytes of packed weights between what is computed and what is fetched
CODES = np.array(E2M1_TWICE, np.float32)
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
def place(i, N):
    """Where element i of a row of N stands once unpacked: the 32 even ones of each two blocks, then their odd ones.

    Packed bytes hold an even element low and an odd one high. Unpacked two blocks at a time they come out in this
    order, and it is cheaper to bring x into it once than each row of the weights out of it. The last of an odd number
    of blocks is unpacked by itself, element by element.
    """
    return i if i >= N // 64 * 64 else i // 64 * 64 + i % 2 * 32 + i % 64 // 2


@cache
def unpacked(N):
    """The elements of a row of N in that order: x[:, unpacked(N)] is x as unpacked weights meet it."""
    order = np.empty(N, np.int64)
    order[[place(i, N) for i in range(N)]] = np.arange(N)
    return order


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
                rounded[j, 0, place(i, N)], rounded[j, 1, place(i, N)] = high, n - 256 * high
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
def stream_gate_up(x, offsets, x_scales, chosen, blocks, scales, bias, limit, h):
    """h [T * K, F]: for token t and its k-th expert, SwiGLU of rows 2f (gate) and 2f + 1 (up)."""
    T, K = chosen.shape
    F, B = h.shape[1], blocks.shape[2]
    x, offsets, x_scales = x.reshape(-1), offsets.reshape(-1), x_scales.reshape(-1)
    blocks, scales = blocks.reshape(-1), scales.reshape(-1)
    for i in prange(T * K * F):
        j, f = i // F, i % F
        t, e = j // K, chosen[j // K, j % K]
        row = e * 2 * F + 2 * f
        gate = dot_mxfp4(blocks, scales, row, x, offsets, x_scales, t, B) + widen(bias[e, 2 * f])
        up = dot_mxfp4(blocks, scales, row + 1, x, offsets, x_scales, t, B) + widen(bias[e, 2 * f + 1])
        h[j, f] = swiglu(gate, up, limit)


@parallel_jit
def stream_down(h, offsets, h_scales, chosen, weights, blocks, scales, bias, y):
    """y [T, N]: the down projections of each token's K experts, weighted and summed."""
    T, K = chosen.shape
    N, B = y.shape[1], blocks.shape[2]
    h, offsets, h_scales = h.reshape(-1), offsets.reshape(-1), h_scales.reshape(-1)
    blocks, scales = blocks.reshape(-1), scales.reshape(-1)
    pieces = (N + 63) // 64  # of an expert's rows, read one after the other: row by row from K places was slower
    for i in prange(T * pieces):
        t, first = i // pieces, i % pieces * 64
        last = min(first + 64, N)
        y[t, first:last] = 0
        for k in range(K):
            e = chosen[t, k]
            for n in range(first, last):
                down = dot_mxfp4(blocks, scales, e * N + n, h, offsets, h_scales, t * K + k, B)
                y[t, n] += weights[t, k] * (down + widen(bias[e, n]))


# ---- Many tokens: widen a tile, multiply it by all of them ----------------------------------------------------------


@jit
def widen_bf16(weight, first, tile):
    """tile [rows, N] = weight [first : first + rows], in float32."""
    for r in range(tile.shape[0]):
        for n in range(tile.shape[1]):
            tile[r, n] = widen(weight[first + r, n])


@jit
def widen_int8(values, scales, first, tile):
    for r in range(tile.shape[0]):
        for n in range(tile.shape[1]):
            tile[r, n] = np.float32(values[first + r, n]) * scales[first + r, n // 32]


@jit
def widen_mxfp4(blocks, scales, first, tile):
    """tile [rows, N] = rows first, first + 1, ... of flat packed weights in float32, in the order of `place`."""
    rows, N = tile.shape
    tile, B = tile.reshape(-1), N // 32
    whole, half = B // 2 * 2, np.float32(0.5)  # half undoes the doubling in look_up
    for r in range(rows):
        w_at, at = (first + r) * B, r * N
        for b in range(0, whole, 2):
            packed = load_u8x32(blocks, 16 * (w_at + b))
            even, odd = look_up(low_nibbles(packed)), look_up(high_nibbles(packed))
            one, two = splat(e8m0(scales[w_at + b]) * half), splat(e8m0(scales[w_at + b + 1]) * half)
            store(tile, at + 32 * b, times(first_to_float(even), one))
            store(tile, at + 32 * b + 16, times(last_to_float(even), two))
            store(tile, at + 32 * b + 32, times(first_to_float(odd), one))
            store(tile, at + 32 * b + 48, times(last_to_float(odd), two))
        for b in range(whole, B):
            for i in range(32):
                code = blocks[16 * (w_at + b) + i // 2] >> np.uint8(i % 2 * 4) & np.uint8(15)
                tile[at + 32 * b + i] = CODES[code] * (e8m0(scales[w_at + b]) * half)


THREADS = numba.get_num_threads()
threads = ThreadPoolExecutor(THREADS)
# One pool of threads must own the cores. BLAS's own threads spin for a while after each product, and a parallel loop of
# Numba's that meets them waits for the scheduler. So BLAS is held to one thread, and gets its others from this pool.
ThreadpoolController().select(user_api="blas").limit(limits=1)


def multiply_tiles(N, tasks):
    """For each task (x [n, N], widen_rows, M, y [n, M]): y = x @ W^T, where widen_rows(first, tile) makes rows of W.

    Each thread widens its own tiles and multiplies them.
    """
    rows = max(16, TILE // N // 16 * 16)
    pieces = [(task, first) for task in tasks for first in range(0, task[2], rows)]

    def share(worker):
        tile = np.empty((rows, N), np.float32)
        for (x, widen_rows, M, y), first in pieces[worker::THREADS]:
            part = tile[: min(rows, M - first)]
            widen_rows(first, part)
            np.matmul(x, part.T, out=y[:, first : first + len(part)])

    list(threads.map(share, range(THREADS)))


@parallel_jit
def swiglu_rows(gate_up, bias, expert, limit, h):
    """h [J, F] = SwiGLU of gate_up [J, 2F] + bias [E, 2F] of each row's expert, columns in the order of `place`."""
    J, F = h.shape
    for j in prange(J):
        e = expert[j]
        for f in range(F):
            gate, up = gate_up[j, 2 * f] + widen(bias[e, 2 * f]), gate_up[j, 2 * f + 1] + widen(bias[e, 2 * f + 1])
            h[j, place(f, F)] = swiglu(gate, up, limit)


@parallel_jit
def combine(down, bias, rows, chosen, weights, y):
    """y [T, N]: token t's K results, which stand in rows [T, K] of down [T * K, N], weighted and summed."""
    T, K = chosen.shape
    for t in prange(T):
        y[t] = 0
        for k in range(K):
            for n in range(y.shape[1]):
                y[t, n] += weights[t, k] * (down[rows[t, k], n] + widen(bias[chosen[t, k], n]))


# ---- The three operations -------------------------------------------------------------------------------------------


def linear(x, weight, bias=None):
    """x [T, N] @ weight [M, N]^T + bias [M] -> float32 [T, M]; weight bf16 [M, N], or int8 values and scales."""
    T, N = x.shape
    quantized = isinstance(weight, tuple)
    M = len(weight[0] if quantized else weight)
    y = np.empty((T, M), np.float32)
    if T <= FEW:
        x = np.ascontiguousarray(x)
        stream_int8(x, *weight, y, bias) if quantized else stream_bf16(x, weight, y, bias)
        return y

    def widen_rows(first, tile):
        widen_int8(*weight, first, tile) if quantized else widen_bf16(weight, first, tile)

    multiply_tiles(N, [(x, widen_rows, M, y)])
    if bias is not None:
        y += (bias.astype(np.uint32) << 16).view(np.float32)
    return y


def experts(x, chosen, weights, layer, limit):
    """Mixture of experts: x [T, N] -> [T, N]; chosen, weights [T, K]. See gptoss.experts."""
    pairs = layer.gate_up.blocks.shape[2] % 2 == layer.down.blocks.shape[2] % 2 == 0  # of blocks, which streaming wants
    stream = pairs and len(x) <= FEW
    return (stream_experts if stream else tile_experts)(x, chosen, weights, layer, np.float32(limit))


def stream_experts(x, chosen, weights, layer, limit):
    T, N = x.shape
    J, F = chosen.size, layer.down.blocks.shape[2] * 32
    h, y = np.empty((J, F), np.float32), np.empty((T, N), np.float32)
    stream_gate_up(*rounded_to_int16(x), chosen, *layer.gate_up, layer.gate_up_bias, limit, h)
    stream_down(*rounded_to_int16(h), chosen, weights, *layer.down, layer.down_bias, y)
    return y


def tile_experts(x, chosen, weights, layer, limit):
    (T, N), K = x.shape, chosen.shape[1]
    F = layer.down.blocks.shape[2] * 32
    order = np.argsort(chosen, axis=None, kind="stable")  # (token, slot) pairs, grouped by expert
    expert = chosen.reshape(-1)[order]
    ends = np.searchsorted(expert, np.arange(len(layer.gate_up_bias) + 1))
    groups = [(e, ends[e], ends[e + 1]) for e in np.unique(expert)]

    def project(x, weight, M):  # x [T * K, N], grouped -> [T * K, M]
        blocks, scales = (part.reshape(-1) for part in weight)
        y = np.empty((len(x), M), np.float32)
        tasks = []
        for e, a, b in groups:

            def widen_rows(first, tile, e=e):
                widen_mxfp4(blocks, scales, e * M + first, tile)

            tasks.append((x[a:b], widen_rows, M, y[a:b]))
        multiply_tiles(x.shape[1], tasks)
        return y

    gate_up = project(x[:, unpacked(N)][order // K], layer.gate_up, 2 * F)
    h = np.empty((T * K, F), np.float32)
    swiglu_rows(gate_up, layer.gate_up_bias, expert, limit, h)
    down = project(h, layer.down, N)
    rows = np.empty(T * K, np.int64)
    rows[order] = np.arange(T * K)
    y = np.empty((T, N), np.float32)
    combine(down, layer.down_bias, rows.reshape(T, K), chosen, weights, y)
    return y


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
def widen_step(x, at, n, D, rows):
    """rows, flat [KEYS, P]: the first n = n rows of D numbers that lie at x's element `at`, in float32; D <= P."""
    P = len(rows) // KEYS
    whole = D // 16 * 16
    for s in range(n):
        for d in range(0, whole, 16):
            store(rows, s * P + d, load_widened(x, at + s * D + d))
        for d in range(whole, D):
            rows[s * P + d] = load_one_widened(x, at + s * D + d)


@jit
def look_at(queries, keys, values, a, b, row, P, p, peak, total, sums):
    """One step of one row: keys and values a to b - 1 join its peak, total and sums."""
    p[:] = -np.inf
    for s in range(a, b):
        lanes = zeros_f32x16()
        for d in range(0, P, 16):
            lanes = fma(load_f32x16(queries, row * P + d), load_f32x16(keys, s * P + d), lanes)
        p[s] = sum_lanes(lanes)
    new = max(peak[row], largest_lane(larger(load_f32x16(p, 0), load_f32x16(p, 16))))
    shrink = np.exp(peak[row] - new)  # what was summed so far was relative to the old peak
    lanes = zeros_f32x16()
    for s in range(0, KEYS, 16):
        e = exp(add(load_f32x16(p, s), splat(-new)))
        store(p, s, e)
        lanes = add(lanes, e)
    peak[row], total[row] = new, total[row] * shrink + sum_lanes(lanes)
    for d in range(0, P, 32):  # two sums at a time: a single one would wait for itself
        left = times(load_f32x16(sums, row * P + d), splat(shrink))
        right = times(load_f32x16(sums, row * P + d + 16), splat(shrink))
        for s in range(a, b):
            left = fma(splat(p[s]), load_f32x16(values, s * P + d), left)
            right = fma(splat(p[s]), load_f32x16(values, s * P + d + 16), right)
        store(sums, row * P + d, left)
        store(sums, row * P + d + 16, right)


@parallel_jit
def attend(q, k, v, sinks, window, out):
    """Online softmax (arXiv 1805.02867): one pass over the keys with a running peak, total and weighted sum of values.

    The sink is where the pass begins: a first key whose logit is known and whose value is zero. A thread takes a few
    queries of the H/G heads that share a key (R rows a query) and widens each step's keys and values once for all of
    them. A head is padded to a multiple of 32 with zeros, which change neither products nor sums.
    """
    T, H, D = q.shape
    G, S, _ = k.shape
    R, P, stride = H // G, (D + 31) // 32 * 32, k.strides[0] // k.itemsize
    scale = np.float32(1 / math.sqrt(D))
    for task in prange((T + QUERIES - 1) // QUERIES * G):
        t, g = task // G * QUERIES, task % G
        rows = min(QUERIES, T - t) * R
        queries, sums = np.zeros(rows * P, np.float32), np.zeros(rows * P, np.float32)
        peak, total = np.empty(rows, np.float32), np.ones(rows, np.float32)
        keys, values, p = np.zeros(KEYS * P, np.float32), np.zeros(KEYS * P, np.float32), np.empty(KEYS, np.float32)
        for row in range(rows):
            peak[row] = widen(sinks[g * R + row % R])
            for d in range(D):
                queries[row * P + d] = q[t + row // R, g * R + row % R, d] * scale
        begin, end = max(0, S - T + t - window + 1), S - T + t + rows // R
        for first in range(begin, end, KEYS):
            n = min(KEYS, end - first)
            widen_step(k, g * stride + first * D, n, D, keys)
            widen_step(v, g * stride + first * D, n, D, values)
            for row in range(rows):
                position = S - T + t + row // R
                a, b = max(0, position - window + 1 - first), min(n, position + 1 - first)
                if a < b:  # of these keys the query sees a to b - 1
                    look_at(queries, keys, values, a, b, row, P, p, peak, total, sums)
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
