"""Checkpoints of gpt-oss on disk, as published: read without a copy, checked in every detail; and random ones, written.

Two layouts hold the same numbers under different names: the Hugging Face one, and `original/`. This file turns either
into a Config and a table of array views. It knows names, shapes and bytes, and nothing of what a model does with them
(gptoss.py). Whatever is wrong with a file is said in one sentence: what, where, expected, found.

    N  hidden_size        E  num_local_experts      Q   query heads * head_dim
    F  intermediate_size  V  vocab_size             KV  key/value heads * head_dim
"""

import json
import math
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which file, which key or tensor, what was expected and what was found."""


def expect(ok, error, where, expected, found):
    """Raises error("WHERE: expected EXPECTED, found FOUND") unless `ok`. A `found` that is no text is shown as its
    repr, and of a long one the beginning: this is the form of every complaint in this project."""
    if not ok:
        found = found if isinstance(found, str) else repr(found)
        raise error(f"{where}: expected {expected}, found {found[:200]}")


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


ORIGINAL_KEYS = {  # original/config.json says some things by another name
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "initial_context_length": "original_max_position_embeddings",
    "rope_scaling_factor": "factor",
    "rope_ntk_beta": "beta_fast",
    "rope_ntk_alpha": "beta_slow",
}
YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}  # as transformers fills them in


def read_json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, found something else ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_config(directory):
    """The Config of a checkpoint directory in either layout, and the name of that layout, "hf" or "original"."""
    path = Path(directory) / "config.json"
    raw = read_json(path)
    layout = "hf" if "model_type" in raw or "num_local_experts" in raw else "original"
    written = {} if layout == "hf" else {new: old for old, new in ORIGINAL_KEYS.items()}  # keys as the file has them

    def fail(key, expected, found):
        raise CheckpointError(f"{path}: {written.get(key, key)}: expected {expected}, found {json.dumps(found)}")

    def number(source, key, kind, low, high, default=None):
        if key not in source and default is None:
            raise CheckpointError(f"{path}: {written.get(key, key)}: missing")
        value = source.get(key, default)
        fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not (fits and low <= value <= high):
            expected = f"an integer from {low} to {high}" if kind is int else f"a number from {low:g} to {high:g}"
            fail(key, expected, value)
        return kind(value)

    if layout == "original":
        raw = {ORIGINAL_KEYS.get(key, key): value for key, value in raw.items()}
        yarn = raw | {"rope_type": "yarn", "truncate": False}
    else:
        if raw.get("model_type") != "gpt_oss":
            fail("model_type", '"gpt_oss"', raw.get("model_type"))
        quantization = raw.get("quantization_config")
        if not isinstance(quantization, dict) or quantization.get("quant_method") != "mxfp4":
            fail("quantization_config", 'quant_method "mxfp4" (experts as published)', quantization)
        # transformers 5 writes rope_theta and YaRN's numbers together, as rope_parameters
        yarn = raw.get("rope_parameters") or raw.get("rope_scaling") or {"rope_type": "default"}
        if not isinstance(yarn, dict):
            fail("rope_scaling", "an object", yarn)
        raw = {"rope_theta": yarn.get("rope_theta")} | raw if "rope_theta" in yarn else raw

    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
             "num_local_experts", "num_experts_per_tok", "sliding_window")
    fields = {key: number(raw, key, int, 1, 2**31) for key in sizes}
    fields["num_hidden_layers"] = layers = number(raw, "num_hidden_layers", int, 1, 1000)
    fields["rope_theta"] = number(raw, "rope_theta", float, 1 + 1e-6, 1e12)
    fields["rms_norm_eps"] = number(raw, "rms_norm_eps", float, 0, 1, default=1e-5)
    fields["swiglu_limit"] = number(raw, "swiglu_limit", float, 1e-6, 1e12, default=7.0)

    rope_type = yarn.get("rope_type", yarn.get("type"))
    if rope_type == "yarn":
        fields["rope_scaling"] = scaling = YARN_DEFAULTS | {
            "factor": number(yarn, "factor", float, 1, 1e6),
            "original_max_position_embeddings": number(yarn, "original_max_position_embeddings", int, 1, 2**31),
        }
        for key in ("beta_fast", "beta_slow"):
            scaling[key] = number(yarn, key, float, 1e-6, 1e6, default=scaling[key])
        scaling["truncate"] = yarn.get("truncate", True)
        if not isinstance(scaling["truncate"], bool):
            fail("truncate", "true or false", scaling["truncate"])
        longest = int(scaling["factor"] * scaling["original_max_position_embeddings"])
    elif rope_type == "default":
        longest = 131072
    else:
        fail("rope_scaling.rope_type", '"yarn"', rope_type)
    fields["max_position_embeddings"] = number(raw, "max_position_embeddings", int, 1, 2**31, default=longest)

    kinds = ("sliding_attention", "full_attention")
    types = raw.get("layer_types")
    if types is None:
        types = [kinds[i % 2] for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(kind not in kinds for kind in types):
        fail("layer_types", f"a list of {layers}, each {' or '.join(map(repr, kinds))}", types)
    fields["layer_types"] = tuple(types)

    for key in ("hidden_size", "intermediate_size"):
        if fields[key] % 32:
            fail(key, "a multiple of 32, the MXFP4 block", fields[key])
    if fields["head_dim"] % 2:
        fail("head_dim", "an even number", fields["head_dim"])
    if fields["num_attention_heads"] % fields["num_key_value_heads"]:
        fail("num_attention_heads", f"a multiple of num_key_value_heads ({fields['num_key_value_heads']})",
             fields["num_attention_heads"])
    if fields["num_experts_per_tok"] > fields["num_local_experts"]:
        most = written.get("num_local_experts", "num_local_experts")
        fail("num_experts_per_tok", f"at most {most} ({fields['num_local_experts']})", fields["num_experts_per_tok"])

    generation = Path(directory) / "generation_config.json"
    where, source = (generation, read_json(generation)) if generation.exists() else (path, raw)
    if source.get("eos_token_id") is not None:
        eos = source["eos_token_id"]
        eos, last = eos if isinstance(eos, list) else [eos], fields["vocab_size"] - 1
        if not all(type(id) is int and 0 <= id <= last for id in eos):
            raise CheckpointError(f"{where}: eos_token_id: expected ids from 0 to {last}, found {json.dumps(eos)}")
        fields["eos_token_id"] = tuple(eos)
    return Config(**fields), layout


# ---- Checkpoint -----------------------------------------------------------------------------------------------------
# A safetensors file is eight bytes of length, that much JSON which says where each tensor lies, and the tensors' bytes.
# NumPy has no bfloat16 and safetensors' own NumPy loader refuses it, so the header is read here; a bf16 tensor is its
# 16-bit pattern, uint16. Everything is a view into the mapped file: the operating system reads a page when it is used.

STORED = {"BF16": np.dtype("<u2"), "U8": np.dtype("u1"), "F32": np.dtype("<f4")}
ITEM_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16,
             "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8}

MAX_HEADER = 100_000_000  # bytes, as in the safetensors library: a wrong length does not become gigabytes of JSON


def map_safetensors(path):
    """{name: (dtype name, shape, bytes as a uint8 view)} of one file; raises CheckpointError where the file contradicts
    itself. Format: github.com/huggingface/safetensors#format."""

    def fail(what):
        raise CheckpointError(f"{path}: {what}")

    try:
        size = path.stat().st_size
        if size < 8:
            fail(f"expected a safetensors file, found {size} bytes")
        data = np.asarray(np.memmap(path, np.uint8, mode="r"))  # (views of a memmap are slower to make and to pass on)
    except OSError as error:
        fail(f"cannot be read ({error.strerror or error})")
    header_size = int.from_bytes(data[:8].tobytes(), "little")
    if header_size > min(size - 8, MAX_HEADER):
        most = f"only {size - 8} follow its length" if header_size > size - 8 else f"the format allows {MAX_HEADER}"
        fail(f"the header should have {header_size} bytes, but {most}")
    try:
        header = json.loads(data[8 : 8 + header_size].tobytes())
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        fail("the header is not a JSON object")
    header.pop("__metadata__", None)
    data = data[8 + header_size :]

    tensors, spans = {}, []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            bits = ITEM_BITS[dtype]
            valid = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end)) and begin <= end
        except (TypeError, KeyError, ValueError):
            valid = False
        if not valid or len(shape) > 8:
            fail(f"{name}: expected a dtype, a shape and data_offsets in the header, found {json.dumps(entry)[:200]}")
        if end > len(data):
            fail(f"{name}: its bytes {begin} to {end} lie outside the {len(data)} bytes of data (a file cut short?)")
        if end - begin != math.prod(shape) * bits // 8:
            fail(f"{name}: {dtype} {list(shape)} needs {math.prod(shape) * bits // 8} bytes, found {end - begin}")
        tensors[name] = dtype, shape, data[begin:end]
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            fail(f"{name}: expected its bytes to begin at {position}, found {begin} (tensors overlap or leave a gap)")
        position = end
    if position != len(data):
        fail(f"expected {position} bytes of tensors, found {len(data)}")
    return tensors


