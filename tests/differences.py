"""What kind of difference between two tensors it is: simple patterns, and known mistakes of an operation.

A kind is tried, not guessed: ours is changed in that way, and if it then equals theirs, it is that kind.
"""

import math

import numpy as np

from exercises.mistakes import END, EXPERTS, MODEL, STREAM, Mistake, sentence

NORMED = "x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight"
PRODUCT = "np.concatenate([x @ to_float32(part(weight, rows)).T for rows in parts], axis=1)"
MORE = [  # mistakes for which exercises/ has no function to write
    Mistake("no norm", "rms_norm", [(NORMED, "x")], "you leave out the norm"),
    Mistake("no bias", "linear", [("y = y if bias is None else y + bf16_to_float32(bias)", "pass")],
            "you leave out the bias"),
    Mistake("bias subtracted", "linear", [("else y + ", "else y - ")], "you subtract the bias; it is added"),
    Mistake("weight transposed", "linear", [(PRODUCT, "x @ to_float32(weight).reshape(x.shape[1], -1)")],
            "you read the weight as [inputs, outputs]; it is stored as [outputs, inputs]"),
    Mistake("queries turned, keys not", "Model.attend", [("ops.rotate(k, cos, sin)", "k")], "you do not turn the keys"),
    Mistake("positions from -1", "Model.rope_tables",
            [("np.arange(start, start + T", "np.arange(start - 1, start + T - 1")],
            "your positions are one too low; the first token stands at 0"),
    Mistake("values turned too", "Model.attend", [("cos, sin), v)", "cos, sin), ops.rotate(v, cos, sin))")],
            "you turn the values; only queries and keys have a position"),
]
HALVES = [  # the functions that compute in a half of a layer
    {"rms_norm", "linear", "softmax", "attention", "rope_frequencies", "rotate", "Model.attend", "Model.rope_tables"},
    {"rms_norm", "linear", "softmax", "route", "swiglu", "experts", "dequantize"},
]
EXPERTS_ONLY = {"swiglu", "experts", "dequantize"}  # they see one token at a time


def mistakes_in(halves):
    """The known mistakes that can be made in these halves of a layer (0 attention, 1 experts), and in the end (2)."""
    functions = set().union(*[[*HALVES, {"rms_norm", "linear"}][half] for half in halves])
    return [mistake for mistake in STREAM + EXPERTS + END + MORE + MODEL if mistake.function in functions]


def said(mistake):
    return f"{mistake.name}. {sentence(mistake)}"


# ---- Patterns -------------------------------------------------------------------------------------------------------

