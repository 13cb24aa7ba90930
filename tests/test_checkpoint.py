"""checkpoint.py and gptoss.load: what is wrong is said in one sentence; what is right is read exactly.

Needs NumPy only: a single one of these tests starts within two seconds.
"""

import json
import math
import mmap
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shapes import SMALL, yarn

import checkpoint
import gptoss
from bench.random_checkpoint import SHAPES, write_random
from checkpoint import CheckpointError, Config, read_config, tensor_table

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # SMALL: N 96, F 64, Q 60, KV 20, E 7, V 211


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """SMALL on disk, one seed: both layouts in one file, and the HF one in three shards."""
    root = tmp_path_factory.mktemp("written")
    write_random(root / "hf", SMALL, seed=5)
    write_random(root / "original", SMALL, "original", seed=5)
    write_random(root / "shards", SMALL, seed=5, shards=3)
    return root


@pytest.fixture
def copy(written, tmp_path):
    """copy("hf") is a checkpoint directory of one's own."""
    return lambda kind: Path(shutil.copytree(written / kind, tmp_path / kind))


def refused(directory, *said):
    """load raises CheckpointError, its message one line that says all of `said`."""
    with pytest.raises(CheckpointError) as caught:
        gptoss.load(directory, backend="numpy")
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert str(words) in message, message


