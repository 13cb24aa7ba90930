"""Checkpoints of gpt-oss on disk, as published: read without a copy, and checked in every detail.

Two layouts hold the same numbers under different names: the Hugging Face one, and `original/`. This file turns either
into a Config and arrays that are views into the mapped files. It knows names, shapes, bytes and number formats, and not
what a model does with them. Whatever is wrong with a file is said in one sentence: where, what is expected, what found.

    M  rows of a matrix       F  intermediate_size     Q   query heads * head_dim
    N  hidden_size            V  vocab_size            KV  key/value heads * head_dim
                              E  num_local_experts
"""

import json
import os
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import NamedTuple

import numpy as np

from files import BEGINNINGS, JSON_BYTES, read_json, what_is
from files import CheckpointError as CheckpointError
from files import expect as expect
from files import expect_number as expect_number

# ---- Number formats -------------------------------------------------------------------------------------------------
# NumPy has no bfloat16. A bf16 array is kept as its 16-bit patterns, uint16; the other formats are named tuples.

LARGEST = 1e15  # of a number that is calculated with: near float32's end, 3e38, the order of a sum decides what it is


def bf16_to_float32(bits):
    """bf16 bit patterns (uint16) -> float32, exactly: bf16 is the upper half of a float32. float16 is converted too."""
    shift = bits.dtype == np.uint16
    return (bits.astype(np.uint32) << 16).view(np.float32) if shift else bits.astype(np.float32, copy=False)

def float32_to_bf16(x):
    """float32 -> bf16 bit patterns (uint16), to the nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class MXFP4(NamedTuple):
    """Packed weights [..., M, N] (OCP Microscaling v1.0): each 32 neighbours along N share one scale."""
    blocks: np.ndarray  # uint8 [..., M, N/32, 16]: two e2m1 numbers a byte, the even element in the low nibble
    scales: np.ndarray  # uint8 [..., M, N/32]: e8m0, worth 2^(byte - 127)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# Byte 0 is 2^-127, which float32 has as a subnormal number. (As a float32's exponent it would be 0.) Byte 255 is nan.
E8M0 = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan))


def dequantize(weight):
    """MXFP4 [..., M, N] -> float32 [..., M, N], exactly."""
    values = np.stack([E2M1[weight.blocks & 15], E2M1[weight.blocks >> 4]], axis=-1)  # [..., M, N/32, 16, 2]
    values = values.reshape(*weight.scales.shape, 32) * E8M0[weight.scales][..., None]  # [..., M, N/32, 32]
    return values.reshape(*weight.scales.shape[:-1], -1)


class Int8(NamedTuple):
    """Weights [M, N] quantized at load: each 32 neighbours along N share one scale (the last block may be shorter)."""
    values: np.ndarray  # int8 [M, N]
    scales: np.ndarray  # bf16 [M, ceil(N/32)]


def quantize_int8(weight):
    """A matrix [M, N] -> Int8, to the nearest of 255 steps between -max and max of each block."""
    M, N = weight.shape
    values, scales = np.empty((M, N), np.int8), np.empty((M, -(-N // 32)), np.uint16)
    for r in range(0, M, 4096):  # 47 MB of float32 at a time at N = 2880
        x = bf16_to_float32(weight[r : r + 4096])
        x = np.pad(x, ((0, 0), (0, -N % 32))).reshape(len(x), -1, 32)
        scale = float32_to_bf16(np.abs(x).max(-1) / 127)  # at most 0.4% off, so max stays below 127.5 steps
        scales[r : r + 4096] = scale = np.maximum(scale, 0x0080)  # 2^-126: what is smaller would be coarser
        steps = np.rint(x / bf16_to_float32(scale)[..., None]).astype(np.int8)
        values[r : r + 4096] = steps.reshape(len(x), -1)[:, :N]
    return Int8(values, scales)


def dequantize_int8(weight):
    """Int8 [M, N] -> float32 [M, N], exactly."""
    scales = np.repeat(bf16_to_float32(weight.scales), 32, axis=1)  # [M, at least N]
    return weight.values * scales[:, : weight.values.shape[1]]


class Adapted(NamedTuple):
    """A weight [..., M, N] and a low-rank update beside it: W + B A (LoRA, arXiv 2106.09685)."""
    weight: np.ndarray  # or MXFP4, or Int8
    A: np.ndarray  # float32 [..., r, N]
    B: np.ndarray  # float32 [..., M, r], times alpha / r already


def part(weight, i):
    """weight[i] for any kind of weight: an expert of [E, M, N], or some rows of [M, N]."""
    return type(weight)(*(part(array, i) for array in weight)) if isinstance(weight, tuple) else weight[i]


# ---- The directory --------------------------------------------------------------------------------------------------

STRANGERS = {  # what is found where a checkpoint should be, by a file that it has
    "adapter_config.json": "an adapter (adapter_config.json), which is loaded beside its base model",
    "*.gguf": BEGINNINGS[b"GGUF"],
    "*.bin": "pickles of PyTorch (.bin), to be saved as .safetensors",
    "*/*.distcp": "shards of a training (.distcp), to be merged and saved as .safetensors",
}


def directory_of(path):
    """The directory of a checkpoint, which is named by it or by its .safetensors file."""
    found, directory = what_is(path).replace("such file", "such directory"), Path(path)
    if found == "a file" and directory.suffix == ".safetensors":
        found, directory = "a directory", directory.parent
    expect(found == "a directory", CheckpointError, path, "a checkpoint directory", found)
    mistaken = None if os.path.lexists(directory / "config.json") else stranger(directory)
    expect(mistaken is None, CheckpointError, path, "a checkpoint", mistaken or "")
    return directory


def stranger(directory):
    """What a directory has that is taken for a checkpoint, or None."""
    return next((name for pattern, name in STRANGERS.items() if any(directory.glob(pattern))), None)


# ---- Config ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Config:
    """The shape of a model; the fields have the names of the Hugging Face config.json."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int
    rope_theta: float
    layer_types: tuple = ()  # "sliding_attention" or "full_attention" for each layer
    rope_scaling: dict | None = None  # YaRN's factor, beta_fast, beta_slow, original_max_position_embeddings, truncate
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    eos_token_id: tuple = (200002, 199999, 200012)  # <|return|>, <|endoftext|>, <|call|>
    do_sample: bool = True  # False: the checkpoint wants to be decoded greedily