class Checkpoint:
    """The tensors of a directory, in one file or in shards, with or without an index."""

    def __init__(self, directory):
        directory = Path(directory)
        index = directory / "model.safetensors.index.json"
        if index.exists():
            where = read_json(index).get("weight_map")
            if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
                raise CheckpointError(f"{index}: weight_map: expected an object of tensor and file names")
            files = sorted(set(where.values()))
            for file in files:
                if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
                    raise CheckpointError(f"{index}: expected names of .safetensors files beside it, found {file!r}")
                if not os.path.isfile(directory / file):  # (Path.is_file raises where a name is too long)
                    raise CheckpointError(f"{index}: {file}: no such file (a shard is missing)")
        else:
            where, files = None, sorted(path.name for path in directory.glob("*.safetensors"))
            if not files:
                raise CheckpointError(f"{directory}: no .safetensors file")
        self.directory, self.tensors = directory, {}
        for file in files:
            for name, tensor in map_safetensors(directory / file).items():
                if where is not None and where.get(name) != file:
                    continue
                if name in self.tensors:
                    raise CheckpointError(f"{directory / file}: {name}: a second time, it is already in another shard")
                self.tensors[name] = (directory / file, *tensor)
        for name, file in (where or {}).items():
            if name not in self.tensors:
                raise CheckpointError(f"{index}: {name}: expected in {file}, which does not have it")

    def view(self, name, dtype, shape):
        """The tensor `name` as a read-only array of `shape`; bf16 as uint16."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory}: {name}: missing")
        file, found_dtype, found_shape, data = self.tensors[name]
        if (found_dtype, found_shape) != (dtype, shape):
            found = f"{found_dtype} {list(found_shape)}"
            raise CheckpointError(f"{file}: {name}: expected {dtype} {list(shape)}, found {found}")
        array = data.view(STORED[dtype]).reshape(shape)
        return array if array.flags.aligned else array.copy()  # an odd header length; never so in published files


def tensor_table(config, layout):
    """{tensor name: (field, layer or None, dtype, shape)}: what a checkpoint must hold, in the order of use."""
    c = config
    N, F, E = c.hidden_size, c.intermediate_size, c.num_local_experts
    Q, KV = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    hf = layout == "hf"
    top = [  # field, name in the HF layout, name in original/, dtype, shape
        ("embedding", "model.embed_tokens.weight", "embedding.weight", "BF16", (c.vocab_size, N)),
        ("norm", "model.norm.weight", "norm.scale", "BF16", (N,)),
        ("unembedding", "lm_head.weight", "unembedding.weight", "BF16", (c.vocab_size, N)),
    ]
    separate = [
        (f"{x}_{part}", f"self_attn.{x}_proj.{part}", None, "BF16", (rows, N) if part == "weight" else (rows,))
        for part in ("weight", "bias") for x, rows in (("q", Q), ("k", KV), ("v", KV))
    ]
    fused = [("qkv_weight", None, "attn.qkv.weight", "BF16", (Q + 2 * KV, N)),
             ("qkv_bias", None, "attn.qkv.bias", "BF16", (Q + 2 * KV,))]
    experts = "mlp.experts."
    block = [
        ("attn_norm", "input_layernorm.weight", "attn.norm.scale", "BF16", (N,)),
        *(separate if hf else fused),
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
    name = 1 if hf else 2
    prefix = "model.layers" if hf else "block"
    return {row[name]: (row[0], None, *row[3:]) for row in top} | {
        f"{prefix}.{i}.{row[name]}": (row[0], i, *row[3:]) for i in range(c.num_hidden_layers) for row in block
    }


# ---- Writing ---------------------------------------------------------------------------------------------------------


def config_json(config, layout):
    """The config.json of `config` in either layout, as a dict."""
    fields = asdict(config) | {"layer_types": list(config.layer_types)}
    scaling = fields.pop("rope_scaling")
    eos = list(fields.pop("eos_token_id"))
    if layout == "hf":
        return fields | {
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": True,
            "tie_word_embeddings": False, "eos_token_id": eos[0],
            "rope_scaling": scaling and {"rope_type": "yarn"} | scaling,
            "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]},
        }
    if scaling is None or scaling["truncate"]:
        raise ValueError("the original/ layout has no way to say rope_scaling None or truncate true")
    both = fields | scaling
    theirs = {old: both[new] for old, new in ORIGINAL_KEYS.items()}
    same = ("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "swiglu_limit", "head_dim",
            "num_attention_heads", "num_key_value_heads", "sliding_window", "rope_theta")
    return {key: fields[key] for key in same} | theirs


@contextmanager
def atomic_write(path):
    """A file to write that gets its name when all is written, or never."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as out:
            yield out
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path, value):
    with atomic_write(path) as out:
        out.write((json.dumps(value, indent=1) + "\n").encode())