def edit_json(path, edit):
    """Changes the object in a JSON file: edit(value) does it in place."""
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def split_file(path):
    """The header of a safetensors file, as an object, and the bytes after it."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def join_file(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# ---- Number formats -------------------------------------------------------------------------------------------------


def test_rounding_to_bf16_is_to_the_nearest_even():
    """All 65,536 patterns but infinities and nan stay themselves; of what lies between two, the nearer or even one."""
    bits = np.arange(2**16).astype(np.uint16)
    bits = bits[(bits & 0x7F80) != 0x7F80]
    exact = checkpoint.bf16_to_float32(bits)
    assert np.array_equal(exact.view(np.uint32), bits.astype(np.uint32) << 16)
    for offset, up in ((0, 0), (0x7FFF, 0), (0x8000, bits & 1), (0x8001, 1), (0xFFFF, 1)):
        between = (exact.view(np.uint32) + np.uint32(offset)).view(np.float32)
        assert np.array_equal(checkpoint.float32_to_bf16(between), bits + np.uint16(up))


def test_mxfp4_is_what_the_standard_says():
    """e2m1: a sign, two bits of exponent (bias 1), one of mantissa; e8m0: 2^(byte - 127), and 255 is nan."""
    codes = [*range(16), *range(15, -1, -1)]
    block = np.array([even | odd << 4 for even, odd in zip(codes[::2], codes[1::2], strict=True)], np.uint8)
    sizes = [(1 + code % 2 / 2) * 2.0 ** (code // 2 - 1) if code > 1 else code / 2 for code in range(8)]
    expected = np.array([-sizes[code - 8] if code > 7 else sizes[code] for code in codes])
    scales = np.append(np.arange(253), 255)  # with 253 a 6 is more than float32 can hold
    found = checkpoint.dequantize(checkpoint.MXFP4(np.tile(block, (254, 1, 1)), scales.astype(np.uint8)[:, None]))
    assert found.dtype == np.float32 and np.isnan(found[-1]).all()
    assert np.array_equal(found[:-1], expected * 2.0 ** (scales[:-1, None] - 127))


# ---- config.json ----------------------------------------------------------------------------------------------------

ABSENT = object()
MISSING = "found nothing, the key is missing"


@pytest.mark.parametrize(("key", "value", "said"), [  # those of YaRN stand in rope_scaling
    *((key, ABSENT, MISSING) for key in (*checkpoint.SIZES, "num_hidden_layers", "rope_theta", "factor")),
    *((key, value, f"expected an integer from 1 to 2147483648, found {json.dumps(value)}")
      for key in checkpoint.SIZES for value in ("96", -3)),
    ("hidden_size", 96.0, "found 96.0"),
    ("hidden_size", True, "found true"),
    ("hidden_size", None, "found null"),
    ("hidden_size", [96], "found [96]"),
    ("hidden_size", 0, "found 0"),
    ("vocab_size", 10**30, f"expected an integer from 1 to 2147483648, found {10**30}"),
    ("num_hidden_layers", 10**6, "expected an integer from 1 to 1000, found 1000000"),
    ("rope_theta", "big", 'expected a number from 1 to 1e+12, found "big"'),
    ("rope_theta", 0.5, "found 0.5"),
    ("rope_theta", math.nan, "found NaN"),
    ("rope_theta", math.inf, "found Infinity"),
    ("rms_norm_eps", -1e-5, "expected a number from 0 to 1, found -1e-05"),
    ("swiglu_limit", 0, "found 0"),
    ("max_position_embeddings", -1, "found -1"),
    ("head_dim", 11, "expected an even number, found 11"),
    ("num_attention_heads", 7, "expected a multiple of num_key_value_heads (2), found 7"),
    ("num_experts_per_tok", 8, "expected at most the number of experts (7), found 8"),
    ("model_type", "llama", 'expected "gpt_oss", found "llama"'),
    ("model_type", ABSENT, 'expected "gpt_oss", found null'),
    ("quantization_config", {"quant_method": "gptq"}, 'found {"quant_method": "gptq"}'),
    ("quantization_config", "mxfp4", 'expected nothing or quant_method "mxfp4", found "mxfp4"'),
    ("layer_types", ["full_attention"] * 2, "expected a list of 3"),
    ("layer_types", ["full_attention", "linear_attention", "full_attention"], "linear_attention"),
    ("layer_types", "full_attention", "expected a list of 3"),
    ("layer_types", [[], {}, None], "expected a list of 3"),
    ("rope_scaling", "yarn", "expected YaRN's numbers"),
    ("rope_scaling", [1], "expected YaRN's numbers"),
    ("rope_scaling", None, "expected YaRN's numbers"),  # plain RoPE to transformers 4, YaRN to 5
    ("rope_scaling.rope_type", "linear", 'expected "yarn" or "default", found "linear"'),
    ("rope_scaling.rope_type", ABSENT, 'expected "yarn" or "default", found null'),
    ("factor", -8, "expected a number from 1 to 1e+06, found -8"),
    ("beta_fast", None, "found null"),
    ("beta_slow", 0, "found 0"),
    ("truncate", "no", 'expected true or false, found "no"'),
    ("swiglu_alpha", 1.0, "expected 1.702, found 1.0"),  # what would change the function is not ignored
    ("attention_factor", 1.2, "expected nothing, found 1.2"),
    ("mscale", 0.7, "expected nothing, found 0.7"),
    ("mscale_all_dim", [1], "expected nothing, found [1]"),
])
def test_config_refused(key, value, said, copy):
    directory = copy("hf")

    def edit(config):
        name = key.split(".")[-1]
        in_rope = (*yarn(), "rope_type", "attention_factor", "mscale", "mscale_all_dim")
        fields = config["rope_scaling"] if name in in_rope else config
        fields[name] = value
        if value is ABSENT:
            del fields[name]

    edit_json(directory / "config.json", edit)
    refused(directory, f"{directory / 'config.json'}: {key}: expected ", said)


@pytest.mark.parametrize(("key", "value", "said"), [
    *((key, ABSENT, MISSING) for key in (*checkpoint.ORIGINAL_KEYS, "head_dim") if "ntk" not in key),
    *((key, "3", 'found "3"') for key in checkpoint.ORIGINAL_KEYS),
    ("experts_per_token", 8, "expected at most the number of experts (7), found 8"),
    ("rope_scaling_factor", 0, "expected a number from 1 to 1e+06, found 0"),
])
def test_original_config_refused(key, value, said, copy):
    """The message has the key's name in that file, not its name in the other layout."""
    directory = copy("original")
    edit_json(directory / "config.json", lambda c: c.pop(key) if value is ABSENT else c.update({key: value}))
    refused(directory, f"{directory / 'config.json'}: {key}: expected ", said)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
@pytest.mark.parametrize(("content", "said"), [
    *((bad, "found something else (") for bad in (
        b"", b"{", b'{"a": 1,}', b"\xff\xfe{}", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b'{"a": "\xff"}',
        b"[" * 100_000, b"1" * 10_000, b'{"a": 1, "b": {"a": 1, "a": 1}}', b'{"a": "\\ud800"}')),
    (b"[]", "found list"), (b"null", "found NoneType"),
    (b"version https://git-lfs.github.com/spec/v1", "expected a file, found a git-lfs pointer to it"),
])
def test_not_json(name, content, said, copy):
    directory = copy("shards")
    (directory / name).write_bytes(content)
    refused(directory, f"{directory / name}: expected a ", said)


