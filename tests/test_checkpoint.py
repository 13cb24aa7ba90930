"""checkpoint.py and gptoss.load: what is wrong is said in one sentence; what is right is read exactly."""
import json
import math
import mmap
import os
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
import gptoss
from bench import random_checkpoint
from bench.random_checkpoint import SHAPES, write_random
from checkpoint import Checkpoint, CheckpointError, Config, read_config, tensor_table

YARN = {"factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0, "original_max_position_embeddings": 5, "truncate": False}
SMALL = Config(  # no two dimensions equal: N 96, F 64, Q 60, KV 20, E 5, V 203
    vocab_size=203, hidden_size=96, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, head_dim=10, num_local_experts=5, num_experts_per_tok=4, sliding_window=7,
    rope_theta=1234.5, layer_types=("sliding_attention", "full_attention", "sliding_attention"),
    rope_scaling=YARN, max_position_embeddings=40, eos_token_id=(202, 199))
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


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


# ---- config.json ----------------------------------------------------------------------------------------------------

ABSENT = object()
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
         "num_local_experts", "num_experts_per_tok", "sliding_window", "num_hidden_layers")
BAD_CONFIG = [  # key, value, what the message says besides the file and the key
    *((key, ABSENT, "missing") for key in (*SIZES, "rope_theta")),
    *((key, "96", 'expected an integer from 1 to') for key in SIZES),
    *((key, -3, "expected an integer from 1 to") for key in SIZES),
    ("hidden_size", 96.0, "found 96.0"),
    ("hidden_size", True, "found true"),
    ("hidden_size", None, "found null"),
    ("hidden_size", [96], "found [96]"),
    ("hidden_size", 0, "found 0"),
    ("vocab_size", 10**30, "expected an integer from 1 to"),
    ("num_hidden_layers", 10**6, "expected an integer from 1 to 1000, found 1000000"),
    ("rope_theta", "big", 'expected a number from 1 to 1e+12, found "big"'),
    ("rope_theta", 0.5, "found 0.5"),
    ("rope_theta", math.nan, "found NaN"),
    ("rope_theta", math.inf, "found Infinity"),
    ("rms_norm_eps", -1e-5, "expected a number from 0 to 1, found -1e-05"),
    ("swiglu_limit", 0, "found 0"),
    ("max_position_embeddings", -1, "found -1"),
    ("hidden_size", 100, "expected a multiple of 32, the MXFP4 block, found 100"),
    ("intermediate_size", 65, "expected a multiple of 32, the MXFP4 block, found 65"),
    ("head_dim", 11, "expected an even number, found 11"),
    ("num_attention_heads", 7, "expected a multiple of num_key_value_heads (2), found 7"),
    ("num_experts_per_tok", 6, "expected at most num_local_experts (5), found 6"),
    ("model_type", "llama", 'expected "gpt_oss", found "llama"'),
    ("model_type", ABSENT, 'expected "gpt_oss", found null'),
    ("quantization_config", ABSENT, "mxfp4"),
    ("quantization_config", {"quant_method": "gptq"}, "gptq"),
    ("quantization_config", "mxfp4", "expected quant_method"),
    ("layer_types", ["full_attention"] * 2, "expected a list of 3"),
    ("layer_types", ["full_attention", "linear_attention", "full_attention"], "linear_attention"),
    ("layer_types", "full_attention", "expected a list of 3"),
    ("layer_types", [[], {}, None], "expected a list of 3"),
    ("rope_scaling", "yarn", "expected an object"),
    ("rope_scaling", [1], "expected an object"),
    ("rope_scaling", {"rope_type": "linear"} | YARN, 'rope_type: expected "yarn", found "linear"'),
    ("rope_scaling", YARN, 'rope_type: expected "yarn", found null'),
    ("factor", {"rope_type": "yarn"} | YARN | {"factor": -8}, "expected a number from 1 to 1e+06, found -8"),
    ("factor", {"rope_type": "yarn"}, "missing"),
    ("original_max_position_embeddings", {"rope_type": "yarn", "factor": 8}, "missing"),
    ("beta_fast", {"rope_type": "yarn"} | YARN | {"beta_fast": None}, "found null"),
    ("beta_slow", {"rope_type": "yarn"} | YARN | {"beta_slow": 0}, "found 0"),
    ("truncate", {"rope_type": "yarn"} | YARN | {"truncate": "no"}, 'expected true or false, found "no"'),
]


