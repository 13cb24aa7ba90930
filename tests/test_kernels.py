"""Each operation of kernels.py equals its twin of the same name in gptoss.py, and each of its pieces does what it says.

Where the arithmetic is exact (small integers, powers of two) the two must be equal to the last bit. Elsewhere the
difference is held against what rounding explains. U = 2^-24 is float32's unit roundoff. A sum of n products makes n
roundings, each at most U of a partial sum, with signs as good as random: together about sqrt(n) U of the result's size.
Both twins make them, in different orders: their distance is held to 2 sqrt(n) U, relative to the norm of the result.
"""
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from numba import njit
from numba.core.registry import cpu_target

import compiled
import gptoss
import kernels
import mxfp4
import simd
from checkpoint import LARGEST, MXFP4, Int8, dequantize, float32_to_bf16, quantize_int8
from kernels import FEW, FEW_MXFP4, KEYS
from mxfp4 import MANY, deinterleaved

U = 2.0**-24
TOKENS = (1, 2, FEW, FEW + 1, 23)


def close(found, expected, tolerance):
    assert found.shape == expected.shape and found.dtype == np.float32
    found, expected = found.astype(np.float64), expected.astype(np.float64)  # squares of 1e-30 are 0 in float32
    distance, norm = np.linalg.norm(found - expected), np.linalg.norm(expected)
    assert distance <= tolerance * norm, f"distance {distance / norm:.2e} of the norm, expected at most {tolerance:.2e}"


def frozen(*arrays):
    """Read-only, as every array is that lies in a mapped file; Numba compiles for those apart."""
    for array in arrays:
        array.flags.writeable = False
    return arrays if len(arrays) > 1 else arrays[0]


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def bf16(rng, *shape):
    return frozen(float32_to_bf16(normal(rng, *shape)))


