"""The few vector operations that kernels.py and mxfp4.py need: what a processor does to 8 to 32 numbers at a time.

Numba turns a plain loop into vector instructions by itself. It does not do well with the 4-bit numbers of MXFP4. Here
LLVM's own vectors become types that Numba code can pass around, and each operation is a function of a few lines that
writes LLVM instructions. All but two are written in LLVM's generic instructions, which it lowers to AVX2, AVX-512 or
NEON alike. The exceptions are `look_up_e2m1`, a shuffle of bytes, and `dot`, products of bytes: some processors have
instructions for them that LLVM does not find by itself. On the others, generic ones come to the same result. u8x32 is a
vector of 32 lanes of type uint8, f32x16 one of 16 lanes of type float32, and so on.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

# ---- Types, and what operations are written with --------------------------------------------------------------------

I8, I16, I32, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


class Vector(types.Type):
    """`lanes` numbers of one type in a register (or a few registers, where the processor's are shorter)."""

    def __init__(self, element, lanes):
        self.element, self.lanes = element, lanes
        super().__init__(name=f"{element}x{lanes}")

    @property
    def lowered(self):  # as LLVM's type
        return ir.VectorType(F32 if self.element is types.float32 else ir.IntType(self.element.bitwidth), self.lanes)


register_model(Vector)(lambda manager, vector: models.PrimitiveModel(manager, vector, vector.lowered))
u8x8, u8x32 = Vector(types.uint8, 8), Vector(types.uint8, 32)
i8x32, i32x8 = Vector(types.int8, 32), Vector(types.int32, 8)
f32x8, f32x16 = Vector(types.float32, 8), Vector(types.float32, 16)
U8X32, I32X8, F32X8, F32X16 = u8x32.lowered, i32x8.lowered, f32x8.lowered, f32x16.lowered
I16X16, I16X32, I32X16 = ir.VectorType(I16, 16), ir.VectorType(I16, 32), ir.VectorType(I32, 16)
ANY = None  # in a signature: an argument of any type; as the result: the type of the first argument


def operation(result, *arguments):
    """A decorator: a function that writes LLVM instructions becomes one that Numba code can call, of this signature.

    The function gets `llvm`, the builder that writes instructions, and the arguments as LLVM values; in place of an
    array, a pointer to its first element. It returns the result's value, or a list of values for a tuple."""
    def decorate(write):
        @functools.wraps(write)  # (which tells Numba the number of arguments)
        def signature_and_code(context, *given):
            pairs = zip(arguments, given, strict=True)
            return (result or given[0])(*[actual if kind is ANY else kind for kind, actual in pairs]), lower

        def lower(context, llvm, signature, args):
            args = [context.make_array(kind)(context, llvm, arg).data if isinstance(kind, types.Array) else arg
                    for kind, arg in zip(signature.args, args, strict=True)]
            value = write(llvm, *args)
            if isinstance(value, list):
                return context.make_tuple(llvm, signature.return_type, value)
            return context.get_dummy_value() if signature.return_type is types.void else value

        return intrinsic(signature_and_code)

    return decorate


def constant(vector, values):
    """A constant of an LLVM vector type: these values, or one in all lanes."""
    return ir.Constant(vector, [values] * vector.count if isinstance(values, int) else list(values))

def shuffle(llvm, a, lanes, b=None):
    """The lanes of a with these numbers; those of b have the numbers that follow a's."""
    return llvm.shuffle_vector(a, a if b is None else b, constant(ir.VectorType(I32, len(lanes)), lanes))

def join(llvm, a, b):
    """The lanes of a and then those of b."""
    return shuffle(llvm, a, range(2 * a.type.count), b)

def splat(llvm, x, lanes):
    """A number in all lanes of a vector."""
    first = llvm.insert_element(ir.Constant(ir.VectorType(x.type, lanes), ir.Undefined), x, I32(0))
    return shuffle(llvm, first, [0] * lanes)

def address(llvm, data, i, kind):
    """Where data[i] lies, as a pointer to an LLVM type."""
    return llvm.bitcast(llvm.gep(data, [i]), kind.as_pointer())

def call(llvm, name, result, *args, **options):
    function = ir.FunctionType(result, [a.type for a in args])
    return llvm.call(cgutils.get_or_insert_function(llvm.module, function, name), args, **options)


def cpu_has(instructions):
    """Whether the processor that Numba compiles for has them: "avx2", "vnni", or ARM's "tbl" and "dotprod"."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    features, arm = features.split(","), triple.startswith(("aarch64", "arm64"))
    return {
        "avx2": "+avx2" in features,
        "vnni": "+avx512vnni" in features and "+avx512vl" in features,
        "tbl": arm,
        "dotprod": arm and ("+dotprod" in features or cpu.startswith(("apple-m", "neoverse"))),  # not always listed
    }[instructions]


# ---- Memory ---------------------------------------------------------------------------------------------------------

def make_load(vector):
    """load(array, i): elements i, i + 1, ... of a C-contiguous array, which must have as many."""
    load = operation(vector, ANY, types.intp)
    return load(lambda llvm, data, i: llvm.load(address(llvm, data, i, vector.lowered), align=1))


load_u8x8, load_u8x32, load_i8x32, load_i32x8 = make_load(u8x8), make_load(u8x32), make_load(i8x32), make_load(i32x8)
load_f32x8, load_f32x16 = make_load(f32x8), make_load(f32x16)


def make_load_pair(vector, lanes):
    """load(array, i): array[i] where `lanes` has a 0, array[i + 1] where it has a 1, zero where it has a 2."""
    @operation(vector, ANY, types.intp)
    def load(llvm, data, i):
        pair = ir.VectorType(data.type.pointee, 2)
        return shuffle(llvm, llvm.load(address(llvm, data, i, pair), align=1), lanes, constant(pair, 0))

    return load


load_pair_u8x8 = make_load_pair(u8x8, [0, 0, 0, 0, 1, 1, 1, 1])
load_pair_f32x8 = make_load_pair(f32x8, [0, 0, 0, 0, 1, 1, 1, 1])
load_apart_i32x8 = make_load_pair(i32x8, [0, 2, 2, 2, 1, 2, 2, 2])


def make_load_splat(vector, loaded):
    """load(array, i): one lane of `loaded`, read at array[i], in all lanes; its bits are taken for a `vector`."""
    @operation(vector, ANY, types.intp)
    def load(llvm, data, i):
        x = llvm.load(address(llvm, data, i, loaded.lowered.element), align=1)
        return llvm.bitcast(splat(llvm, x, loaded.lanes), vector.lowered)

    return load


load_splat_f32x8, load_splat_f32x16 = make_load_splat(f32x8, f32x8), make_load_splat(f32x16, f32x16)
load_splat_i32x8, load_splat_i8x32 = make_load_splat(i32x8, i32x8), make_load_splat(i8x32, i32x8)  # (four bytes)


@operation(f32x16, ANY, types.intp)
def load_as_f32x16(llvm, data, i):
    """Elements i to i + 15 in memory, whatever the strides, of an array of float32 or bf16 patterns (uint16)."""
    x = llvm.load(address(llvm, data, i, ir.VectorType(data.type.pointee, 16)), align=2)
    return x if x.type == F32X16 else llvm.bitcast(llvm.shl(llvm.zext(x, I32X16), constant(I32X16, 16)), F32X16)


@operation(types.float32, ANY, types.intp)
def load_as_float32(llvm, data, i):
    """The same of element i alone."""
    x = llvm.load(llvm.gep(data, [i]), align=2)
    return x if x.type == F32 else llvm.bitcast(llvm.shl(llvm.zext(x, I32), I32(16)), F32)


def load_rows(llvm, data, i, stride, count, row):  # (i + k * stride, with products, made prefill 4% slower)
    rows = []
    for _ in range(count):
        rows.append(llvm.load(address(llvm, data, i, row), align=1))
        i = llvm.add(i, stride)
    return rows


@operation(types.void, ANY, types.intp, types.intp, ANY)
def transpose(llvm, data, i, stride, out):
    """Sixteen rows of 16 bytes, which are L elements, at i, i + stride, ... of an array -> their columns, out [L, 16].

    It takes log2(16) = 4 rounds. Each of them interleaves row k with row k + 8, for k from 0 to 7."""
    element = data.type.pointee
    L = 16 * 8 // (32 if element == F32 else element.width)
    halves = [[lane for k in range(first, first + L // 2) for lane in (k, L + k)] for first in (0, L // 2)]
    rows = load_rows(llvm, data, i, stride, 16, ir.VectorType(element, L))
    for _ in range(4):
        rows = [shuffle(llvm, rows[k], half, rows[k + 8]) for k in range(8) for half in halves]
    for k in range(0, 16, 2):  # two rows at once, as bf16 will be read: a load has to wait for smaller stores
        both = join(llvm, rows[k], rows[k + 1])
        llvm.store(both, address(llvm, out, I32(L * k), both.type), align=1)


@operation(types.UniTuple(u8x32, 4), ANY, types.intp, types.intp)
def load_columns_u8x32(llvm, data, i, stride):
    """Eight rows of 16 bytes at i, i + stride, ... of an array -> each row's first four bytes, next four, ... [4]."""
    rows = load_rows(llvm, data, i, stride, 8, ir.VectorType(I32, 4))
    # Rows k and k + 4 share a register, whose halves are then treated alike: two transpositions of 4 x 4.
    a, b, c, d = (join(llvm, rows[k], rows[k + 4]) for k in range(4))
    columns = []
    for k in (0, 2):
        first = [lane + k for lane in (0, 8, 1, 9, 4, 12, 5, 13)]
        ab, cd = shuffle(llvm, a, first, b), shuffle(llvm, c, first, d)
        columns += [shuffle(llvm, ab, [lane + n for lane in (0, 1, 8, 9, 4, 5, 12, 13)], cd) for n in (0, 2)]
    return [llvm.bitcast(column, U8X32) for column in columns]


# prefetch(array, i) asks for the cache line of array[i], to read it, in all caches. An address outside does no harm.
prefetch = operation(types.void, ANY, types.intp)(lambda llvm, data, i: call(
    llvm, "llvm.prefetch.p0", ir.VoidType(), llvm.gep(data, [i]), I32(0), I32(3), I32(1)))
# store(array, i, v): array[i : i + lanes] = v
store = operation(types.void, ANY, types.intp, ANY)(
    lambda llvm, data, i, v: llvm.store(v, address(llvm, data, i, v.type), align=4))


# ---- Arithmetic -----------------------------------------------------------------------------------------------------

E2M1_TWICE = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]  # e2m1 doubled: integers
ZERO_POINT = 12  # what stands for 0 where there are no negative numbers


