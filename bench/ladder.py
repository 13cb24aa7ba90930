"""The ladder: one MXFP4 matrix-vector product, from a plain loop to the memory's limit. Chapter 11 of docs/ climbs it.

    python -m bench.ladder                          measure every rung, on one thread and on all of them
    python -m bench.ladder --picture ladder.svg     and draw them under the roofline
    python -m bench.ladder --rows 1600              quick; but so few rows stay in a cache, and the figures mean little

A rung is a function that multiplies one row of packed weights by x; all else is the same for all of them. Each is
compared with the exact product before it is timed. The model uses nothing of this file: its own kernel is the rung
"fetched ahead", imported from mxfp4.py. Letters: M rows, N weights a row, B = N/32 blocks a row, T tokens.
"""

if __name__ == "__main__":
    import program

    program.begin()

import math
import re
import sys
import time
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from threadpoolctl import threadpool_limits

import mxfp4
import program
import simd
from bench.measure import machine
from checkpoint import E2M1, MXFP4, bf16_to_float32, dequantize
from compiled import FASTMATH
from kernels import stream_rows
from mxfp4 import dot_mxfp4, multiply_mxfp4, quantize_activations
from simd import F32X16, I32X16, U8X32, ZERO_POINT, f32x16, i8x32, operation, shuffle, u8x32

jit, parallel_jit = njit(fastmath=FASTMATH), njit(parallel=True, fastmath=FASTMATH)  # not kept on disk
inline_jit = njit(fastmath=FASTMATH, forceinline=True)
ALL = numba.get_num_threads()
TOKENS = 64  # at once, at the end: what an expert sees of a prompt of 512 tokens, on average
RUNS, SECONDS = 15, 0.5  # the best of so many, or of those that the time allows
PACKED = 17 / 32  # bytes of a weight: half a one, and a share of the scale
LIMIT, KERNEL = "bf16, plain loop", "fetched ahead"


# ---- The product in NumPy, and row by row ---------------------------------------------------------------------------


def numpy_product(blocks, scales, x, y):
    """y [M] = W @ x as gptoss.py does it: all of W becomes float32 in memory (here 1000 rows at a time) and is read."""
    for m in range(0, len(y), 1000):
        y[m : m + 1000] = dequantize(MXFP4(blocks[m : m + 1000], scales[m : m + 1000])) @ x


def interpreted(rung):
    """The product that calls a rung for each row, in plain Python."""

    def product(blocks, scales, x, y):
        for row in range(len(y)):
            y[row] = rung(blocks.reshape(-1), scales.reshape(-1), row, x, scales.shape[1])

    return product


def compiled(rung):
    """The same compiled, the rows dealt out to all threads."""

    @parallel_jit
    def product(blocks, scales, x, y):
        B = scales.shape[1]
        blocks, scales = blocks.reshape(-1), scales.reshape(-1)
        for row in prange(len(y)):
            y[row] = rung(blocks, scales, row, x, B)

    return product


# ---- The rungs: row `row` of packed weights times x; blocks [M * B * 16], scales [M * B], both flat ------------------
# From dot_vectors on B must be even. x [N] is an array, or where it is rounded a tuple; see the end of this section.


@jit
def e8m0(byte):
    """2^(byte - 127) as float32: the byte is the exponent. 0 is the subnormal 2^-127, 255 is nan."""
    byte = np.uint32(byte)
    bits = max(byte << np.uint32(23), np.uint32(1 << 22)) | ((byte + np.uint32(1)) >> np.uint32(8))
    return np.uint32(bits).view(np.float32)


@jit
def dot_plain(blocks, scales, row, x, B):
    total = np.float32(0)
    for b in range(B):
        block = np.float32(0)
        for i in range(16):
            byte = blocks[16 * (row * B + b) + i]
            block += E2M1[byte & 15] * x[32 * b + 2 * i]
            block += E2M1[byte >> 4] * x[32 * b + 2 * i + 1]
        total += block * e8m0(scales[row * B + b])
    return total


