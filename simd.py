"""The few vector operations that kernels.py and mxfp4.py need: what a processor does to 16 or 32 numbers at a time.

Numba turns a plain loop into vector instructions by itself where it can; it cannot for the 4-bit numbers of MXFP4. Here
LLVM's own vectors become types that Numba code can pass around, and each operation is a function of a few lines. All
but two are written in LLVM's generic operations, which it lowers to AVX2, AVX-512 or NEON alike. The exceptions are
`look_up_offset`, a shuffle of bytes, and `dot`, products of bytes: processors have instructions for them that LLVM does
not find by itself. Where one has not, generic operations come to the same.
"""

import os
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

# ---- Compilation, and bf16 ------------------------------------------------------------------------------------------

SUMS = {"reassoc", "contract", "nsz"}  # sums in any order, so that their loops become vector code; inf and nan stay
jit = njit(cache=True, nogil=True, fastmath=SUMS)
inline_jit = njit(cache=True, nogil=True, fastmath=SUMS, forceinline=True)  # what a call would cost is felt
parallel_jit = njit(cache=True, parallel=True, fastmath=SUMS)


def drop_stale_code(home):
    """Compiled code is kept in __pycache__, so only the first run compiles. Numba compiles anew what a changed file
    defines, but not what uses it in another file: so all that is older than one of the three files goes."""
    newest = max((home / name).stat().st_mtime for name in ("simd.py", "mxfp4.py", "kernels.py"))
    if os.access(home / "__pycache__", os.W_OK):
        for file in (home / "__pycache__").glob("*.nb[ci]"):
            if file.stat().st_mtime < newest:
                file.unlink(missing_ok=True)


drop_stale_code(Path(__file__).resolve().parent)


def widen(x):
    """One bf16 bit pattern (uint16) -> float32, exactly; a float32 passes through."""


@overload(widen, inline="always")
def widen_compiled(x):
    if isinstance(x, types.Float):
        return lambda x: x
    return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)


# ---- Types ----------------------------------------------------------------------------------------------------------