@pytest.mark.parametrize(("key", "value", "said"), BAD_CONFIG)
def test_config_refused(key, value, said, copy):
    directory = copy("hf")

    def edit(config):
        where = "rope_scaling" if key in YARN else key
        config[where] = value
        if value is ABSENT:
            del config[where]

    edit_json(directory / "config.json", edit)
    refused(directory, directory / "config.json", f"{key}.rope_type: " if "rope_type" in said else f"{key}: ", said)


@pytest.mark.parametrize(("key", "value", "said"), [
    *((key, ABSENT, "missing") for key in checkpoint.ORIGINAL_KEYS if "ntk" not in key),
    *((key, "3", 'found "3"') for key in checkpoint.ORIGINAL_KEYS),
    ("head_dim", ABSENT, "missing"),
    ("experts_per_token", 6, "expected at most num_experts (5), found 6"),
    ("rope_scaling_factor", 0, "expected a number from 1 to 1e+06, found 0"),
])
def test_original_config_refused(key, value, said, copy):
    """The message has the key's name in that file, not its name in the other layout."""
    directory = copy("original")
    edit_json(directory / "config.json", lambda c: c.pop(key) if value is ABSENT else c.update({key: value}))
    refused(directory, directory / "config.json", f"{key}: ", said)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
@pytest.mark.parametrize(("content", "said"), [
    (b"", "expected JSON"), (b"{", "expected JSON"), (b'{"a": 1,}', "expected JSON"), (b"\xff\xfe{}", "expected JSON"),
    (b'{"a": "\xff"}', "expected JSON"), (b"[" * 100_000, "expected JSON"), (b"1" * 10_000, "expected JSON"),
    (b"[]", "expected a JSON object, found list"), (b"null", "expected a JSON object, found NoneType"),
])
def test_not_json(name, content, said, copy):
    directory = copy("shards")
    (directory / name).write_bytes(content)
    refused(directory, directory / name, said)


@pytest.mark.parametrize(("eos", "found"), [
    (203, "[203]"), (-1, "[-1]"), ("x", '["x"]'), ([202, 203], "[202, 203]"), ([True], "[true]"), ([[1]], "[[1]]")])
def test_eos_refused(eos, found, copy):
    directory = copy("hf")
    edit_json(directory / "generation_config.json", lambda c: c.update(eos_token_id=eos))
    refused(directory, directory / "generation_config.json", "eos_token_id: expected ids from 0 to 202, found", found)
    (directory / "generation_config.json").unlink()
    edit_json(directory / "config.json", lambda c: c.update(eos_token_id=eos))
    refused(directory, directory / "config.json", "eos_token_id: expected ids from 0 to 202, found", found)


def test_no_directory_no_config(copy, tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "nowhere", "no such directory")
    refused("x" * 5000, "no such directory")
    directory = copy("hf")
    refused(directory / "config.json", "config.json: no such directory")
    (directory / "config.json").unlink()
    refused(directory, directory / "config.json", "no such file")
    (directory / "config.json").mkdir()
    refused(directory, directory / "config.json", "expected JSON")


# ---- model.safetensors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("edit", "said"), [
    (lambda b: b"", "expected a safetensors file, found 0 bytes"),
    (lambda b: b[:7], "expected a safetensors file, found 7 bytes"),
    (lambda b: b[:8], "but only 0 follow its length"),
    (lambda b: b[:500], "but only 492 follow its length"),
    (lambda b: b[:-1], "a file cut short?"),
    (lambda b: b + b"\0", "bytes of tensors, found"),
    (lambda b: b"\xff" * 8 + b[8:], "the header should have 18446744073709551615 bytes, but only"),
    (lambda b: (10).to_bytes(8, "little") + b[8:], "the header is not a JSON object"),
    (lambda b: bytes(8) + b[8:], "the header is not a JSON object"),
    (lambda b: b[:8] + b"[" + b[9:], "the header is not a JSON object"),
    (lambda b: b[:8] + b"\xff" + b[9:], "the header is not a JSON object"),
    (lambda b: (200_000).to_bytes(8, "little") + b"[" * 200_000, "the header is not a JSON object"),
    (lambda b: (200_002).to_bytes(8, "little") + b"[" + b" " * 200_000 + b"]", "the header is not a JSON object"),
    (lambda b: b"PK\x03\x04" + b[4:], "the header should have"),
])
def test_file_refused(edit, said, copy):
    path = copy("hf") / WEIGHTS
    path.write_bytes(edit(path.read_bytes()))
    refused(path.parent, path, said)