def dot_slices(e2m1, unit):
    """e2m1(code) * unit is what a code stands for. Numba takes a negative index as NumPy does, and must ask of each
    whether it is one. Counting from 0 in a slice it need not; so where e2m1 is arithmetic, LLVM makes vector code."""

    @jit
    def dot(blocks, scales, row, x, B):
        total = np.float32(0)
        for b in range(B):
            block, at = np.float32(0), 16 * (row * B + b)
            packed, part = blocks[at : at + 16], x[32 * b : 32 * b + 32]
            for i in range(16):
                block += e2m1(packed[i] & np.uint8(15)) * part[2 * i]
                block += e2m1(packed[i] >> np.uint8(4)) * part[2 * i + 1]
            total += block * (e8m0(scales[row * B + b]) * unit)
        return total

    return dot


@jit
def e2m1_from_table(code):
    return E2M1[code]


@jit
def e2m1_as_float32(code):
    """Sign, exponent and mantissa moved to where float32 has them: right but for a factor of 2^126."""
    code = np.uint32(code)
    bits = np.uint32((code & np.uint32(8)) << np.uint32(28) | (code & np.uint32(7)) << np.uint32(22))
    return bits.view(np.float32) * np.float32(2.0**126)  # at once: the code 1 is a subnormal there


@jit
def e2m1_as_float16(code):
    """The same in the bits of a float16, which the processor then converts: a factor of 2^14 is missing."""
    code = np.uint16(code)
    return float16_to_float32(np.uint16((code & np.uint16(8)) << np.uint16(12) | (code & np.uint16(7)) << np.uint16(9)))


@operation(types.float32, types.uint16)
def float16_to_float32(llvm, bits):
    """The bits of a float16 -> float32 (vcvtph2ps on x86)."""
    return llvm.fpext(llvm.bitcast(bits, ir.HalfType()), simd.F32)


@operation(i8x32, u8x32)
def subtract_zero_point(llvm, v):
    """What simd.look_up_e2m1 gives, as numbers with a sign."""
    return llvm.sub(v, simd.constant(U8X32, ZERO_POINT))


@inline_jit
def unpack(blocks, at):
    """The two blocks at `at` -> their even and their odd weights, doubled, int8[32] each."""
    packed = simd.load_u8x32(blocks, at)
    even, odd = simd.look_up_e2m1(simd.low_nibbles(packed)), simd.look_up_e2m1(simd.high_nibbles(packed))
    return subtract_zero_point(even), subtract_zero_point(odd)


@jit
def dot_vectors(blocks, scales, row, x, B):
    total, half = simd.zeros_f32x16(), np.float32(0.5)  # half undoes the doubling in unpack
    for b in range(0, B, 2):
        even, odd = unpack(blocks, 16 * (row * B + b))
        one = simd.mul(simd.low_half_to_float32(even), simd.load_f32x16(x, 32 * b))
        two = simd.mul(simd.high_half_to_float32(even), simd.load_f32x16(x, 32 * b + 16))
        one = simd.fma(simd.low_half_to_float32(odd), simd.load_f32x16(x, 32 * b + 32), one)
        two = simd.fma(simd.high_half_to_float32(odd), simd.load_f32x16(x, 32 * b + 48), two)
        total = simd.fma(one, simd.splat_f32x16(e8m0(scales[row * B + b]) * half), total)
        total = simd.fma(two, simd.splat_f32x16(e8m0(scales[row * B + b + 1]) * half), total)
    return simd.reduce_add(total)


i16x32 = simd.Vector(types.int16, 32)
load_i16x32 = simd.make_load(i16x32)


@jit
def dot_int16(blocks, scales, row, x, B):
    (n, x_scales), total = x, simd.zeros_f32x16()
    for b in range(0, B, 2):
        even, odd = unpack(blocks, 16 * (row * B + b))
        sums = multiply_add(even, load_i16x32(n, 32 * b), odd, load_i16x32(n, 32 * b + 32))
        one = simd.splat_f32x16(e8m0(scales[row * B + b]) * x_scales[b])
        two = simd.splat_f32x16(e8m0(scales[row * B + b + 1]) * x_scales[b + 1])
        total = simd.fma(sums, halves(one, two), total)
    return simd.reduce_add(total)