@operation(u8x32, u8x32)
def look_up_e2m1(llvm, codes):
    """32 e2m1 codes -> 32 bytes from 0 to 24: twice what each code stands for, plus ZERO_POINT."""
    table = [ZERO_POINT + n for n in E2M1_TWICE]
    if cpu_has("avx2"):  # vpshufb: each code picks a byte of the table, which stands in both halves of the register
        return call(llvm, "llvm.x86.avx2.pshuf.b", U8X32, constant(U8X32, 2 * table), codes)
    if cpu_has("tbl"):  # the same for half as many bytes
        u8x16 = ir.VectorType(I8, 16)
        halves = [shuffle(llvm, codes, range(k, k + 16)) for k in (0, 16)]
        halves = [call(llvm, "llvm.aarch64.neon.tbl1.v16i8", u8x16, constant(u8x16, table), half) for half in halves]
        return join(llvm, *halves)
    # 0 1 2 3 4 6 8 12 = n + max(n - 4, 0) + 2 max(n - 6, 0)
    n, zero = llvm.and_(codes, constant(U8X32, 7)), constant(U8X32, ZERO_POINT)
    above_4, above_6 = (call(llvm, "llvm.usub.sat.v32i8", U8X32, n, constant(U8X32, k)) for k in (4, 6))
    magnitude = llvm.add(llvm.add(n, above_4), llvm.add(above_6, above_6))
    negative = llvm.icmp_unsigned(">", codes, constant(U8X32, 7))
    return llvm.select(negative, llvm.sub(zero, magnitude), llvm.add(zero, magnitude))