def test_header_larger_than_the_format_allows(copy):
    """A length that is wrong but lies within the file would mean gigabytes of JSON: safetensors stops at 100 MB."""
    path = copy("hf") / WEIGHTS
    size = 2**33
    with open(path, "r+b") as file:  # a file with a hole takes no room
        file.truncate(size)
        file.write((size - 8).to_bytes(8, "little"))
    refused(path.parent, path, f"the header should have {size - 8} bytes", "100000000")


BIAS = "model.layers.1.self_attn.q_proj.bias"  # BF16 [60]


@pytest.mark.parametrize(("changes", "said"), [
    ({"dtype": "BF17"}, "expected a dtype, a shape and data_offsets"),
    ({"dtype": None}, "expected a dtype, a shape and data_offsets"),
    ({"dtype": ["BF16"]}, "expected a dtype, a shape and data_offsets"),
    ({"shape": [-60]}, "expected a dtype, a shape and data_offsets"),
    ({"shape": [60.0]}, "expected a dtype, a shape and data_offsets"),
    ({"shape": ["60"]}, "expected a dtype, a shape and data_offsets"),
    ({"shape": "60"}, "expected a dtype, a shape and data_offsets"),
    ({"shape": {"60": 60}}, "expected a dtype, a shape and data_offsets"),
    ({"shape": 60}, "expected a dtype, a shape and data_offsets"),
    ({"shape": [60, True]}, "expected a dtype, a shape and data_offsets"),
    ({"data_offsets": [0]}, "expected a dtype, a shape and data_offsets"),
    ({"data_offsets": [0, 1, 2]}, "expected a dtype, a shape and data_offsets"),
    ({"data_offsets": [-120, 0]}, "expected a dtype, a shape and data_offsets"),
    ({"data_offsets": [120, 0]}, "expected a dtype, a shape and data_offsets"),
    ({"data_offsets": None}, "expected a dtype, a shape and data_offsets"),
    ({"data_offsets": [0.0, 120.0]}, "expected a dtype, a shape and data_offsets"),
    ({"data_offsets": [10**9, 10**9 + 120]}, "lie outside the"),
    ({"data_offsets": [0, 120]}, "overlap"),
    ({"shape": [61]}, "BF16 [61] needs 122 bytes, found 120"),
    ({"shape": [10**10] * 500}, "expected a dtype, a shape and data_offsets"),
    ({"dtype": "F32"}, "F32 [60] needs 240 bytes, found 120"),
    ({"shape": [0], "data_offsets": [0, 0]}, "expected its bytes to begin at"),
    ({"shape": [6, 10]}, "expected BF16 [60], found BF16 [6, 10]"),
    ({"shape": [60, 1]}, "expected BF16 [60], found BF16 [60, 1]"),
    ({"dtype": "F16"}, "expected BF16 [60], found F16 [60]"),
    ({"dtype": "F32", "shape": [30]}, "expected BF16 [60], found F32 [30]"),
])
def test_tensor_refused(changes, said, copy):
    path = copy("hf") / WEIGHTS
    header, data = split_file(path)
    header[BIAS].update(changes)
    join_file(path, header, data)
    neighbour = said in ("overlap", "expected its bytes to begin at")  # then the tensor that follows is named
    refused(path.parent, path, said, *([] if neighbour else [f"{BIAS}: "]))