@operation(f32x16, i8x32, i16x32, i8x32, i16x32)
def multiply_add(llvm, w, x, v, y):
    """w[2i] x[2i] + w[2i+1] x[2i+1], and the same of v and y, for i from 0 to 15."""
    i32x32 = ir.VectorType(simd.I32, 32)
    products = [llvm.mul(llvm.sext(a, i32x32), llvm.sext(b, i32x32)) for a, b in ((w, x), (v, y))]
    pairs = [llvm.add(shuffle(llvm, p, range(0, 32, 2)), shuffle(llvm, p, range(1, 32, 2))) for p in products]
    return llvm.sitofp(llvm.add(*pairs), F32X16)


@operation(f32x16, f32x16, f32x16)
def halves(llvm, a, b):
    """The first eight lanes of a, the last eight of b."""
    return llvm.shuffle_vector(a, b, simd.constant(I32X16, [*range(8), *range(24, 32)]))


def kernel(**others):
    """The model's kernel; or with other functions in the place of those that it calls by these names."""
    changed_simd = ModuleType("simd")
    vars(changed_simd).update(vars(simd) | others)
    names = vars(mxfp4) | others | {"simd": changed_simd}
    dot_row = inline_jit(FunctionType(dot_mxfp4.py_func.__code__, names)) if others else dot_mxfp4

    @inline_jit
    def dot_kernel(blocks, scales, row, x, B):
        n, compensation, x_scales = x
        return dot_row(blocks, scales, row, n, compensation, x_scales, 0, B)

    return dot_kernel


@inline_jit
def no_prefetch(array, i):
    pass


@inline_jit
def two_blocks_int8(blocks, w, x, at):
    """mxfp4.two_blocks for an x of one byte: without the low ones."""
    packed = simd.load_u8x32(blocks, w)
    even, odd = simd.look_up_e2m1(simd.low_nibbles(packed)), simd.look_up_e2m1(simd.high_nibbles(packed))
    sums = simd.dot(simd.zeros_i32x8(), even, simd.load_i8x32(x, at), odd, simd.load_i8x32(x, at + 32))
    return simd.int32_to_float32(sums)


# What a rung wants x [N] to be: in what order, and where it is rounded the integers with what undoes the rounding.


def as_it_is(x):
    return x


def as_unpacked(x):
    return x.reshape(-1, 32, 2).swapaxes(1, 2).reshape(-1)


def in_two_bytes(x):
    return tuple(part.reshape(-1) for part in quantize_activations(x[None]))


def in_int16(x):
    n, _, scales = in_two_bytes(x)
    n = n.astype(np.int16).reshape(-1, 2, 64)
    return (256 * n[:, 0] + n[:, 1]).reshape(-1), scales


def in_int8(x):
    step = np.abs(x).reshape(-1, 32).max(axis=1) / np.float32(127)
    n = np.rint(x / np.repeat(np.where(step == 0, 1, step), 32)).astype(np.int8)
    compensation = -ZERO_POINT * n.reshape(-1, 32).sum(axis=1, dtype=np.int32)  # see mxfp4.quantize_row
    bytes_of_blocks = np.repeat(as_unpacked(n).reshape(-1, 1, 64), 2, axis=1)  # the kernel steps over low bytes
    return bytes_of_blocks.reshape(-1), compensation, step * np.float32(0.5)


# ---- The ladder -----------------------------------------------------------------------------------------------------


class Rung(NamedTuple):
    name: str
    product: object
    prepare: object = as_it_is
    steps: float = math.inf  # x is rounded to so many steps between 0 and a block's largest
    rows: int = sys.maxsize  # of a slow rung only the first rows
    threads: bool = True

    def tolerance(self, N):
        """Of the error, relative to the result, both root mean square.

        A float32 sum of N terms, one after the other, is off by 2^-24 * sqrt(N / 6); we allow sqrt(N). Rounding to
        steps of size s is off by s / sqrt(12), and the largest of 32 numbers is at most sqrt(32) times their size.
        """
        return 2**-24 * math.sqrt(N) + math.sqrt(32 / 12) / self.steps