@pytest.mark.parametrize(("eos", "found"), [
    (211, "[211]"), (-1, "[-1]"), ("x", '["x"]'), ([210, 211], "[210, 211]"), ([True], "[true]"), ([[1]], "[[1]]")])
def test_eos_refused(eos, found, copy):
    """Of generation_config.json, or of config.json where there is no such file."""
    directory = copy("hf")
    for name in ("generation_config.json", "config.json"):
        edit_json(directory / name, lambda c: c.update(eos_token_id=eos))
        refused(directory, f"{directory / name}: eos_token_id: expected ids from 0 to 210, found {found}")
        (directory / "generation_config.json").unlink(missing_ok=True)


def test_no_directory_no_config(copy, tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "nowhere", "no such directory")
    refused("x" * 5000, "expected a checkpoint directory, found File name too long")
    directory = copy("hf")
    refused(directory / "config.json", "config.json: expected a checkpoint directory, found a file")
    (directory / "config.json").unlink()
    refused(directory, directory / "config.json", "no such file")
    (directory / "config.json").mkdir()
    refused(directory, directory / "config.json", "expected a file, found a directory")


# ---- model.safetensors ----------------------------------------------------------------------------------------------


NO_JSON = "expected a header that is a JSON object, found something else"


@pytest.mark.parametrize(("edit", "said"), [
    (lambda b: b"", "expected a safetensors file, found 0 bytes"),
    (lambda b: b[:7], "expected a safetensors file, found 7 bytes"),
    (lambda b: b[:8], "expected a header of at most 0 bytes, found one of "),
    (lambda b: b[:500], "expected a header of at most 492 bytes, found one of "),
    (lambda b: b[:-1], "(a file cut short?)"),
    (lambda b: b + b"\0", "bytes of tensors, found"),
    (lambda b: b"\xff" * 8 + b[8:], "bytes, found one of 18446744073709551615 (a file cut short?)"),
    (lambda b: b"PK\x03\x04" + b[4:], "expected a header of at most "),
    (lambda b: (10).to_bytes(8, "little") + b[8:], NO_JSON),
    (lambda b: bytes(8) + b[8:], NO_JSON),
    (lambda b: b[:8] + b"[" + b[9:], NO_JSON),
    (lambda b: b[:8] + b"\xff" + b[9:], NO_JSON),
    (lambda b: (200_000).to_bytes(8, "little") + b"[" * 200_000, NO_JSON),
    (lambda b: (200_002).to_bytes(8, "little") + b"[" + b" " * 200_000 + b"]", "JSON object, found list"),
])
def test_file_refused(edit, said, copy):
    path = copy("hf") / WEIGHTS
    path.write_bytes(edit(path.read_bytes()))
    refused(path.parent, f"{path}: ", said)


def test_header_larger_than_the_format_allows(copy):
    """A length that is wrong but lies within the file would mean gigabytes of JSON. (The library stops at 100 MB.)"""
    path = copy("hf") / WEIGHTS
    size = 2**33
    with open(path, "r+b") as file:  # a file with a hole takes no room
        file.truncate(size)
        file.write((size - 8).to_bytes(8, "little"))
    refused(path.parent, f"{path}: expected a header of at most 10000000 bytes, found one of {size - 8}")


BIAS = "model.layers.1.self_attn.q_proj.bias"  # BF16 [60]
ENTRY = "expected a dtype, a shape and data_offsets in the header, found "