@pytest.mark.parametrize("entry", [None, 1, "x", [], {}, {"dtype": "BF16"}])
def test_entry_refused(entry, copy):
    path = copy("hf") / WEIGHTS
    header, data = split_file(path)
    header[BIAS] = entry
    join_file(path, header, data)
    refused(path.parent, path, f"{BIAS}: expected a dtype, a shape and data_offsets", json.dumps(entry))


@pytest.mark.parametrize("kind", ["hf", "original"])
def test_every_tensor_is_checked(kind, copy):
    """Each tensor of the table in turn: by another name, transposed or with one more dimension, of another dtype."""
    path = copy(kind) / WEIGHTS
    header, data = split_file(path)
    for name, (_, _, dtype, shape) in tensor_table(SMALL, kind).items():
        rest = {key: value for key, value in header.items() if key != name}
        join_file(path, rest | {name + "s": header[name]}, data)
        refused(path.parent, f"{name}: missing")
        other = list(shape[::-1]) if len(shape) > 1 else [*shape, 1]
        join_file(path, rest | {name: header[name] | {"shape": other}}, data)
        refused(path.parent, path, f"{name}: expected {dtype} {list(shape)}, found {dtype} {other}")
        wrong = {"BF16": "F16", "U8": "F8_E8M0"}[dtype]
        join_file(path, rest | {name: header[name] | {"dtype": wrong}}, data)
        refused(path.parent, path, f"{name}: expected {dtype} {list(shape)}, found {wrong} {list(shape)}")


def test_tensors_of_another_shape_than_the_config(copy):
    """config.json says one thing, the file another: every size is compared."""
    for key, value in {"vocab_size": 204, "hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 8,
                       "num_key_value_heads": 3, "head_dim": 12, "num_local_experts": 6}.items():
        directory = copy("hf")
        edit_json(directory / "config.json", lambda c, key=key, value=value: c.update({key: value}))
        refused(directory, directory / WEIGHTS, ": expected ", ", found ")
        shutil.rmtree(directory)


def shard(j):
    return f"model-{j:05}-of-00002.safetensors"


@pytest.mark.parametrize(("edit", "said"), [
    (lambda i: i.pop("weight_map"), "weight_map: expected an object of tensor and file names"),
    (lambda i: i.update(weight_map=[1]), "weight_map: expected an object of tensor and file names"),
    (lambda i: i["weight_map"].update({BIAS: 3}), "weight_map: expected an object of tensor and file names"),
    (lambda i: i["weight_map"].update({BIAS: "model-9.safetensors"}), "model-9.safetensors: no such file (a shard is"),
    (lambda i: i["weight_map"].update({BIAS: ".safetensors"}), ".safetensors: no such file"),
    (lambda i: i["weight_map"].update({BIAS: "x" * 300 + ".safetensors"}), "no such file"),
    (lambda i: i["weight_map"].update({BIAS: "a\0b.safetensors"}), "no such file"),
    (lambda i: i["weight_map"].update({BIAS: "\ud800.safetensors"}), "no such file"),
    (lambda i: i["weight_map"].update({BIAS: "../hf/model.safetensors"}), "beside it, found '../hf/model.safetensors'"),
    (lambda i: i["weight_map"].update({BIAS: "/etc/hostname"}), "beside it, found '/etc/hostname'"),
    (lambda i: i["weight_map"].update({BIAS: "sub/a.safetensors"}), "beside it, found 'sub/a.safetensors'"),
    (lambda i: i["weight_map"].update({BIAS: "sub\\a.safetensors"}), "beside it, found"),
    (lambda i: i["weight_map"].update({BIAS: ".."}), "beside it, found '..'"),
    (lambda i: i["weight_map"].update({BIAS: ""}), "beside it, found ''"),
    (lambda i: i["weight_map"].update({BIAS: "config.json"}), "beside it, found 'config.json'"),
    (lambda i: i["weight_map"].update({BIAS: shard(2)}), f"{BIAS}: expected in {shard(2)}, which does not have it"),
    (lambda i: i["weight_map"].update({"more": shard(1)}), f"more: expected in {shard(1)}, which does not have it"),
])
def test_index_refused(edit, said, copy):
    path = copy("shards") / INDEX
    edit_json(path, edit)
    refused(path.parent, path, said)