ORIGINAL_KEYS = {  # original/config.json says some things by another name
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "initial_context_length": "original_max_position_embeddings",
    "rope_scaling_factor": "factor",
    "rope_ntk_beta": "beta_fast",
    "rope_ntk_alpha": "beta_slow",
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
         "num_local_experts", "num_experts_per_tok", "sliding_window")
NUMBERS = {  # key: kind, lowest, highest, and the default where the key may be missing
    **{key: (int, 1, 2**31) for key in SIZES},
    "num_hidden_layers": (int, 1, 1000),
    "rope_theta": (float, 1 + 1e-6, 1e12),
    "rms_norm_eps": (float, 0, 1, 1e-5),
    "swiglu_limit": (float, 1e-6, 1e12, 7.0),
}
FIXED = {  # what gpt-oss is built with: another value would be another function. None: it must not be there
    "tie_word_embeddings": False, "attention_bias": True, "hidden_act": "silu", "swiglu_alpha": 1.702,
    "partial_rotary_factor": 1, "attention_factor": None, "mscale": None, "mscale_all_dim": None,
}
YARN = {  # defaults as transformers fills them in
    "factor": (float, 1, 1e6),
    "original_max_position_embeddings": (int, 1, 2**31),
    "beta_fast": (float, 1e-6, 1e6, 32.0),
    "beta_slow": (float, 1e-6, 1e6, 1.0),
}