@pytest.mark.parametrize(("changes", "said"), [
    *(({key: value}, ENTRY) for key, values in {
        "dtype": ("BF17", None, ["BF16"]),
        "shape": ([-60], [60.0], ["60"], "60", {"60": 60}, {}, 60, [60, True], [2**64], [60, None]),
        "data_offsets": ([0], [0, 1, 2], [-120, 0], None, [0.0, 120.0], "01"),
    }.items() for value in values),
    ({"data_offsets": [10**9, 10**9 + 120]}, "(tensors overlap or leave a gap)"),
    ({"data_offsets": [120, 0]}, "(tensors overlap or leave a gap)"),
    ({"shape": [10**10] * 500}, "bytes for BF16 [10000000000, "),
    ({"shape": [2**63, 2**63, 0]}, "bytes for BF16 [9223372036854775808, 9223372036854775808, 0], found 120"),
    ({"dtype": "F4", "shape": [241]}, "expected 120.5 bytes for F4 [241], found 120"),
    ({"data_offsets": [0, 120]}, "(tensors overlap or leave a gap)"),
    ({"shape": [61]}, "expected 122 bytes for BF16 [61], found 120"),
    ({"dtype": "F32"}, "expected 240 bytes for F32 [60], found 120"),
    ({"shape": [0], "data_offsets": [0, 0]}, "(tensors overlap or leave a gap)"),
    ({"shape": [6, 10]}, "expected BF16, F16 or F32 [60], found BF16 [6, 10]"),
    ({"shape": [60, 1]}, "expected BF16, F16 or F32 [60], found BF16 [60, 1]"),
    ({"dtype": "I16"}, "expected BF16, F16 or F32 [60], found I16 [60]"),
    ({"dtype": "F32", "shape": [30]}, "expected BF16, F16 or F32 [60], found F32 [30]"),
])
def test_tensor_refused(changes, said, copy):
    path = copy("hf") / WEIGHTS
    header, data = split_file(path)
    header[BIAS].update(changes)
    join_file(path, header, data)
    name = "model." if "overlap" in said else f"{BIAS}: "  # the tensor that follows may be the one that is named
    refused(path.parent, f"{path}: {name}", said)


@pytest.mark.parametrize("entry", [None, 1, "x", [], {}, {"dtype": "BF16"}])
def test_entry_refused(entry, copy):
    path = copy("hf") / WEIGHTS
    header, data = split_file(path)
    header[BIAS] = entry
    join_file(path, header, data)
    refused(path.parent, f"{path}: {BIAS}: {ENTRY}{entry}")


@pytest.mark.parametrize("kind", ["hf", "original"])
def test_every_tensor_is_checked(kind, copy):
    """Each tensor of the table in turn: by another name, transposed or with one more dimension, of another dtype."""
    path = copy(kind) / WEIGHTS
    header, data = split_file(path)
    for name, (_, _, dtype, shape) in tensor_table(SMALL, kind).items():
        rest = {key: value for key, value in header.items() if key != name}
        join_file(path, rest | {name + "s": header[name]}, data)
        refused(path.parent, f"{name}: expected this tensor, found nothing, missing")
        other = list(shape[::-1]) if len(shape) > 1 else [*shape, 1]
        join_file(path, rest | {name: header[name] | {"shape": other}}, data)
        expected = {"BF16": "BF16, F16 or F32", "U8": "U8"}[dtype]
        refused(path.parent, path, f"{name}: expected {expected} {list(shape)}, found {dtype} {other}")
        wrong = {"BF16": "I16", "U8": "F8_E8M0"}[dtype]
        join_file(path, rest | {name: header[name] | {"dtype": wrong}}, data)
        refused(path.parent, path, f"{name}: expected {expected} {list(shape)}, found {wrong} {list(shape)}")


def test_tensors_of_another_shape_than_the_config(copy):
    """config.json says one thing, the file another: every size is compared."""
    for key, value in {"vocab_size": 212, "hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 8,
                       "num_key_value_heads": 3, "head_dim": 12, "num_local_experts": 6}.items():
        directory = copy("hf")
        edit_json(directory / "config.json", lambda c, key=key, value=value: c.update({key: value}))
        refused(directory, directory / WEIGHTS, ": expected ", ", found ")
        shutil.rmtree(directory)


def shard(j):
    return f"model-{j:05}-of-00002.safetensors"


@pytest.mark.parametrize(("file", "said"), [  # the file that BIAS is said to be in
    *((name, f"{name}: expected a safetensors file, found no such file") for name in (
        "model-9.safetensors", ".safetensors")),
    ("x" * 300 + ".safetensors", "x.safetensors: expected a safetensors file, found File name too long"),
    ("a\0b.safetensors", "a\\x00b.safetensors: expected a safetensors file, found no such file"),
    ("\ud800.safetensors", "index.json: expected a JSON object, found something else ("),
    *((name, f"{INDEX}: expected names of .safetensors files beside it, found {name!r}") for name in (
        3, None, [shard(1)], "../hf/model.safetensors", "/etc/hostname", "sub/a.safetensors", "sub\\a.safetensors",
        "..", "", "config.json")),
    (shard(2), f"{BIAS}: expected it in {shard(2)}, found no such tensor"),
])
def test_index_refused(file, said, copy):
    path = copy("shards") / INDEX
    edit_json(path, lambda index: index["weight_map"].update({BIAS: file}))
    refused(path.parent, f"{path.parent}/", said)