half_to_float32 = operation(types.float32, types.int16)(lambda llvm, x: llvm.fpext(llvm.bitcast(x, ir.HalfType()), F32))


def to_float32(x):
    """One stored number -> float32, exactly: a bf16 pattern (uint16), a float16 pattern (int16, because Numba has no
    float16), or a float32. For compiled code only.

    Which of them is decided while a caller is compiled. Numba then asks the function registered with @overload, which
    gets the argument's type and returns the function to use."""
    raise NotImplementedError


@overload(to_float32, inline="always")
def to_float32_for(x):
    if isinstance(x, types.Float):
        return lambda x: x
    if x == types.int16:
        return lambda x: half_to_float32(x)
    return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)


@operation(i32x8, i32x8, u8x32, i8x32, u8x32, i8x32)
def dot(llvm, total, w, x, v, y):
    """int32 total[8], uint8 w[32] and v[32] up to 24, int8 x[32] and y[32] -> int32[8]: to lane i are added the four
    products of w and x from 4i on, and the four of v and y. Exact."""
    if cpu_has("vnni"):  # vpdpbusd: four products, their sum and its addition in one
        total = call(llvm, "llvm.x86.avx512.vpdpbusd.256", I32X8, total, w, x)
        return call(llvm, "llvm.x86.avx512.vpdpbusd.256", I32X8, total, v, y)
    if cpu_has("avx2"):  # vpmaddubsw: sums of two products, in int16; vpmaddwd: two of those
        twos = [call(llvm, "llvm.x86.avx2.pmadd.ub.sw", I16X16, *factors) for factors in ((w, x), (v, y))]
        fours = call(llvm, "llvm.x86.avx2.pmadd.wd", I32X8, llvm.add(*twos), constant(I16X16, 1))
        return llvm.add(total, fours)
    if cpu_has("dotprod"):  # sdot: vpdpbusd for half as many; it takes w for signed numbers, which up to 24 is the same
        halves = [shuffle(llvm, total, range(k, k + 4)) for k in (0, 4)]
        for factors in ((w, x), (v, y)):
            for k in (0, 1):
                parts = [shuffle(llvm, a, range(16 * k, 16 * k + 16)) for a in factors]
                halves[k] = call(llvm, "llvm.aarch64.neon.sdot.v4i32.v16i8", halves[k].type, halves[k], *parts)
        return join(llvm, *halves)
    # 16 bits are enough: a sum of eight products is at most 8 * 24 * 128.
    sums = llvm.add(*[llvm.mul(llvm.zext(a, I16X32), llvm.sext(b, I16X32)) for a, b in ((w, x), (v, y))])
    for n in (32, 16):
        sums = llvm.add(shuffle(llvm, sums, range(0, n, 2)), shuffle(llvm, sums, range(1, n, 2)))
    return llvm.add(total, llvm.sext(sums, I32X8))