class Vector(types.Type):
    """`lanes` numbers of one type in a register (or a few registers, where the processor's are shorter)."""

    def __init__(self, element, lanes):
        self.element, self.lanes = element, lanes
        super().__init__(name=f"{element}x{lanes}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, lowered(vector))


def lowered(vector):
    """The LLVM type of a Vector."""
    float32 = vector.element is types.float32
    return ir.VectorType(ir.FloatType() if float32 else ir.IntType(vector.element.bitwidth), vector.lanes)


u8x8, u8x32 = Vector(types.uint8, 8), Vector(types.uint8, 32)
i8x32, i32x8 = Vector(types.int8, 32), Vector(types.int32, 8)
f32x8, f32x16 = Vector(types.float32, 8), Vector(types.float32, 16)
I8, I16, I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def constant(vector, values):
    return ir.Constant(lowered(vector), list(values))


def repeat(vector, value):
    return constant(vector, [value] * vector.lanes)


def lanes(builder, v, picked):
    """The lanes of v with these numbers, as a shorter vector."""
    return builder.shuffle_vector(v, v, ir.Constant(ir.VectorType(I32, len(picked)), list(picked)))


def joined(builder, a, b):
    """The lanes of a and then those of b."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 2 * a.type.count), [*range(2 * a.type.count)]))


def call(builder, name, result, args):
    function = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def has(context, instructions):
    """Whether the processor that Numba compiles for has them: "avx2", "vnni", or ARM's "tbl" and "dotprod"."""
    triple, cpu, features = context.codegen().magic_tuple()
    features = set(features.split(","))
    arm = triple.startswith(("aarch64", "arm64"))
    return {
        "avx2": "+avx2" in features,
        "vnni": {"+avx512vnni", "+avx512vl"} <= features,
        "tbl": arm,
        "dotprod": arm and ("+dotprod" in features or cpu.startswith(("apple-m", "neoverse"))),  # often only named
    }[instructions]


def zero(vector):
    @intrinsic
    def zeros(typing):
        return vector(), lambda context, builder, signature, args: repeat(vector, 0)

    return zeros


zeros_i32x8, zeros_f32x8, zeros_f32x16 = zero(i32x8), zero(f32x8), zero(f32x16)


# ---- Memory ---------------------------------------------------------------------------------------------------------


def loader(vector):
    @intrinsic
    def load(typing, array, i):
        def emit(context, builder, signature, args):
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            address = builder.bitcast(builder.gep(data, [args[1]]), lowered(vector).as_pointer())
            return builder.load(address, align=1)

        return vector(array, types.intp), emit

    return load


# load_X(array, i): lanes i, i + 1, ... of a C-contiguous array, which must have that many.
load_u8x8, load_u8x32, load_i8x32, load_i32x8 = loader(u8x8), loader(u8x32), loader(i8x32), loader(i32x8)
load_f32x8, load_f32x16 = loader(f32x8), loader(f32x16)


def pair_loader(vector, picked):
    @intrinsic
    def load(typing, array, i):
        def emit(context, builder, signature, args):
            data = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
            two = ir.VectorType(data.type.pointee, 2)
            v = builder.load(builder.bitcast(data, two.as_pointer()), align=1)
            return builder.shuffle_vector(v, ir.Constant(two, [0, 0]), ir.Constant(ir.VectorType(I32, 8), picked))

        return vector(array, types.intp), emit

    return load


# four times the number at i, four times the one after it; or each once, with three zeros after it
load_pair_u8x8, load_pair_f32x8 = (pair_loader(vector, [0] * 4 + [1] * 4) for vector in (u8x8, f32x8))
load_apart_i32x8 = pair_loader(i32x8, [0, 2, 2, 2, 1, 2, 2, 2])


def splat_loader(vector, whole=None):
    whole = whole or vector

    @intrinsic
    def load(typing, array, i):
        def emit(context, builder, signature, args):
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            one = lowered(whole).element
            x = builder.load(builder.bitcast(builder.gep(data, [args[1]]), one.as_pointer()), align=1)
            return builder.bitcast(repeated(builder, x, whole.lanes), lowered(vector))

        return vector(array, types.intp), emit

    return load


# the number at i in all lanes; and the four bytes from i on eight times, as an int32 would be
load_splat_f32x8, load_splat_f32x16, load_splat_i32x8 = splat_loader(f32x8), splat_loader(f32x16), splat_loader(i32x8)
load_splat_i8x32 = splat_loader(i8x32, i32x8)


def widened_loader(n):
    @intrinsic
    def load(typing, array, i):
        def emit(context, builder, signature, args):
            array_type = signature.args[0]
            data = builder.gep(context.make_array(array_type)(context, builder, args[0]).data, [args[1]])
            pattern, result = (context.get_value_type(array_type.dtype), context.get_value_type(signature.return_type))
            if n > 1:
                pattern = ir.VectorType(pattern, n)
                data = builder.bitcast(data, pattern.as_pointer())
            x = builder.load(data, align=2)
            if array_type.dtype == types.float32:
                return x
            wide = ir.VectorType(I32, n) if n > 1 else I32
            sixteen = ir.Constant(wide, [16] * n if n > 1 else 16)
            return builder.bitcast(builder.shl(builder.zext(x, wide), sixteen), result)

        return (f32x16 if n > 1 else types.float32)(array, types.intp), emit

    return load


# float32 lanes i, i + 1, ... (or the one at i) of an array of float32 or of bf16 patterns (uint16), counted in elements
# from its first one: unlike in array[i], strides do not matter.
load_widened, load_one_widened = widened_loader(16), widened_loader(1)


@intrinsic
def store(typing, array, i, v):
    """array[i : i + lanes] = v."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store(args[2], builder.bitcast(builder.gep(data, [args[1]]), args[2].type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, v), emit


@intrinsic
def transpose(typing, array, i, stride, columns):
    """Sixteen rows of 16 bytes, L numbers each, at i, i + stride, ... of an array: columns [L, 16], flat, are the same
    the other way round."""

    def emit(context, builder, signature, args):
        data, out = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 3))
        L = 16 // context.get_abi_sizeof(data.type.pointee)
        row_type, at, rows = ir.VectorType(data.type.pointee, L), args[1], []
        for _ in range(16):
            rows.append(builder.load(builder.bitcast(builder.gep(data, [at]), row_type.as_pointer()), align=1))
            at = builder.add(at, args[2])
        for _ in range(4):  # rows k and k + 8 take turns, number by number: four times, and each is in its place
            rows = [take_turns(builder, rows[k], rows[k + 8], half) for k in range(8) for half in (0, L // 2)]
        for k in range(0, 16, 2):  # two at a time, as they will be read: smaller stores would have to be waited for
            both = joined(builder, *rows[k : k + 2])
            address = builder.gep(out, [ir.Constant(ir.IntType(64), L * k)])
            builder.store(both, builder.bitcast(address, both.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, columns), emit


def take_turns(builder, a, b, first):
    """Vectors a and b of L lanes -> lane `first` of a, the same of b, the next of a, ...: half of each."""
    L = a.type.count
    picked = [lane for k in range(first, first + L // 2) for lane in (k, L + k)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, L), picked))


@intrinsic
def load_columns_u8x32(typing, array, i, stride):
    """Eight rows of 16 bytes at i, i + stride, ... of an array -> each row's first four bytes, next four, ... [4]."""

    def emit(context, builder, signature, args):
        data, at, rows = context.make_array(signature.args[0])(context, builder, args[0]).data, args[1], []
        for _ in range(8):
            four = ir.VectorType(I32, 4).as_pointer()
            rows.append(builder.load(builder.bitcast(builder.gep(data, [at]), four), align=1))
            at = builder.add(at, args[2])

        def pick(a, b, *lanes):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 8), lanes))

        # Rows k and k + 4 share a register, whose halves are then treated alike: two transpositions of 4 x 4.
        a, b, c, d = (joined(builder, rows[k], rows[k + 4]) for k in range(4))
        columns = []
        for lane in (0, 2):
            ab, cd = (pick(*two, *(k + lane for k in (0, 8, 1, 9, 4, 12, 5, 13))) for two in ((a, b), (c, d)))
            columns += pick(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13), pick(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15)
        columns = [builder.bitcast(column, lowered(u8x32)) for column in columns]
        return context.make_tuple(builder, signature.return_type, columns)

    return types.UniTuple(u8x32, 4)(array, types.intp, types.intp), emit


