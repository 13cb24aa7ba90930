"""LoRA adapters as PEFT writes them: read, checked, and put beside the weights that they change.

An adapter (arXiv 2106.09685) has for a weight W [M, N] two thin matrices, A [r, N] and B [M, r], and makes it
W + s B A with s = alpha / r. Nothing is added up here. W stays as the checkpoint has it, packed if it is packed, and
`linear` computes W x + B (A x). PEFT keeps the matrices of all E experts side by side, and in two ways:

    lora_A [r E, N]    row e r + j is expert e's row j            the expert comes first
    lora_B [M, r E]    column j E + e is expert e's column j      the expert comes last

The experts' two weights have no names in the file. One of them is called `mlp.experts`, the other one
`mlp.experts.base_layer`, and which is which depends on the program and on its version. The shapes tell them apart.

    E  experts      F  intermediate_size      Q   query heads * head_dim
    r  rank         N  hidden_size, or any number of inputs, and M of outputs
"""

import os
import re
import time
from functools import cache
from pathlib import Path

import numpy as np

import checkpoint
from checkpoint import Adapted, CheckpointError, bf16_to_float32, expect, expect_number
from files import read_json, what_is

MODULES = {"self_attn.q_proj": "q_weight", "self_attn.k_proj": "k_weight", "self_attn.v_proj": "v_weight",
           "self_attn.o_proj": "o_weight", "mlp.router": "router_weight", "mlp.router.linear": "router_weight"}
STACKED = re.compile(r"mlp\.experts(\.base_layer)*")  # the experts as PEFT has them, and then one by one, as Unsloth
SINGLE = re.compile(r"mlp\.experts\.(gate_up|down)_projs\.(\d{1,9})")
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # of torch: in the way
TENSOR = re.compile(r"(?:(?:base_model|model|module)\.)*layers\.(\d{1,9})\.(.+?)\.lora_([AB])(?:\.\w+)?\.weight")
# Of the other keys of adapter_config.json each may change what is computed, and so do those that are still to come.
HARMLESS = {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
            "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
            "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
            "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
            "target_modules", "target_parameters", "task_type", "use_rslora", "velora_config"}
SLOW = re.compile(r"([*+?{(].*){4}|\)[*+{]|\(\?[^:]")  # parts of patterns that may take years to find no match
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")  # the other ones change W too, before the training


def adapt(layers, directory, config):
    """Makes Adapted weights of those in `layers`, a dict {field of gptoss.Layer: weight} each, that the adapter in
    `directory` changes. Raises CheckpointError for whatever would be computed otherwise than it was trained."""
    rank_and_scale = read_adapter_config(Path(directory))
    file = Path(directory) / "adapter_model.safetensors"
    N, F, E, D = config.hidden_size, config.intermediate_size, config.num_local_experts, config.head_dim
    Q, KV = config.num_attention_heads * D, config.num_key_value_heads * D
    shapes = {"q_weight": (Q, N), "k_weight": (KV, N), "v_weight": (KV, N), "o_weight": (N, Q),
              "router_weight": (E, N), "gate_up": (2 * F, N), "down": (N, F)}  # [M, N] of each

    def candidates(i, module, crossed=False):
        """(field, first expert, experts, rank, scale, lora_A's shape, lora_B's) for each weight this may belong to."""
        single, name, fields = SINGLE.fullmatch(module), f"model.layers.{i}.{module}", {}
        if STACKED.fullmatch(module):
            fields = {field: (f"model.layers.{i}.mlp.experts.{field}_proj", 0, E) for field in ("gate_up", "down")}
        elif single and int(single[2]) < E:
            fields = {single[1]: (name, int(single[2]), 1)}
        elif module in MODULES:
            fields = {MODULES[module]: (name + ".weight" * (module == "mlp.router"), 0, 1)}
        for field, (name, first, count) in fields.items():
            (r, scale), (rows, columns) = rank_and_scale(name), shapes[field][:: -1 if crossed else 1]
            yield field, first, count, r, scale, (r * count, columns), (rows, r * count)

    def fitting(place, pair, crossed=False):
        shapes = tuple(matrix.shape for matrix in pair)
        return next((c for c in candidates(*place, crossed) if c[-2:] == shapes), None)

    pairs = read_pairs(file, len(layers), lambda place: any(candidates(*place)))
    # Recent versions of PEFT take the experts' inputs for outputs where transformers doesn't say how they lie, which it
    # does from version 5 on: there A is B, and B is A. (Where N = F, as in gpt-oss, the shapes of `down` alone cannot
    # tell. Then it is taken as all other versions write it.)
    stacked = [(place, pair) for place, pair in pairs.items() if STACKED.fullmatch(place[1])]
    crossed = not all(fitting(*item) for item in stacked) and all(fitting(*item, True) for item in stacked)

    updates = {}  # (layer, field): {expert: (A, B)}, of the dense weights expert 0
    for place, (A, B) in pairs.items():
        where, turned = f"{file}: layers.{place[0]}.{place[1]}", crossed and STACKED.fullmatch(place[1])
        found = fitting(place, (A, B), turned)
        expected = " or ".join(f"lora_A {[*a]} and lora_B {[*b]}" for *_, a, b in candidates(*place))
        expect(found, CheckpointError, where, expected, f"{[*A.shape]} and {[*B.shape]}")
        field, first, count, r, scale, _, _ = found
        with np.errstate(all="ignore"):
            B = B * np.float32(scale)
        expect(np.isfinite(A).all() and np.isfinite(B).all(), CheckpointError, where, "finite numbers", "nan or inf")
        A, B = A.reshape(count, r, -1), B.reshape(-1, r, count).transpose(2, 0, 1)  # [experts, r, N], [experts, M, r]
        if turned:
            A, B = B.swapaxes(1, 2), A.swapaxes(1, 2)
        held = updates.setdefault((place[0], field), {})
        for e in range(count):
            expect(first + e not in held, CheckpointError, where, f"each weight once, {field} too", "it twice")
            held[first + e] = A[e], B[e]
    for (i, field), held in updates.items():
        (A, B), (M, N), r = held[min(held)], shapes[field], max(len(A) for A, _ in held.values())
        if field in ("gate_up", "down"):
            A, B = np.zeros((E, r, N), np.float32), np.zeros((E, r, M), np.float32).swapaxes(1, 2)
            for e, (a, b) in held.items():  # an expert that is not among them stays as it is
                A[e, : len(a)], B[e, :, : len(a)] = a, b
        B = np.ascontiguousarray(B.swapaxes(-2, -1)).swapaxes(-2, -1)  # a column in one piece: faster
        layers[i][field] = Adapted(layers[i][field], A, B)