def packed(rng, *shape, low=118, high=124):
    """Random packed weights of `shape`; with scales around 2^-6 a sum over some dozens of inputs is of size 1."""
    *rows, N = shape
    blocks, scales = rng.integers(0, 256, (*rows, N // 32, 16), np.uint8), rng.integers(low, high, (*rows, N // 32))
    return MXFP4(*frozen(blocks, scales.astype(np.uint8)))


# ---- Pieces ---------------------------------------------------------------------------------------------------------


@njit
def convert_all(x, out):
    for i in range(len(x)):
        out[i] = simd.to_float32(x[i])


def test_to_float32():
    bits = np.arange(2**16, dtype=np.uint16)
    out = np.empty(2**16, np.float32)
    convert_all(bits, out)
    assert np.array_equal(out.view(np.uint32), gptoss.bf16_to_float32(bits).view(np.uint32))  # every pattern, nan's too
    convert_all(out, again := np.empty_like(out))
    assert np.array_equal(again.view(np.uint32), out.view(np.uint32))
    convert_all(bits.view(np.int16), out)
    assert np.array_equal(out, bits.view(np.float16).astype(np.float32), equal_nan=True)


def test_deinterleaved():
    """Of each two blocks the even elements and then the odd ones."""
    expected = [*range(0, 64, 2), *range(1, 64, 2)]
    assert [expected[deinterleaved(i)] for i in range(320)] == 5 * list(range(64))


def in_bytes(n):
    """Integers n [J, N], N a multiple of 64, as products with MXFP4 get them: bytes [J, N/64, 2, 64], high ones and low
    ones, and the compensation [J, N/32]."""
    compensation = -12 * n.reshape(len(n), -1, 32).sum(axis=-1)
    n = n.reshape(len(n), -1, 1, 32, 2).swapaxes(3, 4).reshape(len(n), -1, 1, 64)
    high = (n + 128) // 256
    return np.concatenate([high, n - 256 * high], axis=2).astype(np.int8), compensation.astype(np.int32)


def dot_mxfp4(blocks, scales, row, x, compensation, x_scales, j, B):
    blocks, scales, x, compensation = (part.reshape(-1) for part in (blocks, scales, x, compensation))
    return mxfp4.dot_mxfp4(blocks, scales, row, x, compensation, x_scales, j, B)


def multiply_mxfp4(blocks, scales, x, compensation, x_scales, tokens=None):
    """All rows of one expert, blocks [M, B, 16], times x of these tokens -> [M, tokens]."""
    tokens = np.arange(len(x)) if tokens is None else np.array(tokens)
    y, x_scales = np.empty((len(tokens), len(blocks)), np.float32), np.resize(x_scales, compensation.shape)
    starts, bias = np.array([0, len(tokens)]), np.zeros((1, len(blocks)), np.float32)
    mxfp4.multiply_mxfp4(2, x, compensation, x_scales, tokens, starts, blocks[None], scales[None], bias, False,
                         np.float32(7), y)
    return y.T


@pytest.mark.parametrize("B", [2, 6, 8, 10])
def test_look_up_and_nibbles(B):
    """All 256 bytes, at scale 1: the low nibble is the even element. One-hot tokens read single weights."""
    blocks = frozen(np.arange(256 * B, dtype=np.uint16).astype(np.uint8).reshape(16, B, 16))
    scales = frozen(np.full((16, B), 127, np.uint8))
    expected = dequantize(MXFP4(blocks, scales))  # [16, 32 B]
    assert set(expected.reshape(-1)) == {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6}
    halves = np.full(B, 0.5, np.float32)
    for n, value in itertools.product(range(32 * B), (32639, -129)):
        x, compensation = in_bytes(value * (np.arange(32 * B)[None] == n))
        found = [dot_mxfp4(blocks, scales, row, x, compensation, halves, 0, B) for row in range(16)]
        assert np.array_equal(found, value * expected[:, n])
        assert np.array_equal(multiply_mxfp4(blocks, scales, x, compensation, halves)[:, 0], value * expected[:, n])


@pytest.mark.parametrize("B", [2, 4, 6, 8, 10, 16, 18, 90])
def test_products_with_mxfp4(B):
    """Rows of x and of the weights are picked by number. With one scale for all and x below 2^24 / (32 * 24 B), every
    sum is an integer or a half below 2^24 and the result exact."""
    rng = np.random.default_rng(B)
    peak = 2**24 // (32 * 24 * B)
    n = rng.integers(-peak, peak + 1, (3, 32 * B))
    x, compensation = in_bytes(n)
    halves = np.full(3 * B, 0.5, np.float32)
    w = packed(rng, 48, 32 * B, low=127, high=128)
    exact = dequantize(w).astype(np.float64) @ n.T
    for row, j in itertools.product(range(4), range(3)):
        assert dot_mxfp4(*w, row, x, compensation, halves, j, B) == exact[row, j]
    tokens = [2, 0, 2, 1]
    assert np.array_equal(multiply_mxfp4(*w, x, compensation, halves, tokens), exact[:, tokens])


def test_products_with_mxfp4_at_their_largest():
    """Every product as large as it can be, of either sign: nothing overflows on its way, in 8, 16 or 32 bits."""
    B, halves = 10, np.full(10, 0.5, np.float32)
    scales = np.full((16, B), 127, np.uint8)
    for byte, n in itertools.product((0x77, 0xFF, 0x7F), (32639, -32639, 127, -128, 128)):  # 6 6, -6 -6, -6 6
        blocks = np.full((16, B, 16), byte, np.uint8)
        x, compensation = in_bytes(np.full((1, 32 * B), n))
        expected = dequantize(MXFP4(blocks, scales)).astype(np.float64).sum(axis=1) * n
        assert dot_mxfp4(blocks, scales, 0, x, compensation, halves, 0, B) == expected[0]
        assert np.array_equal(multiply_mxfp4(blocks, scales, x, compensation, halves)[:, 0], expected)


@pytest.mark.parametrize("B", [1, 3, 6, 90])
def test_multiply_mxfp4(B):
    """Any number of blocks; experts with no token, one, and up to more than MANY, of which some are the same."""
    rng, M, E = np.random.default_rng(B), 48, 7
    w, bias, x = packed(rng, E, M, 32 * B), normal(rng, E, M), normal(rng, 31, 32 * B)
    starts = np.cumsum([0, 1, 3, 0, MANY - 1, MANY, MANY + 1, 2 * MANY + 1])
    tokens = rng.integers(0, len(x), starts[-1])
    rounded_x = mxfp4.quantize_activations(x)
    for workers in (1, 2, 5):  # more than there are sixteens of rows
        y = np.full((len(tokens), M), np.nan, np.float32)
        mxfp4.multiply_mxfp4(workers, *rounded_x, tokens, starts, *w, bias, False, np.float32(7), y)
        for e, (first, last) in enumerate(itertools.pairwise(starts)):
            exact = x[tokens[first:last]].astype(np.float64) @ dequantize(MXFP4(*(part[e] for part in w))).T
            exact += bias[e]
            close(y[first:last], exact.astype(np.float32), 5e-5)  # of the rounding, see TOLERANCE


@pytest.mark.parametrize("byte", range(256))
def test_scales(byte):
    """Every scale byte, in the loop over eight blocks and in the rest. 0 is the subnormal 2^-127; 255 makes all nan,
    zeros too. Weights are up to 12 on the way, with their zero point, so 12 * 2^(byte - 127) must stay in float32's
    range: a row's sum is exact up to 251. Beyond it may be inf or nan, but never a wrong number. What leaves the linear
    layer is nan beyond LARGEST."""
    rng = np.random.default_rng(byte)
    for B in (2, 9, 10):
        blocks, scales = frozen(rng.integers(0, 256, (16, B, 16), np.uint8), np.full((16, B), byte, np.uint8))
        n = rng.integers(-3, 4, (1, 32 * B + B % 2 * 32))
        n[:, 32 * B :] = 0
        if byte > 239:  # a sum of 320 products might overflow: one product alone
            n = (np.arange(n.size) == rng.integers(32 * B))[None].astype(np.int64)
        x, compensation = in_bytes(n)
        halves = np.full(B, 0.5, np.float32)
        units = dequantize(MXFP4(blocks, np.full_like(scales, 127))).astype(np.float64) @ n[0, : 32 * B]
        with np.errstate(over="ignore"):
            exact = np.ldexp(units, byte - 127).astype(np.float32)
        bounded = np.where(np.abs(exact) <= LARGEST, exact, np.nan)
        found = [(multiply_mxfp4(blocks, scales, x, compensation[:, :B], halves)[:, 0], bounded)]
        if B % 2 == 0:
            dots = [dot_mxfp4(blocks, scales, row, x, compensation, halves, 0, B) for row in range(16)]
            found.append((np.array(dots), exact))
        for result, expected in found:
            if byte < 252:
                assert np.array_equal(result, expected, equal_nan=True) and exact.any()
            else:
                assert np.isnan(result).all() if byte == 255 else ((result == expected) | ~np.isfinite(result)).all()


@pytest.mark.parametrize(("M", "row", "B"), [(16, 0, 1), (48, 16, 3), (80, 64, 5), (32, 16, 90)])
def test_convert_rows(M, row, B):
    """Sixteen rows side by side, exactly: bf16, int8."""
    rng, N = np.random.default_rng(M), 32 * B
    tile = np.empty(16 * N, np.float32)

    def converted(weight, scales):
        convert_rows(weight, scales, row, tile)
        return tile.reshape(N, 16).T

    weight = bf16(rng, M, N)
    assert np.array_equal(converted(weight, kernels.NO_SCALES), gptoss.bf16_to_float32(weight)[row : row + 16])
    weight = quantize_int8(weight)
    expected = weight.values * np.repeat(gptoss.bf16_to_float32(weight.scales), 32, axis=1)
    assert np.array_equal(converted(*weight), expected[row : row + 16])


def test_convert_rows_that_are_not_there():
    """Of 19 rows of 75 (int8: a short last block) the second sixteen has three, and the rest of the tile stays."""
    weight, tile = bf16(np.random.default_rng(0), 19, 75), np.full(16 * 75, 7, np.float32)
    convert_rows(weight, kernels.NO_SCALES, 16, tile)
    assert np.array_equal(tile.reshape(75, 16).T[:3], gptoss.bf16_to_float32(weight)[16:])
    weight = quantize_int8(weight)
    assert weight.scales.shape == (19, 3)
    expected = weight.values * np.repeat(gptoss.bf16_to_float32(weight.scales), 32, axis=1)[:, :75]
    convert_rows(*weight, 16, tile)
    assert np.array_equal(tile.reshape(75, 16).T[:3], expected[16:]) and np.all(tile.reshape(75, 16).T[3:] == 7)


def test_transpose():
    """At any address and any stride; 16 bytes are as many numbers as they are."""
    for dtype, L in ((np.uint8, 16), (np.uint16, 8), (np.float32, 4)):
        array, columns = np.arange(1000).astype(dtype), np.empty(16 * L, dtype)
        for i, stride in ((0, 16), (5, 16), (3, 61), (980, 0)):
            transpose(array, i, stride, columns)
            rows = [array[i + r * stride : i + r * stride + L] for r in range(16)]
            assert np.array_equal(columns.reshape(L, 16), np.transpose(rows))


def test_group():
    """Against NumPy's stable sort: some experts for all, some for none."""
    rng = np.random.default_rng(1)
    for T, E, K in ((1, 5, 1), (1, 32, 4), (7, 5, 3), (50, 8, 2), (3, 4, 4)):
        chosen = np.stack([rng.permutation(E)[:K] for _ in range(T)])
        tokens, places, starts, used = kernels.group(chosen, E)
        order = np.argsort(chosen, axis=None, kind="stable")
        assert np.array_equal(tokens, order // K) and np.array_equal(order[places], np.arange(T * K).reshape(T, K))
        assert used == len(np.unique(chosen))
        assert np.array_equal(starts, np.searchsorted(np.sort(chosen, axis=None), np.arange(E + 1)))


@njit
def convert_rows(weight, scales, row, tile):
    kernels.convert_rows(weight, scales, row, tile)


@njit
def load_columns(array, i, stride, columns):
    four = simd.load_columns_u8x32(array, i, stride)
    simd.store(columns, 0, four[0])
    simd.store(columns, 32, four[1])
    simd.store(columns, 64, four[2])
    simd.store(columns, 96, four[3])


def test_load_columns():
    array, columns = np.arange(1000).astype(np.uint8), np.empty(128, np.uint8)
    for i, stride in ((0, 16), (5, 16), (3, 61), (980, 0)):
        load_columns(array, i, stride, columns)
        rows = [array[i + r * stride : i + r * stride + 16].reshape(4, 4) for r in range(8)]
        assert np.array_equal(columns.reshape(4, 8, 4), np.swapaxes(rows, 0, 1))


@njit
def transpose(array, i, stride, columns):
    simd.transpose(array, i, stride, columns)


def rounded(x):
    """What quantize_activations makes of x [J, N], as x stands: integers [J, N], compensation and scales [J, N/32]."""
    parts, compensation, scales = mxfp4.quantize_activations(x)
    n = 256 * parts[:, :, 0].astype(np.int64) + parts[:, :, 1]
    return n.reshape(len(x), -1)[:, [i // 64 * 64 + deinterleaved(i) for i in range(x.shape[1])]], compensation, scales


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1, 1e4, 1e30])
def test_quantize_activations(size):
    """To the nearest of 65,279 steps: half a step off, and 0.004 for float32's rounding of a number near 32,639."""
    rng, most = np.random.default_rng(1), 127 * 256 + 127
    x = normal(rng, 5, 128) * np.float32(size)
    x[2, 32:64] = 0
    x[3, 5] = 100 * size
    n, compensation, scales = rounded(x)
    blocks, n = x.reshape(5, 4, 32).astype(np.float64), n.reshape(5, 4, 32)
    peak = np.abs(blocks).max(-1)
    assert np.array_equal(np.abs(n).max(-1), np.where(peak > 0, most, 0))
    np.testing.assert_allclose(scales, peak / most / 2, rtol=4 * U)
    assert np.array_equal(compensation, -12 * n.sum(-1))
    error = n * (peak / most)[..., None] - blocks
    assert (np.abs(error) <= 0.504 * peak[..., None] / most).all()
    np.testing.assert_array_equal(n[2, 1], 0)


def test_quantize_activations_of_almost_nothing():
    """Where 32639 / peak would overflow all is taken for 0."""
    n, compensation, scales = rounded(np.full((1, 64), 1e-40, np.float32))
    assert not n.any() and not compensation.any() and 0 <= scales[0, 0] <= 1e-44


def test_swiglu():
    """exp's argument 1.702 x is rounded, which exp turns into a relative error of |1.702 x| U: 1e-5 at x = -60."""
    values = np.r_[-60:60:0.37, -1000, -7, 7, 0, 1000, -1e-30, np.inf, np.nan].astype(np.float32)
    gate, up = (part.reshape(-1) for part in np.meshgrid(values, np.r_[values, -np.inf]))
    with np.errstate(over="ignore"):
        expected = gptoss.swiglu(np.stack([gate, up], axis=-1).reshape(-1), 7.0)
    found = np.array([mxfp4.swiglu(g, u, np.float32(7)) for g, u in zip(gate, up, strict=True)], np.float32)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-37)
    assert np.isnan(found[np.isnan(gate) | np.isnan(up)]).all()


# ---- linear ---------------------------------------------------------------------------------------------------------

LINEAR = [(M, N) for M, N in [(1, 32), (3, 7), (17, 1), (15, 33), (16, 96), (50, 75), (131, 160), (7, 2880)]]


@pytest.mark.parametrize(("M", "N"), LINEAR)
def test_linear(M, N):
    rng = np.random.default_rng(N)
    weight, bias = bf16(rng, M, N), bf16(rng, M)
    for T, b in itertools.product(TOKENS, (None, bias)):
        x = normal(rng, T, N)
        for w in (weight, quantize_int8(weight)):
            found, expected = kernels.linear(x, w, b), gptoss.linear(x, w, b)
            # A result of a few numbers may be small by chance where its terms are not: the norm of the terms then.
            norms = np.linalg.norm(gptoss.bf16_to_float32(weight), axis=1)
            terms = np.linalg.norm(np.linalg.norm(x, axis=1)[:, None] * norms)
            close(found, expected, 2 * np.sqrt(N + 1) * U * max(1, terms / np.linalg.norm(expected)))


@pytest.mark.parametrize(("M", "N"), LINEAR)
def test_linear_in_integers_is_exact(M, N):
    """Sums of integers below 2^24: any order gives the same bits, so a missing or doubled term cannot hide."""
    rng = np.random.default_rng(N)
    integers = rng.integers(-7, 8, (M, N)).astype(np.float32)
    weight, bias = frozen(float32_to_bf16(integers)), frozen(float32_to_bf16(rng.integers(-9, 9, M).astype(np.float32)))
    scales = np.ldexp(np.float32(1), rng.integers(-2, 3, (M, -(-N // 32)))).astype(np.float32)
    quantized = Int8(integers.astype(np.int8), float32_to_bf16(scales))
    for T in TOKENS:
        x = rng.integers(-60, 61, (T, N)).astype(np.float32)
        exact = x.astype(np.float64) @ integers.T + gptoss.bf16_to_float32(bias)
        assert np.array_equal(kernels.linear(x, weight, bias), exact)
        assert np.array_equal(gptoss.linear(x, weight, bias), exact)
        exact = x.astype(np.float64) @ (integers * np.repeat(scales, 32, axis=1)[:, :N]).T
        assert np.array_equal(kernels.linear(x, quantized), exact)
        assert np.array_equal(gptoss.linear(x, quantized), exact)


def test_linear_at_the_edges_of_tiles():
    """Sixteen rows and four tokens at a time."""
    rng, N = np.random.default_rng(3), 40
    for M, T in itertools.product((1, 15, 16, 17, 31, 32, 33, 100), range(FEW + 1, FEW + 5)):
        weight, x = rng.integers(-7, 8, (M, N)).astype(np.float32), rng.integers(-9, 9, (T, N)).astype(np.float32)
        assert np.array_equal(kernels.linear(x, frozen(float32_to_bf16(weight))), x @ weight.T)
        ones = float32_to_bf16(np.ones((M, 2)))
        assert np.array_equal(kernels.linear(x, Int8(weight.astype(np.int8), ones)), x @ weight.T)


def test_linear_of_mapped_rows_and_strided_x(tmp_path):
    """The original layout has q, k and v in one tensor, so a weight is a slice of a mapped file's rows."""
    rng = np.random.default_rng(4)
    bf16(rng, 30, 64).tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", np.uint16, mode="r", shape=(30, 64))
    q, k, v = np.split(mapped, [17, 24])
    for T, w in itertools.product((3, 11), (q, k, v)):
        wide = normal(rng, T, 128)
        for x in (wide[:, ::2], wide[:, 5:69], np.asfortranarray(wide[:, :64])):
            found, expected = kernels.linear(x, w), gptoss.linear(x, w)
            close(found, expected, 2 * np.sqrt(64) * U)


# ---- The small ones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "N"), [(1, 7), (2, 32), (9, 75), (1, 2880)])
def test_rms_norm(T, N):
    """A sum of N squares, all of one sign: about sqrt(N) U off in each twin, half of that after the root."""
    rng = np.random.default_rng(N)
    x, weight = normal(rng, T, N), normal(rng, N)
    x[-1] *= 1e-4  # where eps counts
    found, expected = (o.rms_norm(x, weight, 1e-5) for o in (kernels, gptoss))
    close(found, expected, (np.sqrt(N) + 4) * U)
    assert not kernels.rms_norm(np.zeros((1, N), np.float32), weight, 1e-5).any()
    x[0, 3] = np.nan
    assert np.isnan(kernels.rms_norm(x, weight, 1e-5)).all(axis=1).tolist() == [True] + [False] * (T - 1)


@pytest.mark.parametrize(("T", "heads", "D"), [(1, 3, 2), (5, 1, 10), (4, 8, 64)])
def test_rotate(T, heads, D):
    """Two products and a sum: two roundings in each twin."""
    rng = np.random.default_rng(D)
    x, angles = normal(rng, T, heads, D), normal(rng, T, 1, D // 2)
    cos, sin = np.cos(angles) * np.float32(1.3), np.sin(angles) * np.float32(1.3)
    found, expected = (o.rotate(x, cos, sin) for o in (kernels, gptoss))
    close(found, expected, 4 * U)


@pytest.mark.parametrize(("T", "E", "K"), [(1, 32, 4), (7, 5, 5), (50, 8, 1), (3, 128, 4)])
def test_route(T, E, K):
    """The same experts in the same order, of equal scores the first; nan last, so that a broken score shows."""
    logits = np.random.default_rng(E).integers(-3, 4, (T, E)).astype(np.float32) / 2
    logits[0, 1] = np.nan
    (chosen, weights), (expected, exact) = (o.route(logits, K) for o in (kernels, gptoss))
    assert np.array_equal(chosen, expected) and weights.dtype == np.float32
    np.testing.assert_allclose(weights, exact, rtol=(K + 4) * U)
    assert np.allclose(weights[1:].sum(axis=1), 1)


# ---- experts --------------------------------------------------------------------------------------------------------
# x and then h are rounded to int16 with a step of 1/32639 of their block's peak. An error of at most half a step,
# evenly spread, is step / sqrt(12); a peak is at most sqrt(32) of its block's root mean square. So each rounding leaves
# at most sqrt(32) / 32639 / sqrt(12) = 5e-5 of the norm. The first is at most doubled on its way through SwiGLU (a
# product of two factors that both depend on x): sqrt(2^2 + 1) * 5e-5.
TOLERANCE = 1.1e-4


def expert_layer(rng, E, N, F, **scales):
    return SimpleNamespace(gate_up=packed(rng, E, 2 * F, N, **scales), gate_up_bias=bf16(rng, E, 2 * F),
                           down=packed(rng, E, N, F, **scales), down_bias=bf16(rng, E, N))


EXPERTS = [(32, 64, 3, 2), (64, 32, 2, 1), (96, 64, 7, 4), (160, 96, 5, 3),  # an odd number of blocks: never streamed
           (192, 64, 7, 4), (320, 128, 5, 3), (64, 832, 6, 6), (2880, 1408, 3, 2)]


@pytest.fixture(params=["streamed", "converted"])
def path(request, monkeypatch):
    """Forces one of the two ways: the faster is chosen by how many tokens an expert has on average."""
    monkeypatch.setattr(kernels, "FEW_MXFP4", 10**9 if request.param == "streamed" else 0)


@pytest.mark.parametrize(("N", "F", "E", "K"), EXPERTS)
def test_experts(N, F, E, K, path):
    rng = np.random.default_rng(N)
    layer = expert_layer(rng, E, N, F)
    for T in TOKENS:
        x = normal(rng, T, N)
        chosen, weights = gptoss.route(normal(rng, T, E), K)
        found, expected = (o.experts(x, chosen, weights, layer, 7.0) for o in (kernels, gptoss))
        close(found, expected, TOLERANCE)


@pytest.mark.parametrize("T", [1, 3, 4, 9])
def test_experts_one_for_all_and_some_for_none(T, path):
    rng = np.random.default_rng(T)
    layer = expert_layer(rng, 6, 192, 64)
    x, weights = normal(rng, T, 192), np.tile(np.float32([0.7, 0.3]), (T, 1))
    for pick in ([0, 5], [5, 0], [3, 2]):
        chosen = np.tile(pick, (T, 1))
        found, expected = (o.experts(x, chosen, weights, layer, 7.0) for o in (kernels, gptoss))
        close(found, expected, TOLERANCE)
    alone = [kernels.experts(x[t : t + 1], chosen[:1], weights[:1], layer, 7.0)[0] for t in range(T)]
    close(np.stack(alone), expected, TOLERANCE)


def test_experts_choose_their_path(monkeypatch):
    """Streamed for up to FEW_MXFP4 tokens of an expert on average, of those that have any; and in pairs of blocks. The
    two paths sum in another order, so the last bits tell which it was."""
    rng = np.random.default_rng(5)
    for T, N, F, streamed in ((FEW_MXFP4, 64, 128, True), (FEW_MXFP4 + 1, 64, 128, False), (1, 96, 128, False),
                              (1, 64, 160, False)):
        layer, x = expert_layer(rng, 5, N, F), normal(rng, T, N)
        chosen, weights = np.tile([4, 2], (T, 1)), np.full((T, 2), 0.5, np.float32)
        found, ways = kernels.experts(x, chosen, weights, layer, 7.0), {}
        for few in (0, 10**9):
            with monkeypatch.context() as patch:
                patch.setattr(kernels, "FEW_MXFP4", few)
                ways[few > 0] = kernels.experts(x, chosen, weights, layer, 7.0)
        assert np.array_equal(found, ways[streamed])
        assert np.array_equal(ways[True], ways[False]) == (N % 64 + F % 64 > 0)  # where there is but one way


@pytest.mark.parametrize("limit", [0.05, 0.5, 1e6])
def test_experts_clamp(limit, path):
    """Gate above, up on both sides: most of them at the limit, or none."""
    rng = np.random.default_rng(6)
    layer = expert_layer(rng, 3, 192, 64)
    for T in (2, 9):
        x, (chosen, weights) = 3 * normal(rng, T, 192), gptoss.route(normal(rng, T, 3), 2)
        found, expected = (o.experts(x, chosen, weights, layer, limit) for o in (kernels, gptoss))
        close(found, expected, TOLERANCE)


def test_experts_at_odd_addresses(path):
    """Bytes have no alignment: packed weights may begin anywhere in a file."""
    rng = np.random.default_rng(8)
    layer = expert_layer(rng, 3, 192, 64)
    moved = SimpleNamespace(**vars(layer))
    for field in ("gate_up", "down"):
        parts = []
        for part in getattr(layer, field):
            room = np.empty(part.size + 1, np.uint8)
            room[1:] = part.reshape(-1)
            parts.append(frozen(room)[1:].reshape(part.shape))
            assert parts[-1].ctypes.data % 2
        setattr(moved, field, MXFP4(*parts))
    for T in (3, 9):
        x, (chosen, weights) = normal(rng, T, 192), gptoss.route(normal(rng, T, 3), 2)
        found, expected = (kernels.experts(x, chosen, weights, w, 7.0) for w in (moved, layer))
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("T", [2, 9])
def test_experts_do_not_hide_nan(T, path):
    """A scale byte of 255 in either projection, or a broken x, shows in every output that depends on it, only there."""
    rng = np.random.default_rng(9)
    layer = expert_layer(rng, 3, 64, 192)

    def broken(weight, row):
        scales = weight.scales.copy()
        scales[1, row, 1] = 255  # of expert 1
        return MXFP4(weight.blocks, frozen(scales))

    def nan_at(x, layer):
        y = kernels.experts(x, chosen, np.full((T, 2), 0.5, np.float32), layer, 7.0)
        return np.argwhere(~np.isfinite(y)).tolist()

    chosen = np.tile([0, 2], (T, 1))
    chosen[1] = [1, 0]
    x, whole_row = normal(rng, T, 64), [[1, n] for n in range(64)]
    assert nan_at(x, layer) == []
    assert nan_at(x, SimpleNamespace(**vars(layer) | {"down": broken(layer.down, 5)})) == [[1, 5]]
    assert nan_at(x, SimpleNamespace(**vars(layer) | {"gate_up": broken(layer.gate_up, 11)})) == whole_row
    for value in (np.nan, np.inf, -np.inf):
        x[1, 7] = value
        assert nan_at(x, layer) == whole_row


# ---- attention ------------------------------------------------------------------------------------------------------
# A score is a sum of D products: sqrt(D) U of its size, say of the greatest one, M; exp makes that a relative error of
# the probability, and of its part in the weighted sum of values, which has sqrt(S) U of its own. Hence
# 2 U (M sqrt(D) + sqrt(S)), with M at least 1.


def attention_case(rng, T, S, H, G, D, window, *, dtype="bfloat16", size=1.0, sinks=None):
    q, k, v = size * normal(rng, T, H, D), normal(rng, G, S, D), normal(rng, G, S, D)
    if dtype == "bfloat16":
        k, v = float32_to_bf16(k), float32_to_bf16(v)
    sinks = bf16(rng, H) if sinks is None else frozen(float32_to_bf16(np.float32(sinks)))
    found, expected = (o.attention(q, k, v, sinks, window) for o in (kernels, gptoss))
    scores = np.einsum("tgrd,gsd->tgrs", q.reshape(T, G, H // G, D), gptoss.bf16_to_float32(k)) / np.sqrt(D)
    close(found, expected, 2 * U * (max(1, np.abs(scores).max()) * np.sqrt(D) + np.sqrt(S)))
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("window", [1, 2, 7, KEYS - 1, KEYS, KEYS + 1, 2 * KEYS, 10**6])
def test_attention(window, dtype):
    rng = np.random.default_rng(window)
    near = {w + d for w in (window, KEYS, 2 * KEYS) for d in (-1, 0, 1)} | {1, 2, 3 * window + 1, 5 * KEYS + 3}
    for S in sorted(s for s in near if 1 <= s <= 200):
        for T in sorted({1, 2, FEW + 1, S // 2, S - 1, S} - {0}):
            if T <= S:
                attention_case(rng, T, S, 6, 2, 10, window, dtype=dtype)


@pytest.mark.parametrize(("H", "G", "D"), [(1, 1, 2), (3, 3, 8), (5, 1, 16), (8, 2, 64), (12, 4, 33), (64, 8, 64)])
def test_attention_heads(H, G, D):
    """Query head h belongs to key/value head h // (H/G): one, several or all heads to each."""
    rng = np.random.default_rng(H)
    for T, S, window in ((1, 9, 5), (4, 70, 50), (37, 41, 128), (45, 45, 11)):
        attention_case(rng, T, S, H, G, D, window)


@pytest.mark.parametrize("size", [0.0, 1e-6, 10.0, 60.0])
def test_attention_with_large_scores(size):
    """Scores up to 150 either way: exp without a peak taken off would overflow at 89."""
    rng = np.random.default_rng(11)
    for T, S in ((1, 100), (50, 70)):
        assert np.isfinite(attention_case(rng, T, S, 6, 2, 10, 40, size=size)).all()


@pytest.mark.parametrize("sink", [-300.0, -80.0, 20.0, 80.0])
def test_attention_sinks(sink):
    """A sink far below is no sink; far above it takes nearly everything: the values' share is e^-80."""
    rng = np.random.default_rng(12)
    for T, S in ((1, 100), (50, 70)):
        found = attention_case(rng, T, S, 6, 2, 10, 40, sinks=[sink] * 6)
        assert np.all(found != 0)
        attention_case(rng, T, S, 6, 2, 10, 40, sinks=[sink, 0, -sink, 1, sink, 2])
        attention_case(rng, T, S, 6, 2, 10, 40, sinks=[-sink] * 6, size=30.0)


def test_attention_where_the_peak_comes_late_or_early():
    """The greatest score in the last step, in the first, or behind the window, where it must not count."""
    rng = np.random.default_rng(13)
    S, window = 4 * KEYS + 5, 3 * KEYS + 2
    for slot in (0, S - window - 1, S - window, KEYS, S - 1):
        q, k, v = np.ones((1, 3, 8), np.float32), 0.1 * normal(rng, 1, S, 8), normal(rng, 1, S, 8)
        k[0, slot] = 20
        sinks = bf16(rng, 3)
        found, expected = (o.attention(q, k, v, sinks, window) for o in (kernels, gptoss))
        close(found, expected, 2 * U * (57 * np.sqrt(8) + np.sqrt(S)))  # 8 * 20 / sqrt(8) = 57
        if slot >= S - window:
            np.testing.assert_allclose(found, np.broadcast_to(v[0, slot], found.shape), rtol=1e-5)
        else:
            assert np.abs(found).max() < 1


def test_attention_does_not_hide_nan():
    """A broken query shows in its own output, a broken key or value in the queries and heads that see it; only there. A
    broken value also in queries that meet it masked, in the same step: 0 times nan is nan. (So it is in the twin, for
    which all queries are one step.)"""
    rng, window, at = np.random.default_rng(17), 9, 50
    sinks = bf16(rng, 6)
    for broken in ("q", "k", "v"):
        arrays = {"q": normal(rng, 99, 6, 10), "k": normal(rng, 2, 99, 10), "v": normal(rng, 2, 99, 10)}
        arrays[broken][(at, 1) if broken == "q" else (1, at)] = np.nan
        expected = np.zeros((99, 6), bool)  # [T, H]
        if broken == "q":
            expected[at, 1] = True
        else:
            expected[at : at + window, 3:] = True  # heads 3 to 5 share key/value head 1
        found = np.isnan(kernels.attention(*arrays.values(), sinks, window))
        expected = np.broadcast_to(expected[..., None], found.shape)
        if broken == "v":
            assert found[expected].all() and not found[:, :3].any() and not found[: at - KEYS].any()
            assert not found[at + window + KEYS :].any()
        else:
            assert np.array_equal(found, expected), broken


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_attention_over_the_cache(dtype):
    """Keys and values as the model passes them: views of the cache's arrays, which are longer than what is seen."""
    rng = np.random.default_rng(14)
    config = SimpleNamespace(num_key_value_heads=2, head_dim=10, num_hidden_layers=2, max_position_embeddings=10**6)
    cache, sinks = gptoss.KVCache(SimpleNamespace(config=config), dtype), bf16(rng, 6)
    for T in (1, 6, 1, 1, 40, 1, 33, 2):
        for i, window in ((0, 10**6), (1, 7)):
            kv = cache.extend(i, T)
            k, v = kv[:, :, -(window + T - 1) :]
            q, new = normal(rng, T, 6, 10), normal(rng, 2, T, 2, 10)
            gptoss.store_kv(kv[:, :, -T:], *new)
            expected = kv[:, :, -T:].copy()
            kv[:, :, -T:] = 0
            kernels.store_kv(kv[:, :, -T:], *new)
            assert np.array_equal(kv[:, :, -T:], expected)
            found, expected = (o.attention(q, k, v, sinks, window) for o in (kernels, gptoss))
            close(found, expected, 2 * U * (6 * np.sqrt(10) + np.sqrt(k.shape[1])))
        cache.length += T


# ---- The same numbers each time, with any number of threads, on any processor ---------------------------------------


def all_operations():
    """{name: result} of every operation and path, for fixed inputs."""
    rng = np.random.default_rng(15)
    weight, layer, sinks = bf16(rng, 133, 192), expert_layer(rng, 5, 192, 64), bf16(rng, 6)
    results = {}
    for T in (1, 3, 40):
        x, (chosen, weights) = normal(rng, T, 192), kernels.route(normal(rng, T, 5), 2)
        results[f"route, {T}"] = weights
        results[f"rms_norm, {T}"] = kernels.rms_norm(x, x[0], 1e-5)
        results[f"linear, bf16, {T}"] = kernels.linear(x, weight)
        results[f"linear, int8, {T}"] = kernels.linear(x, quantize_int8(weight))
        results[f"experts, {T}"] = kernels.experts(x, chosen, weights, layer, 7.0)
        q, (k, v) = normal(rng, T, 6, 10), float32_to_bf16(normal(rng, 2, 2, 80, 10))
        results[f"attention, {T}"] = kernels.attention(q, k, v, sinks, 50)
    return results


def exact_dots():
    """Products with MXFP4 where they are exact (see test_products_with_mxfp4): the same bits from any instructions."""
    rng, B = np.random.default_rng(16), 4
    peak = 2**24 // (32 * 24 * B)
    w, n = packed(rng, 64, 32 * B, low=127, high=128), rng.integers(-peak, peak + 1, (64, 32 * B))
    (x, compensation), halves = in_bytes(n), np.full(64 * B, 0.5, np.float32)
    dots = [dot_mxfp4(*w, j, x, compensation, halves, j, B) for j in range(64)]
    products, exact = multiply_mxfp4(*w, x, compensation, halves), dequantize(w).astype(np.float64) @ n.T
    assert np.array_equal(dots, np.diag(exact)) and np.array_equal(products, exact)
    return {"dots": np.float32(dots), "products": products}


def assembly():
    """What dot_mxfp4 is compiled to here and now (a function from the cache does not say)."""
    dot = njit(fastmath=compiled.FASTMATH)(mxfp4.dot_mxfp4.py_func)
    dot(np.zeros(32, np.uint8), np.zeros(2, np.uint8), 0, np.zeros(128, np.int8), np.zeros(2, np.int32),
        np.zeros(2, np.float32), 0, 2)
    return "\n".join(dot.inspect_asm().values())


def elsewhere(path, **environment):
    """all_operations() and exact_dots() of a process with that environment, and its assembly."""
    tests = Path(__file__).resolve().parent
    program = ("import sys, numpy, test_kernels as t\n"
               "numpy.savez(sys.argv[1], assembly=t.assembly(), **t.all_operations(), **t.exact_dots())")
    env = os.environ | environment | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    done = subprocess.run([sys.executable, "-c", program, path], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = dict(np.load(path))
    return results, str(results.pop("assembly"))


def test_same_result_twice():
    first, again = all_operations(), all_operations()
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_same_result_with_any_number_of_threads(tmp_path):
    here = all_operations() | exact_dots()
    for n in (1, 2, 3):
        there, _ = elsewhere(tmp_path / f"{n}.npz", NUMBA_NUM_THREADS=str(n))
        assert here.keys() == there.keys()
        for name in here:
            assert np.array_equal(here[name], there[name]), (name, n)
    before = numba.get_num_threads()
    try:
        for n in range(1, before + 1):
            numba.set_num_threads(n)
            assert all(np.array_equal(result, here[name]) for name, result in all_operations().items())
    finally:
        numba.set_num_threads(before)


PROCESSORS = {  # NUMBA_CPU_NAME, NUMBA_CPU_FEATURES, instructions that dot_mxfp4 has, and that it has not
    "plain": ("generic", "", [], ["pshufb", "ymm"]),
    "AVX2": ("haswell", "+avx,+avx2,+fma,+f16c,+bmi,+bmi2", ["vpshufb", "vpmaddubsw", "vpmaddwd"], ["vpdpbusd", "zmm"]),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_other_processors(kind, tmp_path):
    """look_up and dot have a way for each kind of processor. All come to the same, as compiled for the lesser ones."""
    name, features, has, has_not = PROCESSORS[kind]
    ours = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    if kind == "AVX2" and "+avx2" not in ours:
        assert "pshufb" not in assembly()  # this processor cannot run it, and does not
        return
    here = all_operations() | exact_dots()
    there, code = elsewhere(tmp_path / "there.npz", NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    assert all(x in code for x in has) and not any(x in code for x in has_not)
    assert ("vpdpbusd" in assembly()) == ({"+avx512vnni", "+avx512vl"} <= set(ours))
    for name in ("dots", "products"):
        assert np.array_equal(here[name], there[name])
    for name in here:  # the order of sums differs with the width of vectors
        close(there[name], here[name], 2 * U * (2 * np.sqrt(192) + np.sqrt(64)))