def test_weight_map_refused(copy):
    path = copy("shards") / INDEX
    edit_json(path, lambda index: index["weight_map"].update({"more": shard(1)}))
    refused(path.parent, f"{path}: more: expected it in {shard(1)}, found no such tensor")
    for found in ([1], None):
        edit_json(path, lambda index, found=found: index.update(weight_map=found))
        refused(path.parent, f"{path}: weight_map: expected an object of names, found {found}")


def test_index_leaves_a_tensor_out(copy):
    path = copy("shards") / INDEX
    edit_json(path, lambda i: i["weight_map"].pop(BIAS))
    refused(path.parent, path.parent, f"{BIAS}: expected this tensor, found nothing")


def test_shards_refused(copy):
    directory = copy("shards")
    (directory / shard(1)).unlink()
    refused(directory, f"{directory / shard(1)}: expected a safetensors file, found no such file")
    (directory / shard(1)).symlink_to("blob-that-was-deleted")
    refused(directory, f"{directory / shard(1)}: expected a safetensors file, found no such file")
    (directory / INDEX).unlink()
    refused(directory, f"{directory / shard(1)}: expected a safetensors file, found no such file")
    (directory / shard(1)).unlink()
    refused(directory, directory, ": expected this tensor, found nothing")
    shutil.copy(directory / shard(0), directory / shard(1))
    refused(directory, directory / shard(1), "expected each tensor once, found it in two shards")
    for file in directory.glob("*.safetensors"):
        file.unlink()
    refused(directory, directory, "expected a .safetensors file, found none")
    (directory / WEIGHTS).mkdir()
    refused(directory, directory / WEIGHTS, "expected a safetensors file, found a directory")


# ---- What is right --------------------------------------------------------------------------------------------------


def arrays(model):
    """{name: array} of every tensor that the forward pass uses."""
    found = {"embedding": model.embedding, "norm": model.norm, "unembedding": model.unembedding}
    for i, layer in enumerate(model.layers):
        for field, value in layer._asdict().items():
            for part, array in enumerate(value) if isinstance(value, tuple) else [("", value)]:
                found[f"{i}.{field}{part}"] = array
    return found


def assert_same(a, b):
    assert a.keys() == b.keys() and len(a) > 3
    for name in a:
        assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name


def test_config_is_read_back(written):
    assert read_config(written / "hf") == (SMALL, "hf")
    assert read_config(written / "shards") == (SMALL, "hf")
    config, layout = read_config(written / "original")  # which says neither layer types, nor a context, nor eos ids
    assert layout == "original" and config.max_position_embeddings == 32 * 4096
    assert config == replace(SMALL, eos_token_id=Config.eos_token_id, max_position_embeddings=32 * 4096)


def test_who_wants_to_be_decoded_greedily_says_so(copy):
    directory = copy("hf")
    for said, expected in ({"do_sample": False}, False), ({"do_sample": True}, True), ({}, True):
        (directory / "generation_config.json").write_text(json.dumps(said))
        assert read_config(directory)[0].do_sample is expected


def test_layouts_and_shards_are_equal(written, copy):
    model = gptoss.load(written / "hf", backend="numpy")
    ours = arrays(model)
    assert ours["0.gate_up0"].shape == (7, 128, 3, 16) and ours["0.down1"].shape == (7, 96, 2)
    for kind in ("original", "shards"):
        assert_same(ours, arrays(gptoss.load(written / kind, backend="numpy")))
    directory = copy("shards")
    (directory / INDEX).unlink()
    assert_same(ours, arrays(gptoss.load(directory, backend="numpy")))


