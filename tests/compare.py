"""Where do I differ? This implementation and another one, operation by operation; docs/compare.md explains it.

    python tests/compare.py DIR                       with transformers, in float32 (MXFP4 is dequantized)
    python tests/compare.py DIR --theirs FILE.npz     with somebody else's tensors
    python tests/compare.py DIR --export FILE.npz     writes ours, in the same format
    python tests/compare.py DIR --layers 2            the model that the first two layers are: large ones need memory

Each step of ours gets what THEIRS computed before it, where that is known. So a row of the table is about one step: an
early difference is not seen again in all that follows, and roundings do not grow. The first tensor that differs is
explained. Exit status 0: all agree; 1: one does not; 2: nothing was compared.
"""

import math
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, Python looks for modules in tests/ only

if __name__ == "__main__":
    import program

    program.begin()

import differences  # noqa: E402

import gptoss  # noqa: E402
import program  # noqa: E402
from bench.random_checkpoint import atomic_write  # noqa: E402
from checkpoint import bf16_to_float32, expect, read_config  # noqa: E402
from exercises.mistakes import broken  # noqa: E402

# One step is sums of up to n products. A float32 rounding is 2^-24 of a number, and two orders of summing differ by
# about sqrt(n) of them. 16 times that is allowed, for sums that come out smaller than what they add up. Angles of RoPE
# are positions times frequencies, so they are T roundings of a radian off at the end, in both. Where theirs has not
# every tensor, the roundings of several steps add up, as the square root of their number.
FLOAT32 = 2.0**-24
SLACK = 16
# Numbers that are rounded to bf16 are 2^-9 of themselves off at most, and those that a step computes with inside may be
# too. Four such roundings are allowed where every number of theirs is a bf16 number; so for float16, with 2^-11. Within
# a softmax and the experts there are more: a score of 16 that is 2^-9 off makes its weight 16 times as much off.
ROUNDED = {"bf16": 4 * 2.0**-9, "float16": 4 * 2.0**-11}
MORE_INSIDE = {"attention": 4, "weights": 4, "experts_out": 4}
FEW = 8  # tokens on which mistakes of the experts are tried, those that differ most
LARGE = 50e6  # expert weights of a model with which mistakes are tried in one layer only


# ---- The tensors ----------------------------------------------------------------------------------------------------

def shapes_of(config, T):
    """{name: shape} of every tensor that can be compared, in the order of use."""
    c, N = config, config.hidden_size
    q, kv = (T, c.num_attention_heads, c.head_dim), (T, c.num_key_value_heads, c.head_dim)
    experts, chosen = (T, c.num_local_experts), (T, c.num_experts_per_tok)
    layer = {"attn_norm": (T, N), "q": q, "k": kv, "v": kv, "k_rotated": kv, "q_rotated": q, "attention": q,
             "attn_out": (T, N), "stream_mid": (T, N), "mlp_norm": (T, N), "router_logits": experts, "chosen": chosen,
             "weights": chosen, "experts_out": (T, N), "stream": (T, N)}
    shapes = {"embedding": (T, N)}
    for i in range(c.num_hidden_layers):
        shapes |= {f"layer{i}.{name}": shape for name, shape in layer.items()}
    return shapes | {"final_norm": (T, N), "logits": (T, c.vocab_size)}