def patterns(a, b, config):
    """(ours changed, how) for every pattern, the simplest first. a, ours, and b, theirs: [T, N] or [T, heads, D]."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        factor = (x * y).sum() / (x * x).sum()
        yield x * factor, scale_name(factor, config)
        yield from moved(a, b)
        for order, how in orders(a, b, config):
            yield a.reshape(len(a), -1)[:, order].reshape(a.shape), how
        yield x + (y - x).mean(axis=0), "the same vector added to every token: a bias left out, or added twice"
        if a.shape[-1] > 1:
            factor = (x * y).sum(-1) / (x * x).sum(-1)
            yield (x * factor[..., None], f"each {'head' if a.ndim == 3 else 'token'} scaled by a factor of its own, "
                   f"from {factor.min():.4g} to {factor.max():.4g}: another sum is divided by")
        factor = (x * y).sum(0) / (x * x).sum(0)
        yield x * factor, (f"each column scaled by a factor of its own, from {factor.min():.4g} to {factor.max():.4g}: "
                           "another weight is multiplied by")


def scale_name(factor, config):
    """In words: scaled by this constant, and where such a constant may be from."""
    if abs(factor + 1) < 1e-4:
        return "sign: theirs is ours times -1"
    if abs(factor) < 1e-6:
        return "zero: nothing is left of ours"
    yarn = config.rope_scaling["factor"] if config.rope_scaling else 1.0
    known = {"sqrt(D)": math.sqrt(config.head_dim), "D": config.head_dim, "sqrt(N)": math.sqrt(config.hidden_size),
             "N": config.hidden_size, "YaRN's 0.1 ln(factor) + 1": 0.1 * math.log(yarn) + 1, "YaRN's factor": yarn,
             "the number of chosen experts": config.num_experts_per_tok}
    known |= {f"1/{name}": 1 / value for name, value in known.items()}
    names = [name for name, value in known.items() if value != 1 and abs(abs(factor) / value - 1) < 5e-3]
    return f"scaled by a constant, {factor:.5g}" + (f": {' or '.join(names)}" if names else "")


def moved(a, b):
    """Tokens in other rows, and axes in another order."""
    for step, how in (1, "late: theirs for token t is ours for t - 1"), (-1, "early: theirs for t is ours for t + 1"):
        shifted = np.roll(a, step, axis=0)
        edge = 0 if step > 0 else -1
        shifted[edge] = b[edge]  # of which ours has none
        yield shifted, f"shifted by one position, {how}"
    yield a[::-1], "tokens in reverse order"
    if a.ndim == 3:
        T, heads, D = a.shape
        yield a.transpose(1, 0, 2).reshape(a.shape), f"transposed: [{heads}, {T}, {D}] in memory, read as {[*a.shape]}"
        yield a.reshape(heads, T, D).transpose(1, 0, 2), f"transposed: {[*a.shape]} in memory, read as [heads, T, D]"
        yield a.transpose(0, 2, 1).reshape(a.shape), f"transposed: [{T}, {D}, {heads}] in memory, read as {[*a.shape]}"
        yield a.reshape(T, D, heads).transpose(0, 2, 1), f"transposed: {[*a.shape]} in memory, read as [T, D, heads]"
    else:
        yield a.T.reshape(a.shape), f"transposed: [{a.shape[1]}, {a.shape[0]}] in memory, read as {[*a.shape]}"


def orders(a, b, config):
    """(indices of ours, what they are): the columns of a token permuted, the known orders first."""
    heads, D = a.shape[1:] if a.ndim == 3 else (1, a.shape[1])
    columns, of = np.arange(heads * D).reshape(heads, D), "a head" if a.ndim == 3 else "a token"
    if D % 2 == 0:
        halves = columns.reshape(heads, 2, D // 2)
        yield halves.swapaxes(1, 2).ravel(), f"permuted: the halves of {of} interleaved (neighbours for halves)"
        yield (columns.reshape(heads, D // 2, 2).swapaxes(1, 2).ravel(),
               f"permuted: the even columns of {of} before the odd ones (halves for neighbours)")
        yield halves[:, ::-1].ravel(), f"permuted: the halves of {of} swapped"
        yield columns.reshape(heads, D // 2, 2)[:, :, ::-1].ravel(), f"permuted: the neighbours in {of} swapped"
    yield columns[:, ::-1].ravel(), f"permuted: {of} backwards"
    if heads == config.num_attention_heads and a.ndim == 3:
        G = config.num_key_value_heads
        for first, second in (G, heads // G), (heads // G, G):
            yield (columns.reshape(first, second, D).swapaxes(0, 1).ravel(),
                   f"permuted: heads in the order of [{second}, {first}] for [{first}, {second}] "
                   f"(query head h has key/value head h // {heads // G})")
    if heads * D > 8192:
        return
    x, y = (t.reshape(len(t), -1).astype(np.float64) for t in (a, b))
    nearest = ((x * x).sum(0)[:, None] - 2 * x.T @ y).argmin(axis=0)  # the column of ours that is most like theirs
    whole = nearest.reshape(heads, D)
    if heads > 1 and (whole == whole[:, :1] + np.arange(D)).all():
        yield nearest, f"permuted: heads in another order, {(whole[:, 0] // D).tolist()} of ours"
    elif len(set(nearest.tolist())) == len(nearest):
        yield nearest, f"permuted: columns in another order, which begins {nearest[:8].tolist()}"