def test_symbolic_links_as_in_the_hub_cache(written, tmp_path):
    """snapshots/REVISION holds links to files in blobs/, named by their hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for j, file in enumerate(sorted((written / "shards").iterdir())):
        shutil.copy(file, blobs / f"{j:064x}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{j:064x}"))
    assert_same(arrays(gptoss.load(snapshot, backend="numpy")), arrays(gptoss.load(written / "hf", backend="numpy")))
    assert gptoss.load(snapshot, backend="numpy").config == SMALL


def test_nothing_is_copied(written):
    for kind in ("hf", "original", "shards"):
        for name, array in arrays(gptoss.load(written / kind, backend="numpy")).items():
            if name.endswith(("norm", "bias", "sinks")):  # made float32 at load, a few kilobytes
                continue
            assert not array.flags.writeable and array.flags.c_contiguous, name
            with pytest.raises(ValueError):
                array[...] = 0
            base = array
            while isinstance(base, np.ndarray):
                base = base.base
            assert isinstance(base, mmap.mmap), name


def test_load_allocates_little(tmp_path):
    config = replace(SMALL, vocab_size=40_000)  # two tensors of 7.7 MB
    write_random(tmp_path, config)
    gptoss.load(tmp_path, backend="numpy")
    tracemalloc.start()
    model = gptoss.load(tmp_path, backend="numpy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert model.embedding.nbytes == 7_680_000 and peak < 1_000_000


def test_header_of_odd_length(written, copy):
    """Then 16-bit tensors begin at odd addresses. safetensors' writer pads; the format does not demand it."""
    directory = copy("hf")
    header, data = split_file(directory / WEIGHTS)
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    for padding in (0, 1):
        join_file(directory / WEIGHTS, text + b" " * padding, data)
        found = arrays(gptoss.load(directory, backend="numpy"))
        assert all(array.flags.aligned for array in found.values())
        assert_same(found, arrays(gptoss.load(written / "hf", backend="numpy")))


OFFICIAL_20B = {  # openai/gpt-oss-20b, config.json
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": 200002,
    "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
    "initializer_range": 0.02, "intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False,
    "pad_token_id": 199999, "quantization_config": {"quant_method": "mxfp4"}, "rms_norm_eps": 1e-05,
    "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                     "rope_type": "yarn", "truncate": False},
    "rope_theta": 150000, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False,
    "use_cache": True, "vocab_size": 201088}
OFFICIAL_ORIGINAL_20B = {
    "num_hidden_layers": 24, "num_experts": 32, "experts_per_token": 4, "vocab_size": 201088, "hidden_size": 2880,
    "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 64,
    "num_key_value_heads": 8, "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000,
    "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1, "rope_ntk_beta": 32}


def test_official_configs(tmp_path):
    eos = {"eos_token_id": [200002, 199999, 200012], "bos_token_id": 199998, "pad_token_id": 199999}
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL_20B))
    (tmp_path / "generation_config.json").write_text(json.dumps(eos))
    assert read_config(tmp_path) == (SHAPES["20b"], "hf")
    (tmp_path / "config.json").write_text(json.dumps(
        OFFICIAL_20B | {"num_hidden_layers": 36, "num_local_experts": 128,
                        "layer_types": OFFICIAL_20B["layer_types"][:2] * 18}))
    assert read_config(tmp_path) == (SHAPES["120b"], "hf")
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL_ORIGINAL_20B))
    assert read_config(tmp_path) == (SHAPES["20b"], "original")


@pytest.mark.parametrize(("shape", "tensors", "size", "parameters"), [
    ("20b", 459, 13_761_264_768, 20_914_757_184), ("120b", 687, 65_248_815_744, 116_829_156_672)])
def test_published_totals(shape, tensors, size, parameters):
    """Of the files that OpenAI published; a block byte is two parameters, a scale none."""
    for layout, count in (("hf", tensors), ("original", tensors - 4 * SHAPES[shape].num_hidden_layers)):
        table = tensor_table(SHAPES[shape], layout)
        assert len(table) == count  # q, k and v: six tensors or two
        assert sum(math.prod(s) * checkpoint.STORED[dtype].itemsize for _, _, dtype, s in table.values()) == size
        weigh = {"blocks": 2, "scales": 0}
        assert sum(weigh.get(f.split("_")[-1], 1) * math.prod(s) for f, _, _, s in table.values()) == parameters


def test_what_yarn_leaves_out_has_defaults(copy):
    directory = copy("hf")
    short = {"rope_type": "yarn", "factor": 8.0}
    edit_json(directory / "config.json", lambda c: c.update(rope_scaling=short))
    scaling = read_config(directory)[0].rope_scaling
    assert (scaling["beta_fast"], scaling["beta_slow"], scaling["truncate"]) == (32, 1, True)
    assert scaling["original_max_position_embeddings"] == SMALL.max_position_embeddings
    edit_json(directory / "config.json", lambda c: c.pop("max_position_embeddings"))
    refused(directory, "original_max_position_embeddings: expected", MISSING)
    edit_json(directory / "config.json", lambda c: c.update(rope_scaling={"rope_type": "default"}))
    assert read_config(directory)[0].rope_scaling is None