def test_index_leaves_a_tensor_out(copy):
    path = copy("shards") / INDEX
    edit_json(path, lambda i: i["weight_map"].pop(BIAS))
    refused(path.parent, path.parent, f"{BIAS}: missing")


def test_shards_refused(copy):
    directory = copy("shards")
    (directory / shard(1)).unlink()
    refused(directory, directory / INDEX, f"{shard(1)}: no such file (a shard is missing)")
    (directory / shard(1)).symlink_to("blob-that-was-deleted")
    refused(directory, directory / INDEX, f"{shard(1)}: no such file (a shard is missing)")
    (directory / INDEX).unlink()
    refused(directory, directory / shard(1), "cannot be read")
    (directory / shard(1)).unlink()
    refused(directory, directory, ": missing")
    shutil.copy(directory / shard(0), directory / shard(1))
    refused(directory, directory / shard(1), "a second time")
    for file in directory.glob("*.safetensors"):
        file.unlink()
    refused(directory, directory, "no .safetensors file")
    (directory / WEIGHTS).mkdir()
    refused(directory, directory / WEIGHTS, "cannot be read")


# ---- Damage at random -----------------------------------------------------------------------------------------------
# A load works or raises CheckpointError, and nothing else. `tracemalloc` sees what NumPy and Python allocate.

JUNK = st.sampled_from([None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, 1e308, math.nan, -math.inf, "", "yarn",
                        "x", "\ud800", "../x", [], [[]], [0, 1], [2**64] * 70, [10**4000] * 3, {}, {"a": {}}, "BF16"])


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """The smallest checkpoint, in one file and in shards, for a hundred loads a second."""
    root = tmp_path_factory.mktemp("one_layer")
    config = replace(SMALL, num_hidden_layers=1, layer_types=("full_attention",))
    write_random(root / "hf", config)
    write_random(root / "shards", config, shards=2)
    write_random(root / "original", config, "original")
    return root


def load_or_refuse(directory):
    tracemalloc.start()
    try:
        logits = gptoss.load(directory, backend="numpy")([0])  # what loads also runs
        assert logits.shape == (1, 203)
    except CheckpointError as error:
        assert str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**23, peak  # the file has 200 KB


def try_with(path, content):
    """load_or_refuse the directory with `content` in that file, then put the old content back."""
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        load_or_refuse(path.parent)
    finally:
        path.write_bytes(before)


@settings(max_examples=300)
@given(st.data())
def test_damaged_bytes(one_layer, data):
    path = one_layer / data.draw(st.sampled_from(["hf", "shards", "original"])) / "x"
    path = data.draw(st.sampled_from(sorted(path.parent.iterdir())))
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, 9), st.integers(0, header)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "digit"]))
        if kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove":
            del content[at : at + data.draw(st.integers(1, 8))]
        elif at < len(content):
            digits = [i for i in range(at, min(header, len(content))) if chr(content[i]).isdigit()]
            if kind == "digit" and digits:  # the JSON stays JSON, so that the checks behind it have work
                content[digits[0]] = ord(data.draw(st.sampled_from("0123456789-")))
            else:
                content[at] ^= 1 << data.draw(st.integers(0, 7))
    try_with(path, bytes(content))


@settings(max_examples=300)
@given(st.data())
def test_damaged_values(one_layer, data):
    """The JSON stays JSON, and somewhere in it stands a value that nobody expects, or none."""
    directory = one_layer / data.draw(st.sampled_from(["hf", "shards", "original"]))
    path = data.draw(st.sampled_from(sorted(directory.iterdir())))
    weights = path.suffix == ".safetensors"
    value, rest = split_file(path) if weights else (json.loads(path.read_text()), b"")
    node = value
    while True:
        key = data.draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
        if not (isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 3))):
            break
        node = node[key]
    if data.draw(st.integers(0, 5)):
        node[key] = data.draw(JUNK)
    else:
        del node[key]
    text = json.dumps(value).encode()
    try_with(path, len(text).to_bytes(8, "little") + text + rest if weights else text)


# ---- What is right --------------------------------------------------------------------------------------------------