def read_config(path):
    """The Config of a checkpoint in either layout, and the name of that layout, "hf" or "original"."""
    directory = directory_of(path)
    path = directory / "config.json"
    raw = read_json(path)
    layout = "hf" if "model_type" in raw or "num_local_experts" in raw else "original"
    written = {} if layout == "hf" else {new: old for old, new in ORIGINAL_KEYS.items()}  # keys as the file has them
    def need(ok, key, expected, value):
        expect(ok, CheckpointError, f"{path}: {written.get(key, key)}", expected, "" if ok else json.dumps(value))
    def numbers(source, table):
        for key, (kind, low, high, *default) in table.items():
            value = source.get(key, *default)
            found = "nothing, the key is missing" if value is None and key not in source else json.dumps(value)
            yield key, expect_number(value, kind, low, high, CheckpointError, f"{path}: {written.get(key, key)}", found)

    if layout == "original":
        raw = {ORIGINAL_KEYS.get(key, key): value for key, value in raw.items()}
        rope, rope_key = raw | {"rope_type": "yarn", "truncate": False}, "rope_scaling"
    else:
        need(raw.get("model_type") == "gpt_oss", "model_type", '"gpt_oss"', raw.get("model_type"))
        quantization = raw.get("quantization_config") or {"quant_method": "mxfp4"}  # what there is, the tensors say
        need(isinstance(quantization, dict) and quantization.get("quant_method") == "mxfp4", "quantization_config",
             'nothing or quant_method "mxfp4"', quantization)
        rope_key, rope = rope_of(raw, need)
        raw = {key: rope[key] for key in ("rope_theta",) if key in rope} | raw
        for key, value in FIXED.items():
            for given in (raw.get(key), rope.get(key)):
                need(given in (None, value), key, "nothing" if value is None else json.dumps(value), given)
    fields, longest = dict(numbers(raw, NUMBERS)), 131072

    rope_type = rope.get("rope_type", rope.get("type"))
    need(rope_type in ("yarn", "default"), f"{rope_key}.rope_type", '"yarn" or "default"', rope_type)
    if rope_type == "yarn":
        if "max_position_embeddings" in raw:  # transformers 4.55 leaves this one out; every version fills it in so
            rope = {"original_max_position_embeddings": raw["max_position_embeddings"]} | rope
        fields["rope_scaling"] = scaling = dict(numbers(rope, YARN)) | {"truncate": rope.get("truncate", True)}
        need(isinstance(scaling["truncate"], bool), "truncate", "true or false", scaling["truncate"])
        longest = int(scaling["factor"] * scaling["original_max_position_embeddings"])
    fields |= numbers(raw, {"max_position_embeddings": (int, 1, 2**31, longest)})

    kinds, layers = ("sliding_attention", "full_attention"), fields["num_hidden_layers"]
    types = raw.get("layer_types")
    types = [kinds[i % 2] for i in range(layers)] if types is None else types
    need(isinstance(types, list) and len(types) == layers and all(kind in kinds for kind in types), "layer_types",
         f"a list of {layers}, each {' or '.join(map(repr, kinds))}", types)

    D, H, G, K, E = (fields[key] for key in ("head_dim", "num_attention_heads", "num_key_value_heads",
                                             "num_experts_per_tok", "num_local_experts"))
    need(D % 2 == 0, "head_dim", "an even number", D)
    need(H % G == 0, "num_attention_heads", f"a multiple of num_key_value_heads ({G})", H)
    need(K <= E, "num_experts_per_tok", f"at most the number of experts ({E})", K)

    generation, V = directory / "generation_config.json", fields["vocab_size"]
    says = read_json(generation) if os.path.lexists(generation) else {}
    stops = stop_ids(generation, says, V) | stop_ids(path, raw, V)  # a reply ends at what either file names
    fields["eos_token_id"] = tuple(stops) or Config.eos_token_id
    return Config(**fields, layer_types=tuple(types), do_sample=(says or raw).get("do_sample") is not False), layout


def rope_of(raw, need):
    """The key and the value of what a config says of RoPE: rope_scaling, or as transformers 5 writes it,
    rope_parameters with rope_theta in it. A number that stands in two places must be the same in both."""
    rope_key = "rope_scaling" if raw.get("rope_parameters") is None else "rope_parameters"
    rope = raw.get(rope_key)  # if there is none, transformers 4 and 5 take different ones
    need(isinstance(rope, dict), rope_key, "YaRN's numbers, or {\"rope_type\": \"default\"} for plain RoPE", rope)
    twice = {"rope_scaling": (raw.get("rope_scaling"), raw.get("rope_parameters")),
             "rope_type": (rope.get("rope_type"), rope.get("type")),
             "num_experts": (raw.get("num_experts"), raw.get("num_local_experts")),  # what other models call it
             **{key: (raw.get(key), rope.get(key)) for key in ("rope_theta", "truncate", *YARN)}}
    for key, values in twice.items():
        given = [value for value in values if value is not None]
        need(given[1:] in ([], given[:1]), key, "one value, or the same in both places", given)
    return rope_key, rope