@intrinsic
def prefetch(typing, array, i):
    """Asks for the cache line with array[i], which may lie anywhere: what is not there is not fetched."""

    def emit(context, builder, signature, args):
        address = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        function = ir.FunctionType(ir.VoidType(), [address.type, I32, I32, I32])
        fetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
        builder.call(fetch, [address, I32(0), I32(3), I32(1)])  # to read, into all caches, data
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


# ---- Packed 4-bit codes ---------------------------------------------------------------------------------------------


@intrinsic
def low_nibbles(typing, packed):
    """32 bytes -> 32 codes from 0 to 15: the low half of each byte."""
    return u8x32(u8x32), lambda context, builder, signature, args: builder.and_(args[0], repeat(u8x32, 15))


@intrinsic
def high_nibbles(typing, packed):
    """32 bytes -> 32 codes from 0 to 15: the high half of each byte."""
    return u8x32(u8x32), lambda context, builder, signature, args: builder.lshr(args[0], repeat(u8x32, 4))


E2M1_TWICE = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]  # e2m1 doubled: integers
OFFSET = 12


def finder(vector, offset):
    @intrinsic
    def look_up(typing, codes):
        def shuffle(context, builder, signature, args):  # one vpshufb: each code picks a byte of the table
            table = constant(vector, [offset + n for n in E2M1_TWICE] * 2)
            return call(builder, "llvm.x86.avx2.pshuf.b", lowered(vector), [table, args[0]])

        def neon(context, builder, signature, args):  # tbl, of half as many bytes
            table = ir.Constant(ir.VectorType(I8, 16), [offset + n for n in E2M1_TWICE])
            halves = [lanes(builder, args[0], range(k, k + 16)) for k in (0, 16)]
            halves = [call(builder, "llvm.aarch64.neon.tbl1.v16i8", table.type, [table, half]) for half in halves]
            return joined(builder, *halves)

        def arithmetic(context, builder, signature, args):  # 0 1 2 3 4 6 8 12 = n + max(n - 4, 0) + 2 max(n - 6, 0)
            n, start = builder.and_(args[0], repeat(vector, 7)), repeat(vector, offset)
            above = [call(builder, "llvm.usub.sat.v32i8", n.type, [n, repeat(vector, k)]) for k in (4, 6)]
            magnitude = builder.add(builder.add(n, above[0]), builder.add(above[1], above[1]))
            negative = builder.icmp_unsigned(">", args[0], repeat(vector, 7))
            return builder.select(negative, builder.sub(start, magnitude), builder.add(start, magnitude))

        def emit(context, *rest):
            way = shuffle if has(context, "avx2") else neon if has(context, "tbl") else arithmetic
            return way(context, *rest)

        return vector(u8x32), emit

    return look_up