def read_adapter_config(directory):
    """A function that gives the rank and the scale of a parameter by its name, as adapter_config.json says them."""
    path, found = directory / "adapter_config.json", what_is(directory)
    expect(found == "a directory", CheckpointError, directory, "the directory of an adapter", found)
    model = os.path.lexists(directory / "config.json") and not os.path.lexists(path)
    expect(not model, CheckpointError, directory, "an adapter (adapter_config.json)", "a checkpoint (config.json)")
    raw = read_json(path, most=1_000_000)

    def need(ok, key, expected):
        expect(ok, CheckpointError, f"{path}: {key}", expected, "" if ok else repr(raw.get(key)))

    need(raw.get("peft_type") == "LORA", "peft_type", "'LORA'")
    need(raw.get("bias", "none") == "none", "bias", "'none'")
    need(raw.get("init_lora_weights") in BEGINNINGS, "init_lora_weights",
         "a beginning that leaves the model's own weights alone")
    for key, value in raw.items():
        need(key in HARMLESS or not value, key, "nothing: it changes what is computed, and is not supported here")
    need(isinstance(raw.get("use_rslora", False), bool), "use_rslora", "true or false")
    patterns, end = {}, time.monotonic() + 5
    for key in ("rank_pattern", "alpha_pattern"):
        need(isinstance(raw.get(key) or {}, dict), key, "an object")
        patterns[key] = []
        for text, value in (raw.get(key) or {}).items():
            need(time.monotonic() < end, key, "patterns that take less than five seconds")
            quick = len(text) <= 200 and not SLOW.search(text)
            need(quick, key, "short patterns with at most three repeats and groups, and without repeated groups")
            try:
                patterns[key].append((re.compile(rf"(.*\.)?({text})$"), f"{path}: {key}: {text}", value))
            except (re.error, RecursionError, OverflowError) as error:
                need(False, key, f"regular expressions ({error})")

    def number(key, pattern, name, kind, low):
        """raw[key], or what the first of the patterns says that matches the end of the name."""
        for expression, where, value in patterns[pattern]:
            need(time.monotonic() < end, pattern, "patterns that take less than five seconds")
            if expression.match(name):
                return expect_number(value, kind, low, 10**9, CheckpointError, where)
        return expect_number(raw.get(key), kind, low, 10**9, CheckpointError, f"{path}: {key}")

    @cache
    def rank_and_scale(name):
        r = number("r", "rank_pattern", name, int, 1)
        alpha = number("lora_alpha", "alpha_pattern", name, float, -1e9)
        return r, alpha / (r ** 0.5 if raw.get("use_rslora") else r)

    return rank_and_scale


def read_pairs(file, count, known):
    """{(layer, module): [A, B]} in float32, copied from a safetensors file. Of each the layer must be one of `count`,
    and known((layer, module)) true: no tensor is passed over."""
    pickled = os.path.lexists(file.with_suffix(".bin")) and not os.path.lexists(file)
    expect(not pickled, CheckpointError, file.parent, "adapter_model.safetensors", "adapter_model.bin, a pickle, which "
           "may hold code (PeftModel.from_pretrained and save_pretrained make the other of it)")
    pairs = {}
    for name, (dtype, shape, data) in checkpoint.map_safetensors(file).items():
        where, match = f"{file}: {name}", TENSOR.fullmatch(WRAPPERS.sub("", name))
        place = match and (int(match[1]), match[2])
        expect(not match or place[0] < count, CheckpointError, where, f"layers 0 to {count - 1}, as the model", "more")
        expect(match and known(place), CheckpointError, where, "lora_A and lora_B of q_proj, k_proj, v_proj, o_proj, "
               "router and experts", "a tensor that is not supported here")
        expect(dtype in checkpoint.FLOATS and len(shape) == 2, CheckpointError, where,
               f"a matrix of {', '.join(checkpoint.FLOATS)}", f"{dtype} {[*shape]}")
        pair = pairs.setdefault(place, [None, None])
        expect(pair["AB".index(match[3])] is None, CheckpointError, where, "each matrix once", "it twice")
        data = data.copy().view(checkpoint.FLOATS[dtype]).reshape(shape)  # in float32 and not mapped: it is small
        pair["AB".index(match[3])] = bf16_to_float32(data)
    expect(pairs, CheckpointError, file, "matrices lora_A and lora_B", "none")
    for (i, module), pair in pairs.items():
        both = all(matrix is not None for matrix in pair)
        expect(both, CheckpointError, f"{file}: layers.{i}.{module}", "lora_A and lora_B", "one of them")
    return pairs