@operation(f32x8, u8x8, f32x8)
def mul_e8m0(llvm, e, x):
    """2^(e - 127) x for eight e8m0 bytes e, made exponents of float32: 0 is the subnormal 2^-127, 253 and more nan."""
    e = llvm.zext(e, I32X8)
    bits = call(llvm, "llvm.umax.v8i32", I32X8, llvm.shl(e, constant(I32X8, 23)), constant(I32X8, 1 << 22))  # 2^-127
    nan = llvm.icmp_unsigned(">=", e, constant(I32X8, 253))
    bits = llvm.or_(bits, llvm.sext(nan, I32X8))  # all bits set are a nan
    return llvm.fmul(llvm.bitcast(bits, F32X8), x)


@operation(f32x16, f32x16)
def power_of_two(llvm, n):
    """2^n for integers n from -126 to 127, given as float32: n becomes the exponent. 0 for n = -127."""
    exponent = llvm.add(llvm.fptosi(n, I32X16), constant(I32X16, 127))
    return llvm.bitcast(llvm.shl(exponent, constant(I32X16, 23)), F32X16)


# Operations of one line. `fma` is a * b + c, rounded once. `max` is a if either is nan.
# `round` gives the nearest integers, still as float32. low_nibbles are the low halves of 32 bytes, as 32 bytes.
# `reduce_add` is the sum of all lanes, in any order, and slow beside the others: once for a row, not once for a block.
zeros_i32x8 = operation(i32x8)(lambda llvm: constant(I32X8, 0))
zeros_f32x8 = operation(f32x8)(lambda llvm: constant(F32X8, 0))
zeros_f32x16 = operation(f32x16)(lambda llvm: constant(F32X16, 0))
splat_f32x8 = operation(f32x8, types.float32)(lambda llvm, x: splat(llvm, x, 8))
splat_f32x16 = operation(f32x16, types.float32)(lambda llvm, x: splat(llvm, x, 16))
add = operation(ANY, ANY, ANY)(lambda llvm, a, b: (llvm.fadd if a.type.element == F32 else llvm.add)(a, b))
mul = operation(ANY, ANY, ANY)(lambda llvm, a, b: llvm.fmul(a, b))
fma = operation(ANY, ANY, ANY, ANY)(lambda llvm, a, b, c: call(llvm, f"llvm.fma.v{a.type.count}f32", a.type, a, b, c))
max = operation(f32x16, f32x16, f32x16)(lambda llvm, a, b: llvm.select(llvm.fcmp_unordered(">", a, b), a, b))
round = operation(f32x16, f32x16)(lambda llvm, v: call(llvm, "llvm.rint.v16f32", F32X16, v))
reduce_add = operation(types.float32, ANY)(lambda llvm, v: call(
    llvm, f"llvm.vector.reduce.fadd.v{v.type.count}f32", F32, F32(0.0), v, fastmath=["reassoc"]))