def stop_ids(path, source, V):
    """The eos_token_id of a JSON file, an id or a list of them, as a dict's keys: a set that keeps its order."""
    ids = source.get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    valid = all(type(id) is int and 0 <= id < V for id in ids)
    expect(valid, CheckpointError, f"{path}: eos_token_id", f"ids from 0 to {V - 1}", json.dumps(ids))
    return dict.fromkeys(ids)


# ---- Safetensors ----------------------------------------------------------------------------------------------------
# A safetensors file is eight bytes of length, that much JSON which says where each tensor lies, and the tensors' bytes.
# The library's own NumPy loader refuses bfloat16, so the header is read here. Everything is a view into the
# mapped file: the operating system reads a page when it is used.

FLOATS = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
STORED = FLOATS | {"U8": np.dtype("u1")}
ITEM_BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16,
             "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
             "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}  # those of the library, version 0.8
WRAPPED = "a name from a training (save the model in the wrapper, not the wrapper)"
WRONG_NAMES = {  # parts of names that say what went wrong
    "module.model.": WRAPPED, "_orig_mod.": WRAPPED, "base_model.model.": WRAPPED,
    ".gate_up_projs.": "an expert apart, as Unsloth trains them (save_pretrained_merged puts them together)",
}


def map_safetensors(path):
    """{name: (dtype name, shape, bytes as a uint8 view)} of one file; raises CheckpointError where the file contradicts
    itself. Format: github.com/huggingface/safetensors#format."""
    def need(ok, expected, found, name=None):
        expect(ok, CheckpointError, path if name is None else f"{path}: {name}", expected, found)

    found = what_is(path)
    need(found == "a file", "a safetensors file", found)
    size = os.path.getsize(path)
    need(size >= 8, "a safetensors file", f"{size} bytes")
    data = np.asarray(np.memmap(path, np.uint8, mode="r"))  # (views of a memmap are slower to make and to pass on)
    header_size, most = int.from_bytes(data[:8].tobytes(), "little"), min(size - 8, JSON_BYTES)
    need(header_size <= most, f"a header of at most {most} bytes", f"one of {header_size} (a file cut short?)")
    header = read_json(path, data[8 : 8 + header_size].tobytes())
    about, data = header.pop("__metadata__", None), data[8 + header_size :]
    texts = isinstance(about, dict) and all(isinstance(text, str) for text in about.values())
    need(about is None or texts, "an object of texts", about, "__metadata__")
    tensors, entries, position = {}, [], 0
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **others}:
                numbers = all(type(n) is int and 0 <= n < 2**64 for n in (*shape, begin, end))
                valid = dtype in ITEM_BITS and numbers and not others
            case _:
                valid = False
        need(valid, "a dtype, a shape and data_offsets in the header", entry, name)
        entries.append((begin, end, name, dtype, tuple(shape)))
    for begin, end, name, dtype, shape in sorted(entries):
        need(begin == position, f"its bytes to begin at {position}", f"{begin} (tensors overlap or leave a gap)", name)
        need(end <= len(data), f"its end within the {len(data)} bytes of data", f"{end} (a file cut short?)", name)
        fits = all((bits := n) < 2**64 for n in accumulate((1, *shape, ITEM_BITS[dtype]), mul))  # so far, at each step
        fits = fits and bits == 8 * (end - begin)
        need(fits, f"{bits / 8:.16g} bytes for {dtype} {list(shape)}", f"{end - begin}", name)
        tensors[name], position = (dtype, shape, data[begin:end]), end
    need(position == len(data), f"{position} bytes of tensors", f"{len(data)}")
    return tensors