def arrays(model):
    """{name: array} of every tensor that the forward pass uses."""
    found = {"embedding": model.embedding, "norm": model.norm, "unembedding": model.unembedding}
    for i, layer in enumerate(model.layers):
        for field, value in vars(layer).items():
            if not field.startswith("qkv"):  # the original layout's q, k and v stand beside it under their own names
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
    config, layout = read_config(written / "original")  # which says neither layer types nor eos ids
    assert layout == "original" and config.max_position_embeddings == 40
    assert config == replace(SMALL, eos_token_id=Config.eos_token_id)


def test_layouts_and_shards_are_equal(written, copy):
    model = gptoss.load(written / "hf", backend="numpy")
    ours = arrays(model)
    assert ours["0.gate_up0"].shape == (5, 128, 3, 16) and ours["0.down1"].shape == (5, 96, 2)
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
            if name.endswith(("attn_norm", "mlp_norm")):  # widened at load, a few kilobytes
                continue
            assert not array.flags.writeable and array.flags.c_contiguous, name
            with pytest.raises(ValueError):
                array[...] = 0
            base = array
            while isinstance(base, np.ndarray):
                base = base.base
            assert isinstance(base, mmap.mmap), name
    first, again = Checkpoint(written / "hf"), tensor_table(SMALL, "hf")
    name, (_, _, dtype, shape) = next(iter(again.items()))
    assert np.shares_memory(first.view(name, dtype, shape), first.view(name, dtype, shape))