def watched(module):
    """A Model that shows each tensor to a function see(name, array), and goes on with what that returns. `module` is
    gptoss, or a copy of it with a mistake."""

    class Watched(module.Model):
        def __init__(self, *parts):
            super().__init__(*parts)
            self.plain, self.at, self.see = self.operations, "", None
            names = {"attn_norm": "attn_norm", "mlp_norm": "mlp_norm", "q_weight": "q", "k_weight": "k",
                     "v_weight": "v", "o_weight": "attn_out", "router_weight": "router_logits"}
            self.names = {id(self.norm): "final_norm", id(self.unembedding): "logits"}  # a result by its weight
            for i, layer in enumerate(self.layers):
                self.names |= {id(getattr(layer, field)): f"layer{i}.{name}" for field, name in names.items()}
            self.operations = SimpleNamespace(
                rms_norm=lambda x, weight, eps: self.see(self.names[id(weight)], self.plain.rms_norm(x, weight, eps)),
                linear=self.linear, rotate=self.plain.rotate, store_kv=self.store_kv, attention=self.attention,
                route=self.route, experts=lambda *args: self.see(self.at + "experts_out", self.plain.experts(*args)))

        def linear(self, x, weight, bias=None):
            y, name = self.plain.linear(x, weight, bias), self.names[id(weight)]
            heads = name.endswith((".q", ".k", ".v"))
            return self.see(name, y.reshape(len(x), -1, self.config.head_dim) if heads else y).reshape(y.shape)

        def store_kv(self, kv, k, v):
            self.plain.store_kv(kv, self.see(self.at + "k_rotated", k), v)

        def attention(self, q, *args):
            q = self.see(self.at + "q_rotated", q)
            return self.see(self.at + "attention", self.plain.attention(q, *args))

        def route(self, logits, K):
            ours, weights = self.plain.route(logits, K)
            chosen = self.see(self.at + "chosen", ours)
            if chosen.shape == ours.shape:  # the order of the K experts is free: weights go with them
                same = chosen[:, :, None] == ours[:, None, :]
                weights = np.where(same.any(-1), (same * weights[:, None, :]).sum(-1), weights.min(-1, keepdims=True))
            return chosen, self.see(self.at + "weights", weights)

        def run(self, x, see, first=0):
            """x, the stream [T, N] before the half-layer `first`, through all that follows: Model.hidden with eyes, and
            of any length in one piece. A layer is two halves, attention and experts."""
            self.see, cache, (cos, sin) = see, self.new_cache("float32"), self.rope_tables(0, len(x))
            for half in range(first, 2 * len(self.layers)):
                i, experts = divmod(half, 2)
                self.at = f"layer{i}."
                x = x + (self.mlp(i, x) if experts else self.attend(i, x, cos, sin, cache))
                x = see(self.at + ("stream" if experts else "stream_mid"), x)
            x = self.operations.rms_norm(x, self.norm, self.config.rms_norm_eps)
            return self.operations.linear(x, self.unembedding)

    return Watched


def load(directory, layers=None, backend="numpy"):
    """Ours, with its first `layers` layers."""
    model = gptoss.load(directory, backend=backend, model=watched(gptoss))
    if layers is None:
        return model
    most, c = len(model.layers), model.config
    expect(1 <= layers <= most, ValueError, "--layers", f"1 to {most}", layers)
    config = type(c)(**vars(c) | {"num_hidden_layers": layers, "layer_types": c.layer_types[:layers]})
    parts = config, model.embedding, model.layers[:layers], model.norm, model.unembedding, model.plain
    return type(model)(*parts)