class Checkpoint:
    """The tensors of a directory, in one file or in shards, with or without an index."""

    def __init__(self, path):
        directory = directory_of(path)
        index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
        if directory != Path(path):
            where, files = None, [Path(path).name]
        elif os.path.lexists(index):
            where = read_json(index).get("weight_map")
            expect(isinstance(where, dict), CheckpointError, f"{index}: weight_map", "an object of names", where)
            for file in where.values():
                beside = isinstance(file, str) and Path(file).name == file and "\\" not in file
                expect(beside and file.endswith(".safetensors"), CheckpointError, index,
                       "names of .safetensors files beside it", repr(file))
            files = sorted(set(where.values()))
            expect(single.name in files or not os.path.lexists(single), CheckpointError, directory,
                   f"{single.name}, or the shards of {index.name}",
                   "both (if the index is stale, delete it; else the single file)")
        else:
            where, files = None, {path.name for path in directory.glob("*.safetensors")} - {"adapter_model.safetensors"}
            files = [single.name] if single.name in files else sorted(files)
            expect(files, CheckpointError, directory, "a .safetensors file", stranger(directory) or "none")
        self.directory, self.tensors, self.files = directory, {}, {}  # files: as the operating system describes them
        for file in files:
            for name, tensor in map_safetensors(directory / file).items():
                if where is None or where.get(name) == file:
                    once = name not in self.tensors
                    expect(once, CheckpointError, f"{directory / file}: {name}", "each tensor once", "it in two shards")
                    self.tensors[name] = (directory / file, *tensor)
            self.files[directory / file] = os.stat(directory / file)
        for name, file in (where or {}).items():
            expect(name in self.tensors, CheckpointError, f"{index}: {name}", f"it in {file}", "no such tensor")
        for name in self.tensors:
            wrong = next((why for part, why in WRONG_NAMES.items() if part in name), None)
            expect(wrong is None, CheckpointError, f"{directory}: {name}", "a tensor of gpt-oss", wrong or "")

    def view(self, name, dtype, shape):
        """The tensor `name` as a read-only array of `shape`; bf16 as uint16. BF16 stands for any of FLOATS: what is
        published in bf16 comes from a training in float16 or float32 as well."""
        expect(name in self.tensors, CheckpointError, f"{self.directory}: {name}", "this tensor", "nothing, missing")
        file, found_dtype, found_shape, data = self.tensors[name]
        dtypes, expected = (FLOATS, "BF16, F16 or F32") if dtype == "BF16" else ({dtype}, dtype)
        expect(found_dtype in dtypes and found_shape == shape, CheckpointError, f"{file}: {name}",
               f"{expected} {list(shape)}", f"{found_dtype} {list(found_shape)}")
        array = data.view(STORED[found_dtype]).reshape(shape)
        return array if array.flags.aligned else array.copy()  # an odd header length; never so in published files


# ---- The tensors of a model -----------------------------------------------------------------------------------------