# 32 e2m1 codes -> 32 bytes from 0 to 24: twice what each code stands for, and OFFSET
look_up_offset = finder(u8x32, OFFSET)


# ---- Arithmetic -----------------------------------------------------------------------------------------------------


@intrinsic
def dot(typing, total, w, x, v, y):
    """int32 total[8], uint8 w[32] and v[32] up to 24, int8 x[32] and y[32] -> int32[8]: to lane i are added the four
    products of w and x from 4i on, and the four of v and y. Exact."""

    def vnni(context, builder, signature, args):  # vpdpbusd: four products, their sum and its addition in one
        total, w, x, v, y = args
        name = "llvm.x86.avx512.vpdpbusd.256"
        return call(builder, name, total.type, [call(builder, name, total.type, [total, w, x]), v, y])

    def avx2(context, builder, signature, args):  # vpmaddubsw: sums of two products, in int16; vpmaddwd: two of those
        total, w, x, v, y = args
        i16x16 = ir.VectorType(I16, 16)
        pairs = [call(builder, "llvm.x86.avx2.pmadd.ub.sw", i16x16, factors) for factors in ([w, x], [v, y])]
        ones = ir.Constant(i16x16, [1] * 16)
        fours = call(builder, "llvm.x86.avx2.pmadd.wd", total.type, [builder.add(*pairs), ones])
        return builder.add(total, fours)

    def neon(context, builder, signature, args):  # sdot, vpdpbusd's like; a weight up to 24 has no use for its sign
        halves = [lanes(builder, args[0], range(k, k + 4)) for k in (0, 4)]
        for factors in args[1:3], args[3:5]:
            for k in (0, 1):
                parts = [lanes(builder, a, range(16 * k, 16 * k + 16)) for a in factors]
                halves[k] = call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", halves[k].type, [halves[k], *parts])
        return joined(builder, *halves)

    def generic(context, builder, signature, args):  # in int16 too: a sum of eight products is at most 8 * 24 * 128
        total, w, x, v, y = args
        wide = ir.VectorType(I16, 32)
        products = [builder.mul(builder.zext(a, wide), builder.sext(b, wide)) for a, b in ((w, x), (v, y))]
        sums = builder.add(*products)
        for n in (32, 16):
            sums = builder.add(lanes(builder, sums, range(0, n, 2)), lanes(builder, sums, range(1, n, 2)))
        return builder.add(total, builder.sext(sums, total.type))

    def emit(context, *rest):
        ways = {"vnni": vnni, "avx2": avx2, "dotprod": neon}
        return next((way for name, way in ways.items() if has(context, name)), generic)(context, *rest)

    return i32x8(i32x8, u8x32, i8x32, u8x32, i8x32), emit


@intrinsic
def times_256(typing, v):
    """256 v, int32[8]."""
    return i32x8(i32x8), lambda context, builder, signature, args: builder.shl(args[0], repeat(i32x8, 8))


@intrinsic
def to_float(typing, v):
    """int32[8] -> float32[8]."""
    return f32x8(i32x8), lambda context, builder, signature, args: builder.sitofp(args[0], lowered(f32x8))


def half_to_float(picked):
    @intrinsic
    def convert(typing, v):
        def emit(context, builder, signature, args):
            return builder.sitofp(lanes(builder, args[0], picked), lowered(f32x16))

        return f32x16(i8x32), emit

    return convert


# int8[32] -> float32[16]: the first, the last sixteen
first_to_float, last_to_float = half_to_float(range(16)), half_to_float(range(16, 32))