STEPS = 127 * 256 + 127
RUNGS = [
    Rung("plain Python", interpreted(dot_plain.py_func), rows=100, threads=False),
    Rung("NumPy", numpy_product, threads=False),
    Rung("plain loop", compiled(dot_plain)),
    Rung("slices", compiled(dot_slices(e2m1_from_table, np.float32(1)))),
    Rung("through float32 bits", compiled(dot_slices(e2m1_as_float32, np.float32(1)))),
    Rung("through float16 bits", compiled(dot_slices(e2m1_as_float16, np.float32(2.0**14)))),
    Rung("vectors by hand", compiled(dot_vectors), as_unpacked),
    Rung("int16 activations", compiled(dot_int16), in_int16, STEPS),
    Rung("int16 in two bytes", compiled(kernel(prefetch=no_prefetch)), in_two_bytes, STEPS),
    Rung(KERNEL, compiled(kernel()), in_two_bytes, STEPS),
    Rung("int8 activations", compiled(kernel(two_blocks=two_blocks_int8)), in_int8, 127),
]


# ---- Measuring ------------------------------------------------------------------------------------------------------


def random_weights(M, N, rng):
    """Packed weights of M rows, with scales of 2^-9 to 2^-2."""
    blocks = np.frombuffer(rng.bytes(M * N // 2), np.uint8).reshape(M, N // 32, 16)
    return MXFP4(blocks, rng.integers(118, 126, (M, N // 32), dtype=np.uint8))


def exact_product(weight, x):
    """x [T, N] @ weight [M, N]^T in float64 -> [T, M], 1000 rows at a time."""
    y = np.empty((len(x), len(weight.scales)))
    for m in range(0, y.shape[1], 1000):
        y[:, m : m + 1000] = x.astype(np.float64) @ dequantize(MXFP4(*(part[m : m + 1000] for part in weight))).T
    return y


def error_of(name, y, exact, tolerance):
    """The relative error of y; one that is too large is not worth timing."""
    error = np.sqrt(np.mean(np.square(y - exact)) / np.mean(np.square(exact)))
    if not error <= tolerance:
        raise ValueError(f"rung {name!r}: expected a relative error of at most {tolerance:.1e}, found {error:.1e}")
    return error


def best_time(work):
    times, end = [], time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end and len(times) < RUNS:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def climb(M, N):
    """Measure rungs and limits -> {name: (error, {threads: bytes a second})}, matmul {threads: FLOP a second}, and
    what many tokens at once come to: (error, FLOP a second)."""
    rng = np.random.default_rng(0)
    weight = random_weights(M, N, rng)
    tokens = rng.standard_normal((TOKENS, N), dtype=np.float32)
    exact, x = exact_product(weight, tokens), tokens[0]
    counts = sorted({1, ALL})
    figures, matmul = {}, {}

    def measure(name, bytes_of_row, work, y, exact, tolerance, counts):
        work()  # compiles
        error, rates = error_of(name, y, exact, tolerance), {}
        for threads in counts:
            numba.set_num_threads(threads)
            rates[threads] = len(y) * bytes_of_row / best_time(work)
        figures[name] = (error, rates)

    for rung in RUNGS:
        y, prepared = np.empty(min(M, rung.rows), np.float32), rung.prepare(x)

        def work(rung=rung, y=y, prepared=prepared):
            rung.product(*weight, prepared, y)

        threads = counts if rung.threads else [1]
        measure(rung.name, PACKED * N, work, y, exact[0, : len(y)], rung.tolerance(N), threads)

    # The limit: as many bytes of bf16 weights, of any sign and between 2^-7 and 2 in size.
    dense = rng.integers(2**16, size=(max(1, M * 17 // 64), N), dtype=np.uint16) & 0x83FF | 0x3C00
    y, wide = np.empty((1, len(dense)), np.float32), x.astype(np.float64)
    exact_dense = np.concatenate([bf16_to_float32(dense[m : m + 1000]) @ wide for m in range(0, len(dense), 1000)])
    measure(LIMIT, 2 * N, lambda: stream_rows(x[None], dense, y), y[0], exact_dense, 2**-24 * N**0.5, counts)

    a = np.ones((2048, 2048), np.float32)
    for threads in counts:
        with threadpool_limits(threads, user_api="blas"):
            a @ a
            matmul[threads] = 2 * 2048**3 / best_time(lambda: a @ a)

    numba.set_num_threads(ALL)
    y, starts, expert = np.empty((TOKENS, M), np.float32), np.array([0, TOKENS]), [part[None] for part in weight]
    no_bias = np.zeros((1, M), np.float32)

    def together():
        x = quantize_activations(tokens)
        multiply_mxfp4(ALL, *x, np.arange(TOKENS), starts, *expert, no_bias, False, np.float32(7), y)

    together()
    kernel = next(rung for rung in RUNGS if rung.name == KERNEL)
    error = error_of(f"{TOKENS} tokens at once", y, exact, kernel.tolerance(N))
    return figures, matmul, (error, 2 * M * N * TOKENS / best_time(together))


# ---- Showing --------------------------------------------------------------------------------------------------------


def report(M, N, figures, matmul, at_once):
    heads = {n: f"{n} thread{'s' if n > 1 else ''}" for n in matmul}
    print(machine())
    print(f"{M:,} rows of {N:,} weights, {M * N * PACKED / 1e6:,.0f} MB packed; errors are relative to float64 (rms)")
    print(f"\n{'':22}" + "".join(f"{head:^32}" for head in heads.values()))
    print(f"{'':22}" + f"{'GB/s':>8}{'GFLOP/s':>10}{'of limit':>10}    " * len(heads) + "error")
    for name, (error, rates) in figures.items():
        line, size = f"{name:22}", 2 if name == LIMIT else PACKED
        for n in heads:
            rate = rates.get(n)
            shown = "---"
            if rate:
                shown = f"{rate / 1e9:.3g}", f"{2 * rate / size / 1e9:.3g}", f"{rate / figures[LIMIT][1][n]:.1%}"
            line += "{:>8}{:>10}{:>10}    ".format(*shown)
        print(f"{line}{error:.0e}")
    print(f"{'float32 matmul':22}" + "".join(f"{rate / 1e9:18.3g}{'':14}" for rate in matmul.values()))
    error, rate = at_once
    print(f"\n{TOKENS} tokens at once, {heads[ALL]}: {rate / 1e9:.3g} GFLOP/s, "
          f"{rate / matmul[ALL]:.0%} of matmul's; error {error:.0e}")


def read_report(text):
    """What `report` printed, found in a text -> figures, matmul, at_once, as `climb` gives them.

    A picture drawn from it shows the figures of the report, to the last digit."""
    lines = text[text.index("packed; errors are relative") :].splitlines()
    heads = next(line for line in lines if " thread" in line)
    counts, figures = [int(n) for n in re.findall(r"(\d+) thread", heads)], {}
    rows = lines[next(i for i, line in enumerate(lines) if line.endswith("error")) + 1 :]
    for row in rows:
        name, *cells = row[:22].strip(), *row[22:].split()
        if name == "float32 matmul":
            matmul = {n: float(cell) * 1e9 for n, cell in zip(counts, cells, strict=True)}
            break
        byte = (2 if name == LIMIT else PACKED) / 2 * 1e9  # bytes for a GFLOP: GFLOP/s have the digits of the picture
        rates = {n: float(cell) * byte for n, cell in zip(counts, cells[1::3], strict=False) if cell != "-"}
        figures[name] = float(cells[-1]), rates
    rate, error = re.search(r"at once, .*: ([\d.e+]+) GFLOP/s, .* error (\S+)", text).groups()
    return figures, matmul, (float(error), float(rate) * 1e9)


def draw(figures, matmul, at_once, file):
    """The rungs under the roofline, in the style of the course's pictures."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "docs" / "pictures"))
    from roofline import ladder

    Path(file).write_text(ladder(figures, matmul, at_once).svg(), encoding="utf-8")


@program.ends("python -m bench.ladder")
def main():
    parser = program.parser("python -m bench.ladder", "Measure an MXFP4 product, from a plain loop to the limit.")
    parser.add_argument("--rows", type=int, default=200_000, metavar="M", help="rows of the matrix (default: 200000)")
    parser.add_argument("--columns", type=int, default=2880, metavar="N", help="weights a row (default: 2880)")
    parser.add_argument("--picture", metavar="FILE", help="draw the rungs under the roofline (.svg)")
    args = parser.parse_args()
    if args.rows < 1 or args.rows % 16 or args.columns < 64 or args.columns % 64:
        parser.error(f"expected a multiple of 16 rows, of 64 columns, found {args.rows} of {args.columns}")
    results = climb(args.rows, args.columns)
    report(args.rows, args.columns, *results)
    if args.picture:
        draw(*results, args.picture)


if __name__ == "__main__":
    sys.exit(main())