def tensor_table(config, layout):
    """{tensor name: (field, layer or None, dtype, shape)}: what a checkpoint must hold, in the order of use."""
    c, N, F, E = config, config.hidden_size, config.intermediate_size, config.num_local_experts
    Q, KV = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    top = [  # field, name in the HF layout, name in original/, dtype, shape
        ("embedding", "model.embed_tokens.weight", "embedding.weight", "BF16", (c.vocab_size, N)),
        ("norm", "model.norm.weight", "norm.scale", "BF16", (N,)),
        ("unembedding", "lm_head.weight", "unembedding.weight", "BF16", (c.vocab_size, N)),
    ]
    experts = "mlp.experts."
    block = [
        ("attn_norm", "input_layernorm.weight", "attn.norm.scale", "BF16", (N,)),
        ("q_weight", "self_attn.q_proj.weight", None, "BF16", (Q, N)),
        ("k_weight", "self_attn.k_proj.weight", None, "BF16", (KV, N)),
        ("v_weight", "self_attn.v_proj.weight", None, "BF16", (KV, N)),
        ("qkv_weight", None, "attn.qkv.weight", "BF16", (Q + 2 * KV, N)),
        ("q_bias", "self_attn.q_proj.bias", None, "BF16", (Q,)),
        ("k_bias", "self_attn.k_proj.bias", None, "BF16", (KV,)),
        ("v_bias", "self_attn.v_proj.bias", None, "BF16", (KV,)),
        ("qkv_bias", None, "attn.qkv.bias", "BF16", (Q + 2 * KV,)),
        ("sinks", "self_attn.sinks", "attn.sinks", "BF16", (c.num_attention_heads,)),
        ("o_weight", "self_attn.o_proj.weight", "attn.out.weight", "BF16", (N, Q)),
        ("o_bias", "self_attn.o_proj.bias", "attn.out.bias", "BF16", (N,)),
        ("mlp_norm", "post_attention_layernorm.weight", "mlp.norm.scale", "BF16", (N,)),
        ("router_weight", "mlp.router.weight", "mlp.gate.weight", "BF16", (E, N)),
        ("router_bias", "mlp.router.bias", "mlp.gate.bias", "BF16", (E,)),
        ("gate_up_blocks", experts + "gate_up_proj_blocks", "mlp.mlp1_weight.blocks", "U8", (E, 2 * F, N // 32, 16)),
        ("gate_up_scales", experts + "gate_up_proj_scales", "mlp.mlp1_weight.scales", "U8", (E, 2 * F, N // 32)),
        ("gate_up_bias", experts + "gate_up_proj_bias", "mlp.mlp1_bias", "BF16", (E, 2 * F)),
        ("down_blocks", experts + "down_proj_blocks", "mlp.mlp2_weight.blocks", "U8", (E, N, F // 32, 16)),
        ("down_scales", experts + "down_proj_scales", "mlp.mlp2_weight.scales", "U8", (E, N, F // 32)),
        ("down_bias", experts + "down_proj_bias", "mlp.mlp2_bias", "BF16", (E, N)),
    ]
    name, prefix = (1, "model.layers") if layout == "hf" else (2, "block")
    table = {row[name]: (row[0], None, *row[3:]) for row in top}
    for i in range(c.num_hidden_layers):
        table |= {f"{prefix}.{i}.{row[name]}": (row[0], i, *row[3:]) for row in block if row[name]}
    return table


def read_tensors(directory, config, layout):
    """The tensors of a checkpoint as {field: array}: of the model, and of each layer in a list. Either layout gives
    the same fields, those of gptoss.Layer. And {path: os.stat} of the files that they are views of."""
    checkpoint, top, layers = Checkpoint(directory), {}, [{} for _ in range(config.num_hidden_layers)]
    for name, (field, i, dtype, shape) in tensor_table(config, layout).items():
        weight, _, part = field.rpartition("_")
        if part == "blocks":
            layers[i][weight] = expert_weight(checkpoint, name, shape, config, weight)
        elif part != "scales":
            (top if i is None else layers[i])[field] = checkpoint.view(name, dtype, shape)
    Q, KV = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    for layer in layers if layout == "original" else ():  # q, k and v are one tensor there
        for part in ("weight", "bias"):  # a row slice of a view is a view
            split = np.split(layer.pop(f"qkv_{part}"), [Q, Q + KV])
            layer |= dict(zip((f"q_{part}", f"k_{part}", f"v_{part}"), split, strict=True))
    return top, layers, checkpoint.files


def expert_weight(checkpoint, blocks, shape, config, field):
    """The experts' weight [E, M, N] whose MXFP4 blocks have this name and shape [E, M, N/32, 16]. A training leaves it
    unpacked, as [E, N, M] under the name without "_blocks": then it is that array, transposed."""
    key = "hidden_size" if field == "gate_up" else "intermediate_size"
    (E, M), N, name = shape[:2], getattr(config, key), blocks[: -len("_blocks")]
    if name in checkpoint.tensors:
        return checkpoint.view(name, "BF16", (E, N, M)).swapaxes(1, 2)
    where = f"{checkpoint.directory / 'config.json'}: {key}"
    expect(N % 32 == 0, CheckpointError, where, "a multiple of 32, the MXFP4 block", N)
    scales = blocks[: -len("blocks")] + "scales"
    return MXFP4(checkpoint.view(blocks, "U8", shape), checkpoint.view(scales, "U8", shape[:3]))