reduce_max = operation(types.float32, f32x16)(lambda llvm, v: call(llvm, "llvm.vector.reduce.fmax.v16f32", F32, v))
mul_256 = operation(i32x8, i32x8)(lambda llvm, v: llvm.shl(v, constant(I32X8, 8)))
spread_0_1 = operation(f32x8, f32x8)(lambda llvm, v: shuffle(llvm, v, [0, 0, 0, 0, 1, 1, 1, 1]))
spread_2_3 = operation(f32x8, f32x8)(lambda llvm, v: shuffle(llvm, v, [2, 2, 2, 2, 3, 3, 3, 3]))
spread_4_5 = operation(f32x8, f32x8)(lambda llvm, v: shuffle(llvm, v, [4, 4, 4, 4, 5, 5, 5, 5]))
spread_6_7 = operation(f32x8, f32x8)(lambda llvm, v: shuffle(llvm, v, [6, 6, 6, 6, 7, 7, 7, 7]))
int32_to_float32 = operation(f32x8, i32x8)(lambda llvm, v: llvm.sitofp(v, F32X8))
low_half_to_float32 = operation(f32x16, i8x32)(lambda llvm, v: llvm.sitofp(shuffle(llvm, v, range(16)), F32X16))
high_half_to_float32 = operation(f32x16, i8x32)(lambda llvm, v: llvm.sitofp(shuffle(llvm, v, range(16, 32)), F32X16))
low_nibbles = operation(u8x32, u8x32)(lambda llvm, packed: llvm.and_(packed, constant(U8X32, 15)))
high_nibbles = operation(u8x32, u8x32)(lambda llvm, packed: llvm.lshr(packed, constant(U8X32, 4)))