def repeated(builder, x, n):
    one = builder.insert_element(ir.Constant(ir.VectorType(x.type, n), ir.Undefined), x, ir.Constant(I32, 0))
    return lanes(builder, one, [0] * n)


def splatter(vector):
    @intrinsic
    def splat(typing, x):
        return vector(types.float32), lambda context, builder, signature, args: repeated(builder, args[0], vector.lanes)

    return splat


# float32 -> the same number in all lanes
splat_f32x8, splat_f32x16 = splatter(f32x8), splatter(f32x16)


@intrinsic
def block_scales(typing, e, x):
    """Eight e8m0 bytes times eight float32. The byte is a float32's exponent; but 0 is the subnormal 2^-127, and 255 is
    nan."""

    def emit(context, builder, signature, args):
        eight = ir.VectorType(I32, 8)

        def every(value):
            return ir.Constant(eight, [value] * 8)

        e = builder.zext(args[0], eight)
        bits = call(builder, "llvm.umax.v8i32", eight, [builder.shl(e, every(23)), every(1 << 22)])
        bits = builder.or_(bits, builder.lshr(builder.add(e, every(1)), every(8)))
        return builder.fmul(builder.bitcast(bits, lowered(f32x8)), args[1])

    return f32x8(u8x8, f32x8), emit


def spreader(i):
    @intrinsic
    def spread(typing, v):
        return f32x8(f32x8), lambda context, builder, signature, args: lanes(builder, args[0], [i] * 4 + [i + 1] * 4)

    return spread


# float32[8] -> float32[8]: four times the one lane, four times the other
spread_0_1, spread_2_3, spread_4_5, spread_6_7 = spreader(0), spreader(2), spreader(4), spreader(6)


@intrinsic
def add(typing, a, b):
    """a + b, int32[8], float32[8] or float32[16] each."""

    def emit(context, builder, signature, args):
        return builder.fadd(*args) if a.element is types.float32 else builder.add(*args)

    return a(a, a), emit


@intrinsic
def times(typing, a, b):
    """a * b, float32[8] or float32[16] each."""
    return a(a, a), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, rounded once, float32[8] or float32[16] each."""

    def emit(context, builder, signature, args):
        return call(builder, f"llvm.fma.v{args[0].type.count}f32", args[0].type, args)

    return a(a, a, a), emit


@intrinsic
def larger(typing, a, b):
    """The larger of a and b, float32[16] each; a where it is nan, so that nan is not lost."""

    def emit(context, builder, signature, args):
        return builder.select(builder.fcmp_unordered(">", *args), *args)

    return f32x16(f32x16, f32x16), emit


@intrinsic
def to_whole(typing, v):
    """float32[16] -> the nearest whole numbers, still float32."""

    def emit(context, builder, signature, args):
        return call(builder, "llvm.rint.v16f32", args[0].type, args)

    return f32x16(f32x16), emit


@intrinsic
def power_of_two(typing, n):
    """2^n for whole n from -126 to 127, float32[16]: n becomes the exponent. 0 for n = -127."""

    def emit(context, builder, signature, args):
        sixteen = ir.VectorType(I32, 16)
        exponent = builder.add(builder.fptosi(args[0], sixteen), ir.Constant(sixteen, [127] * 16))
        return builder.bitcast(builder.shl(exponent, ir.Constant(sixteen, [23] * 16)), lowered(f32x16))

    return f32x16(f32x16), emit


@intrinsic
def sum_lanes(typing, v):
    """float32[8] or [16] -> their sum, in any order. Slow beside the others: once a row, not once a block."""

    def emit(context, builder, signature, args):
        function = ir.FunctionType(ir.FloatType(), [ir.FloatType(), args[0].type])
        name = f"llvm.vector.reduce.fadd.v{args[0].type.count}f32"
        reduce = cgutils.get_or_insert_function(builder.module, function, name)
        return builder.call(reduce, [ir.Constant(ir.FloatType(), 0.0), args[0]], fastmath=["reassoc"])

    return types.float32(v), emit


@intrinsic
def largest_lane(typing, v):
    """float32[16] -> the largest of them."""

    def emit(context, builder, signature, args):
        return call(builder, "llvm.vector.reduce.fmax.v16f32", ir.FloatType(), args)

    return types.float32(f32x16), emit