def test_load_allocates_little(tmp_path):
    config = replace(SMALL, vocab_size=40_000)  # two tensors of 7.7 MB
    write_random(tmp_path, config)
    gptoss.load(tmp_path, backend="numpy")
    tracemalloc.start()
    model = gptoss.load(tmp_path, backend="numpy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert model.embedding.nbytes == 7_680_000 and peak < 1_000_000


def test_reads_what_the_safetensors_library_reads(written):
    import torch
    from safetensors import safe_open
    for kind in ("hf", "original", "shards"):
        layout, ours, names = kind.replace("shards", "hf"), Checkpoint(written / kind), set()
        for file in (written / kind).glob("*.safetensors"):
            with safe_open(file, framework="pt") as theirs:
                for name in theirs.keys():
                    _, _, dtype, shape = tensor_table(SMALL, layout)[name]
                    tensor = theirs.get_tensor(name)
                    if dtype == "BF16":
                        assert tensor.dtype == torch.bfloat16
                        tensor = tensor.view(torch.uint16)
                    assert np.array_equal(ours.view(name, dtype, shape), tensor.numpy()), name
                    names.add(name)
        assert names == set(tensor_table(SMALL, layout))


def test_all_bf16_patterns_as_that_library_writes_them(tmp_path):
    import torch
    from safetensors.torch import save_file
    bits = np.arange(2**16, dtype=np.uint16).reshape(2**10, 2**6)
    tensors = {"odd": torch.arange(7, dtype=torch.uint8), "all": torch.from_numpy(bits).view(torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = Checkpoint(tmp_path)
    assert np.array_equal(found.view("all", "BF16", (2**10, 2**6)), bits)
    assert np.array_equal(found.view("odd", "U8", (7,)), np.arange(7))
    theirs = tensors["all"].float().numpy()
    assert np.array_equal(gptoss.bf16_to_float32(found.view("all", "BF16", bits.shape)).view(np.uint32), theirs.view(np.uint32))


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


def test_rope_parameters_as_transformers_writes_them(copy):
    """transformers 4 has rope_scaling and rope_theta side by side, transformers 5 rope_parameters with both."""
    from transformers import GptOssConfig
    directory = copy("hf")
    before = read_config(directory)
    fields = random_checkpoint.config_json(SMALL, "hf")
    scaling = fields.pop("rope_scaling")
    del fields["architectures"]
    GptOssConfig(**fields | {"rope_parameters": scaling | {"rope_theta": fields.pop("rope_theta")}}
                 ).save_pretrained(directory)
    theirs = json.loads((directory / "config.json").read_text())
    assert theirs["rope_parameters"]["rope_theta"] == 1234.5 and "rope_theta" not in theirs
    assert read_config(directory) == before


def test_yarn_defaults_are_those_of_transformers(copy):
    directory = copy("hf")
    short = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 5}
    edit_json(directory / "config.json", lambda c: c.update(rope_scaling=short))
    scaling = read_config(directory)[0].rope_scaling
    assert (scaling["beta_fast"], scaling["beta_slow"], scaling["truncate"]) == (32, 1, True)
    edit_json(directory / "config.json", lambda c: c.pop("rope_scaling"))
    assert read_config(directory)[0].rope_scaling is None


# ---- Arguments ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(written):
    return gptoss.load(written / "hf", backend="numpy")


BAD_TOKENS = [
    ([], "the prompt is empty"), (np.zeros(0, np.int64), "the prompt is empty"), ((), "the prompt is empty"),
    ([3, 203], "token 1 of the prompt: expected an id from 0 to 202, found 203"),
    ([-1], "token 0 of the prompt: expected an id from 0 to 202, found -1"),
    (np.array([2**40]), "expected an id from 0 to 202"), ([2**70], "expected integer ids"),
    ([1.0], "expected integer ids, found float64"), ("hello", "expected integer ids"), ([True], "expected integer ids"),
    ([None], "expected integer ids"), ([[1, 2]], "expected a sequence of ids, found an array of shape [1, 2]"),
    (np.array(3), "expected a sequence of ids, found an array of shape []"),
    ([1] * 41, "context of 40"),
]


@pytest.mark.parametrize(("tokens", "said"), BAD_TOKENS)
def test_tokens_refused(tokens, said, model):
    """At once, not when the first id is asked for; and the cache is as it was."""
    cache = model.new_cache()
    for call in (lambda: model(tokens, cache), lambda: gptoss.generate(model, tokens, cache=cache)):
        with pytest.raises(ValueError) as caught:
            call()
        assert said in str(caught.value) and "\n" not in str(caught.value)
        assert cache.length == 0


def test_context_is_counted_with_the_cache(model):
    cache = model.new_cache()
    model([1] * 38, cache)
    with pytest.raises(ValueError, match="41 tokens .*context of 40"):
        model([1, 2, 3], cache)
    with pytest.raises(ValueError, match="41 tokens .*context of 40"):
        gptoss.generate(model, [1, 2, 3], cache=cache)
    assert cache.length == 38
    assert len(list(gptoss.generate(model, [1, 2], cache=cache, stop=()))) == 1  # the last id needs no room
    assert cache.length == 40


@pytest.mark.parametrize(("name", "value", "expected"), [
    *(("temperature", value, "a number of at least 0") for value in (-0.1, math.nan, math.inf, "1", True, None)),
    *(("top_p", value, "a number above 0 and at most 1") for value in (0, -0.5, 1.01, math.nan, "x", None)),
    *(("min_p", value, "a number from 0 to 1") for value in (-0.1, 1.1, math.nan, None)),
    *(("top_k", value, "an integer of at least 0") for value in (-1, 1.5, True, None)),
    *(("max_tokens", value, "an integer of at least 1") for value in (0, -1, 2.0, True)),
])
def test_sampling_arguments_refused(name, value, expected, model):
    with pytest.raises(ValueError) as caught:
        gptoss.generate(model, [1], **{name: value})
    assert str(caught.value) == f"{name}: expected {expected}, found {value!r}"


def test_other_arguments_refused(written, model):
    for name, value in (("backend", "cuda"), ("dense_dtype", "int4")):
        with pytest.raises(ValueError, match=f"{name}: expected .*, found '{value}'"):
            gptoss.load(written / "hf", **{name: value})
    with pytest.raises(ValueError, match="cache dtype: expected"):
        model.new_cache("float16")
    with pytest.raises(ValueError, match="logits_to_keep: expected"):
        model([1], logits_to_keep=-1)


# ---- Random checkpoints ---------------------------------------------------------------------------------------------


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


def read_all(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_seed_gives_the_same_bytes(written, tmp_path):
    write_random(tmp_path / "again", SMALL, seed=5)
    write_random(tmp_path / "other", SMALL, seed=6)
    assert read_all(tmp_path / "again") == read_all(written / "hf")
    assert read_all(tmp_path / "other")[WEIGHTS] != read_all(written / "hf")[WEIGHTS]


def test_layouts_are_equal_where_tensors_are_written_in_pieces(tmp_path):
    """Pieces of 4 MB: of q alone they end elsewhere than of q, k and v together."""
    config = replace(SMALL, hidden_size=64, num_hidden_layers=1, layer_types=("full_attention",), head_dim=6000,
                     rope_scaling=YARN)
    write_random(tmp_path / "hf", config)
    write_random(tmp_path / "original", config, "original")
    ours = arrays(gptoss.load(tmp_path / "hf", backend="numpy"))
    assert ours["0.q_weight"].nbytes > 2**22
    assert_same(ours, arrays(gptoss.load(tmp_path / "original", backend="numpy")))


def test_random_model_thinks(model):
    """Numbers of a sensible size: finite logits, neither all alike nor one above all."""
    logits = model(np.arange(0, 200, 6))
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 10


def test_disk_too_small(tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**9))
    with pytest.raises(CheckpointError) as caught:
        write_random(tmp_path / "20b", SHAPES["20b"])
    assert str(caught.value) == f"{tmp_path / '20b'}: expected room for 13.8 GB, found 1.0 GB"
    assert list((tmp_path / "20b").iterdir()) == []


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("shards", [1, 3])
def test_interrupted(error, shards, written, tmp_path, monkeypatch):
    """What stands under its final name is whole, nothing else stands there, and the rest is not taken for a model."""
    calls, rows = [], checkpoint.random_rows

    def failing(*args):
        calls.append(args)
        if len(calls) == 30:
            raise error
        return rows(*args)

    monkeypatch.setattr(checkpoint, "random_rows", failing)
    with pytest.raises(type(error)):
        write_random(tmp_path / "new", SMALL, seed=5, shards=shards)
    kept = read_all(tmp_path / "new")
    assert kept.keys() == ({shard(0)} if shards == 3 else set())
    for name, content in kept.items():
        assert content == (written / "shards" / name).read_bytes()
    refused(tmp_path / "new", "config.json: no such file")


# ---- The command ----------------------------------------------------------------------------------------------------


def command(*args):
    return subprocess.run([sys.executable, ROOT / "checkpoint.py", *args], capture_output=True, text=True, timeout=60)


def test_command_help():
    done = command("--help")
    assert done.returncode == 0 and "20b is 13.8 GB, 120b 65.2 GB" in done.stdout


@pytest.mark.parametrize(("args", "said"), [
    (["--layers", "0"], "--layers: expected 1 to 24, found 0"),
    (["--layers", "25"], "--layers: expected 1 to 24, found 25"),
    (["--shape", "120b", "--layers", "37"], "--layers: expected 1 to 36, found 37"),
    (["--layers", "x"], "invalid int value: 'x'"),
    (["--shape", "7b"], "invalid choice: '7b'"),
    (["--layout", "gguf"], "invalid choice: 'gguf'"),
])
def test_command_refuses(args, said, tmp_path):
    done = command(str(tmp_path / "new"), *args)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_command_writes(layout, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "20b", SMALL)
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", str(tmp_path), "--layers", "2", "--layout", layout])
    checkpoint.main()
    capsys.readouterr()
    model = gptoss.load(tmp_path, backend="numpy")
    assert model.config.layer_types == ("sliding_attention", "full_attention") and len(model.layers) == 2


@pytest.mark.parametrize("where", ["disk", "file"])
def test_command_fails_in_one_line(where, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "20b", SMALL)
    target = tmp_path / "new"
    if where == "disk":
        usage = type(shutil.disk_usage(tmp_path))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 0))
    else:
        target.write_text("a file, not a directory")
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", str(target)])
    with pytest.raises(SystemExit) as caught:
        checkpoint.main()
    said = capsys.readouterr().err
    assert caught.value.code == 2 and str(target) in said and said.count("\n") == 1
    assert os.listdir(tmp_path) == ["new"] and (where == "file" or os.listdir(target) == [])