def default_tokens(config):
    """The same ids each time, so many that the window of sliding layers is passed."""
    T = min(max(3 * config.sliding_window // 2, 32), config.max_position_embeddings)
    return np.random.default_rng(0).integers(0, config.vocab_size, T)


def embed(model, tokens):
    return bf16_to_float32(model.embedding[tokens])


def ours(model, tokens):
    """{name: array}: tokens, and every tensor of a run of our own."""
    found = {"tokens": tokens, "embedding": embed(model, tokens)}

    def see(name, value):
        found[name] = value.copy()  # (some are views of what will be overwritten)
        return value

    model.run(found["embedding"], see)
    return found


# ---- Theirs ---------------------------------------------------------------------------------------------------------

def from_file(path, config):
    """{name: array} of an .npz file, checked. ValueError says what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        raise ValueError(f"{path}: expected an .npz file, found another kind, or a part of one") from None
    except Exception as error:  # NumPy and zlib have many ways to say that a file is broken
        said = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: expected arrays of numbers, found {said[0]}") from None
    expect("tokens" in arrays, ValueError, path, "an array tokens [T], the ids that were read", "none")
    for name, array in arrays.items():
        kinds, noun = ("iu", "integers") if name == "tokens" or name.endswith(".chosen") else ("f", "float numbers")
        expect(isinstance(array, np.ndarray), ValueError, f"{path}: {name}", "an array", "something else")
        expect(array.dtype.kind in kinds, ValueError, f"{path}: {name}", noun, str(array.dtype))
    tokens = arrays.pop("tokens")
    expect(tokens.ndim == 1 and len(tokens), ValueError, f"{path}: tokens", "a shape [T]", str([*tokens.shape]))
    most = config.max_position_embeddings
    expect(len(tokens) <= most, ValueError, f"{path}: tokens", f"at most {most}, the context", len(tokens))
    expect(arrays, ValueError, path, "one tensor beside tokens", "none")
    shapes = shapes_of(config, len(tokens))
    for name, array in arrays.items():
        expect(name in shapes, ValueError, path, f"names such as {', '.join(list(shapes)[:3])}", repr(name))
        expect(array.shape == shapes[name], ValueError, f"{path}: {name}", f"shape {[*shapes[name]]}",
               str([*array.shape]))
    for name, array in {"tokens": tokens, **arrays}.items():
        limit = config.vocab_size if name == "tokens" else config.num_local_experts
        if array.dtype.kind in "iu":
            bad = array[(array < 0) | (array >= limit)]
            expect(not bad.size, ValueError, f"{path}: {name}", f"0 to {limit - 1}", str(bad[:1].tolist()))
    with np.errstate(over="ignore"):  # what no float32 can hold becomes inf
        return {"tokens": tokens.astype(np.int64)} | {
            name: array.astype(np.int64 if array.dtype.kind in "iu" else np.float32) for name, array in arrays.items()}


def from_transformers(directory, config, tokens):
    """{name: array} of GptOssForCausalLM in float32, by hooks on its modules. What has no module of its own, the
    rotated queries and keys, is computed by transformers' own function from what the modules got."""
    import torch
    from transformers import AutoConfig, GptOssForCausalLM
    from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    theirs = AutoConfig.from_pretrained(directory)
    theirs.num_hidden_layers, theirs.layer_types = config.num_hidden_layers, list(config.layer_types)
    model = GptOssForCausalLM.from_pretrained(directory, config=theirs, dtype=torch.float32,
                                              attn_implementation="eager").eval()
    T, D, found = len(tokens), config.head_dim, {"tokens": tokens}

    def keep(name, *shape):
        def hook(module, args, out):
            found[name] = out.detach().reshape(T, *shape or (-1,)).numpy()
        return hook

    def keep_input(name, *shape):
        return lambda module, args: keep(name, *shape)(module, None, args[0])

    def keep_router(at):
        def hook(module, args, out):
            logits, weights, chosen = out
            for name, value in ("router_logits", logits), ("chosen", chosen), ("weights", weights):
                keep(at + name)(module, args, value)
        return hook

    def rotate(at):
        def hook(module, args, kwargs, out):
            q, k = (torch.tensor(found[at + name]).transpose(0, 1)[None] for name in "qk")  # [1, heads, T, D]
            for name, x in zip("qk", apply_rotary_pos_emb(q, k, *kwargs["position_embeddings"]), strict=True):
                keep(f"{at}{name}_rotated", -1, D)(module, args, x[0].transpose(0, 1))
        return hook

    model.model.embed_tokens.register_forward_hook(keep("embedding"))
    for i, layer in enumerate(model.model.layers):
        at, attention = f"layer{i}.", layer.self_attn
        layer.input_layernorm.register_forward_hook(keep(at + "attn_norm"))
        for name in "qkv":
            attention.get_submodule(f"{name}_proj").register_forward_hook(keep(at + name, -1, D))
        attention.register_forward_hook(rotate(at), with_kwargs=True)
        attention.o_proj.register_forward_pre_hook(keep_input(at + "attention", -1, D))
        attention.o_proj.register_forward_hook(keep(at + "attn_out"))
        layer.post_attention_layernorm.register_forward_pre_hook(keep_input(at + "stream_mid"))
        layer.post_attention_layernorm.register_forward_hook(keep(at + "mlp_norm"))
        layer.mlp.router.register_forward_hook(keep_router(at))
        layer.mlp.experts.register_forward_hook(keep(at + "experts_out"))
        layer.register_forward_hook(keep(at + "stream"))
    model.model.norm.register_forward_hook(keep("final_norm"))
    model.lm_head.register_forward_hook(keep("logits"))
    with torch.no_grad():
        model(torch.tensor(tokens)[None])
    return found


def check_memory(config):
    """ValueError where transformers' float32 weights have no room. While it dequantizes a layer it needs about two more
    (18.8 GB at most for two layers of the 20b shape, where the weights are 11.2)."""
    c, N, F, E = config, config.hidden_size, config.intermediate_size, config.num_local_experts
    embeddings = 4 * 2 * c.vocab_size * N
    layer = 4 * (3 * E * F * N + 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim * N)
    fit = int((available_memory() - embeddings - 2 * layer) // layer)
    most, needed = c.num_hidden_layers, embeddings + (c.num_hidden_layers + 2) * layer
    hint = f"{available_memory() / 1e9:.0f} GB (--layers {min(fit, 2)} would fit)" if fit > 0 else "too little for one"
    expect(fit >= most, ValueError, f"{most} layers in transformers", f"{needed / 1e9:.0f} GB of memory", hint)


def available_memory():
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


# ---- How much two tensors differ ------------------------------------------------------------------------------------

def size(x):
    """Root mean square of each token's numbers."""
    return np.sqrt(np.mean(np.square(x.reshape(len(x), -1), dtype=np.float64), axis=1))


def row_errors(a, b):
    """The rms difference of each token, relative to the rms of its numbers in `a`. A token of small numbers is held
    against a tenth of the typical one: they may be what remains of a sum of large ones."""
    rows = size(a)
    return size(a.astype(np.float64) - b) / np.maximum(np.maximum(rows, np.median(rows) / 10), 1e-30)


def relative(a, b):
    """The relative difference of the token that differs most; of chosen experts, the share of tokens that differ."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    return float(other_sets(a, b).mean() if b.dtype.kind == "i" else row_errors(a, b).max())


def number_format(x):
    """"bf16" or "float16" if all of these float32 numbers are numbers of that format."""
    if x.dtype.kind == "f":
        if not (np.ascontiguousarray(x, np.float32).view(np.uint32) & 0xFFFF).any():
            return "bf16"
        with np.errstate(over="ignore"):
            if (x.astype(np.float16).astype(np.float32) == x).all():
                return "float16"
    return ""


class Found(Exception):
    """Ends a run: the tensor that was wanted is there, or None if it is of no use."""


class Comparison:
    """The eyes of a run of ours: each tensor is compared with theirs, and the run goes on with theirs."""

    def __init__(self, model, theirs, show=print):
        self.model, self.config, self.theirs, self.show = model, model.config, dict(theirs), show
        self.tokens = self.theirs.pop("tokens")
        c, T = self.config, len(self.tokens)
        self.names = list(shapes_of(c, T))
        longest = max(c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim)
        self.one_step = FLOAT32 * (SLACK * math.sqrt(longest) + 2 * T)
        self.steps = 0  # since the last tensor of theirs
        self.now = {}  # the last tensor of each kind, theirs if they have it
        self.start = None  # the last half of a layer of which what goes in is known to agree, and this stream
        self.verdicts, self.limits, self.first = {}, {}, None

    def run(self):
        """Prints the table and what it comes to -> 0 if all agree, else 1."""
        self.line("tensor", "shape", "largest", "relative", "verdict")
        last = [name for name in self.names if name in self.theirs][-1]

        def see(name, value):
            value = self.see(name, value)
            if name == last:
                raise Found
            return value

        try:
            with np.errstate(all="ignore"):  # whatever numbers they have
                self.model.run(see("embedding", embed(self.model, self.tokens)), see)
        except Found:
            pass
        return self.conclude()

    def see(self, name, ours):
        at, _, part = name.rpartition(".")
        self.steps += 1
        theirs = self.theirs.get(name)
        if theirs is not None:
            self.compare(name, ours, theirs)
            self.steps = 0
        value = ours if theirs is None or not np.isfinite(theirs).all() else theirs
        if part == "stream_mid":
            self.now["before"] = self.now["stream"]
        self.now[part] = value
        if part == "embedding":
            self.start, self.now["stream"] = (0, value), value
        addend = {"stream_mid": "attn_out", "stream": "experts_out"}.get(part)
        if addend and (theirs is not None or f"{at}.{addend}" in self.theirs):
            self.start = half_of(f"{at}.{addend}") + 1, value
        return value

    def compare(self, name, ours, theirs):
        growth, kind, verdict = math.sqrt(self.steps), number_format(theirs), "equal"
        limit, difference = self.one_step * growth, relative(ours, theirs)
        largest = f"{np.abs(ours - theirs.astype(np.float64)).max():.1e}"
        if name.endswith(".chosen"):
            largest = "-"
            if difference == 0 and (ours != theirs).any():
                verdict = "equal, in another order"
            elif difference and not (other_sets(ours, theirs) & ~self.tied(theirs, limit)).any():
                verdict, limit = "equal but for ties", difference
        if difference > limit:
            limit = ROUNDED.get(kind, 0) * growth * MORE_INSIDE.get(name.rpartition(".")[2], 1)
            verdict = kind if difference <= limit else "DIFFERS"
        self.verdicts[name], self.limits[name] = verdict, limit
        if not self.first:
            self.line(name, "[" + ", ".join(map(str, theirs.shape)) + "]", largest, f"{difference:.1e}", verdict)
            if verdict == "DIFFERS":
                self.first = name
                for line in self.explain(name, ours, theirs, difference):
                    self.show(f"    {line}")

    def tied(self, theirs, limit):
        """Tokens for which their experts are the best, but for roundings of the logits."""
        logits, K = self.now["router_logits"], theirs.shape[1]
        best = np.sort(logits, axis=1)[:, -K:].sum(axis=1)
        given = np.take_along_axis(logits, theirs, axis=1).sum(axis=1)
        once = (np.diff(np.sort(theirs)) > 0).all(axis=1)
        return once & (best - given <= K * limit * np.abs(logits).max(axis=1))

    def line(self, *cells):
        name, shape, largest, difference, verdict = cells
        self.show(f"{name:{max(map(len, self.names))}}  {shape:16} {largest:>8} {difference:>9}  {verdict}")

    def conclude(self):
        verdicts = self.verdicts
        others = [name for name, verdict in verdicts.items() if verdict == "DIFFERS" and name != self.first]
        rounded = [name for name, verdict in verdicts.items() if verdict in ROUNDED]
        if self.first:
            more = f" So do {', '.join(others[:6])}{' and others' if others[6:] else ''}." if others else ""
            self.show(f"\n{len(others) + 1} of {len(verdicts)} tensors differ from what ours makes of their tensors "
                      f"before them. The first is {self.first}.{more}")
        elif rounded:
            self.show(f"\n{len(rounded)} of {len(verdicts)} tensors are rounded to "
                      f"{' or '.join(sorted({verdicts[name] for name in rounded}))}; none differs by more.")
        else:
            self.show(f"\nAll {len(verdicts)} tensors agree.")
        return 1 if self.first or rounded else 0

    # ---- What kind of difference it is ----

    def explain(self, name, ours, theirs, difference):
        """Lines about a tensor that differs: where, and which changes of ours make it equal to theirs."""
        bad = np.argwhere(~np.isfinite(theirs))
        if len(bad):
            yield f"first: {name}{bad[0].tolist()} is {theirs[tuple(bad[0])]}, no number"
            return
        if name.endswith(".chosen"):
            rows = np.flatnonzero(other_sets(ours, theirs))
            yield f"first: {name}[{rows[0]}], expected {ours[rows[0]].tolist()}, found {theirs[rows[0]].tolist()}"
        else:
            errors = row_errors(ours, theirs)
            rows = np.flatnonzero(errors > min(self.one_step * math.sqrt(self.steps), errors.max() / 2))
            error = np.abs(ours[rows[0]] - theirs[rows[0]])
            place = np.unravel_index(np.argmax(error >= error.max() / 2), error.shape)
            index = [int(i) for i in (rows[0], *place)]
            yield f"first: {name}{index}, expected {ours[tuple(index)]:.6g}, found {theirs[tuple(index)]:.6g}"
        yield f"tokens that differ: {ranges(rows)} (of 0-{len(ours) - 1})"
        kind = number_format(theirs)  # then what a mistake leaves may be a rounding
        limit = min(max(self.one_step * math.sqrt(self.steps), ROUNDED.get(kind, 0)), difference / 4)
        found = next(([how] for tensor, how in self.patterns(name, ours, theirs)
                      if relative(tensor, theirs) <= limit), [])
        tried, why_not = self.mistaken(name, theirs, rows)
        tried = sorted((residual, how) for residual, how in tried if residual <= limit)
        found += [how for residual, how in tried if residual <= 4 * tried[0][0] + self.one_step][:2]
        for how in found:
            yield f"looks like: {how}{f' (and rounded to {kind})' if kind else ''}"
        if not found and difference <= ROUNDED["bf16"] and len(rows) > len(ours) / 2:
            yield "looks like: roundings inside this step, of the size of bf16's (2^-9 of a number)"
        elif not found:
            yield f"looks like: no pattern recognized{why_not}"

    def patterns(self, name, ours, theirs):
        if name.endswith(".chosen"):
            return
        part, now, before = name.rpartition(".")[2], self.now, self.now.get("before")
        if part == "stream_mid":
            yield now["attn_out"], "no residual connection: the stream before attention is not added"
        elif part == "stream":
            yield now["experts_out"], "no residual connection: the stream before the experts is not added"
            yield before + now["experts_out"], "what attention added to the stream is lost"
        elif part == "mlp_norm":
            layer = self.model.layers[int(name[5:].partition(".")[0])]
            norm, eps = gptoss.rms_norm, self.config.rms_norm_eps
            yield norm(before, layer.mlp_norm, eps), "experts beside attention: the stream before attention is normed"
            yield norm(now["stream_mid"], layer.attn_norm, eps), "the weight of attn_norm for that of mlp_norm"
        elif part == "q_rotated":
            yield now["q"], "not rotated"
        elif part == "k_rotated":
            yield now["k"], "not rotated"
        yield from differences.patterns(ours, theirs, self.config)

    def mistaken(self, name, theirs, rows):
        """([(what remains of the difference with a known mistake, which one)], why none is tried): each is made in all
        steps since the stream was known to agree, and must leave the tensors as they are that agree."""
        if self.start is None:
            return [], ""
        (first, x), end, c = self.start, half_of(name), self.config
        halves = {half % 2 for half in range(first, end + 1)} if end is not None else {2}
        last = 2 * c.num_hidden_layers if end is None else end
        if last - first > 1 and c.num_hidden_layers * c.num_local_experts * c.intermediate_size * c.hidden_size > LARGE:
            return [], "; with more of the tensors before it there could be"
        if end is None:
            halves |= {half % 2 for half in range(first, last)}
        results = []
        for mistake in differences.mistakes_in(halves):
            part = slice(None)
            if mistake.function in differences.EXPERTS_ONLY and first == end:
                part = rows[:FEW]
            try:
                module = broken(mistake)
            except ValueError:  # an edit of a source that is not as it was
                continue
            model = watched(module)(c, self.model.embedding, self.model.layers, self.model.norm,
                                    self.model.unembedding, module.operations_of("numpy"))
            tensor = self.tensor_of(model, name, first, x[part], part)
            if tensor is not None:
                results.append((relative(tensor, theirs[part]), differences.said(mistake)))
        return results, ""

    def tensor_of(self, model, wanted, first, x, part):
        """The tensor of a run from a half-layer on that gets theirs where they have them, or None if another tensor
        differs before it."""
        def see(name, value):
            if name == wanted:
                raise Found(value)
            if name not in self.theirs:
                return value
            theirs = self.theirs[name][part]
            if not relative(value, theirs) <= self.limits[name]:
                raise Found(None)
            return theirs

        try:
            return model.run(x, see, first)
        except Found as found:
            return found.args[0]
        except (ValueError, IndexError, FloatingPointError):  # a mistake that cannot be made with these shapes
            return None


def half_of(name):
    """The half of a layer in which a tensor is made: 2 i attention of layer i, 2 i + 1 its experts; None: neither."""
    at, _, part = name.rpartition(".")
    late = ("mlp_norm", "router_logits", "chosen", "weights", "experts_out", "stream")
    return 2 * int(at[5:]) + (part in late) if at else None


def other_sets(a, b):
    """Which tokens have other experts."""
    return (np.sort(a) != np.sort(b)).any(axis=1)


def ranges(numbers):
    """[0, 1, 2, 7] -> "0-2, 7"; of many ranges the first."""
    numbers = np.asarray(numbers)
    cuts = np.flatnonzero(np.diff(numbers) > 1) + 1
    runs = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in np.split(numbers, cuts)]
    return ", ".join(runs[:6]) + (", ..." if runs[6:] else "")


# ---- The program ----------------------------------------------------------------------------------------------------

@program.ends("python tests/compare.py", unread=2)
def main():
    parser = program.parser("python tests/compare.py",
                            "The first tensor in which another implementation differs, and how.")
    parser.add_argument("directory", metavar="DIR", help="a checkpoint")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--theirs", metavar="FILE.npz", type=Path, help="tensors to compare with (docs/compare.md)")
    other.add_argument("--export", metavar="FILE.npz", type=Path, help="write our tensors")
    parser.add_argument("--layers", type=int, metavar="N", help="the model that the first N layers are (default: all)")
    args = parser.parse_args()
    try:
        model = load(args.directory, args.layers)
        tokens = default_tokens(model.config)
        if args.export:
            with atomic_write(args.export) as out:
                np.savez(out, **ours(model, tokens))
            print(f"{args.export}: {len(tokens)} tokens, {len(model.layers)} layers")
            return 0
        if args.theirs:
            theirs = from_file(args.theirs, model.config)
        else:
            expect(read_config(args.directory)[1] == "hf", ValueError, args.directory,
                   "the Hugging Face layout, which transformers reads", "original/ (compare with --theirs)")
            check_memory(model.config)
            theirs = from_transformers(args.directory, model.config, tokens)
        print(f"{len(model.layers)} layers, {len(theirs['tokens'])} tokens, "
              f"ours and {args.theirs or 'transformers, float32'}\n")
        return Comparison(model, theirs).run()
    except ImportError as error:
        raise ValueError(f"expected torch, transformers and accelerate (or --theirs), found {error}") from None


if __name__ == "__main__":
    sys.exit(main())
