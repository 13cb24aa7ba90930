"""Files of a checkpoint or an adapter, damaged in thousands of ways: read as they are meant, or refused in a sentence.

Never does a case take ten seconds, or much more memory than the file has bytes. HYPOTHESIS_PROFILE=long tries 20,000 of
each kind.
"""

import json
import math
import os
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import safetensors
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from shapes import SMALL

import gptoss
from adapter import adapt
from bench.random_checkpoint import write_random
from checkpoint import ITEM_BITS, CheckpointError, map_safetensors

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
CONFIG = replace(SMALL, num_hidden_layers=1, layer_types=("full_attention",))
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def cases(few):
    return settings(max_examples=20_000 if LONG else few, deadline=timedelta(seconds=10))


@contextmanager
def one_sentence():
    """What happens in here works, or says what is wrong: in one line that a terminal shows as it is, the one entry of
    the list that this gives. It takes little memory."""
    tracemalloc.start()
    said = []
    try:
        yield said
    except CheckpointError as error:
        said.append(str(error))
        assert said[0].isprintable() and len(said[0]) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**23, peak  # the files have 200 KB


# ---- Damage ---------------------------------------------------------------------------------------------------------

JUNK = st.one_of(st.sampled_from([
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, -0.0, 0.5, 1e308, math.nan, -math.inf, "", "yarn", "x",
    "\ud800", "\x1b[2J", "x" * 10_000, "../x", [], [[]], [0, 1], [2**64] * 70, [10**4000] * 3, {}, {"a": {}}, "BF16"]),
    st.integers(-3, 2**65), st.text(max_size=5))


@st.composite
def damaged_json(draw, value):
    """The text of `value` with something else at some place: a value that nobody expects, none, a key once more."""
    whole = {"": json.loads(json.dumps(value))}
    for _ in range(draw(st.integers(1, 2))):
        node, key = whole, ""
        while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 20 if node is whole else 4)):
            node = node[key]
            key = draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
        if node is whole or draw(st.integers(0, 5)):
            node[key] = deepcopy(draw(JUNK))
        elif isinstance(node, dict) and draw(st.booleans()):
            node[draw(st.text(max_size=5))] = node.pop(key)
        else:
            del node[key]
    value = whole[""]
    return json.dumps(value, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")


INSERTED = [b"-", b".0", b"e1", b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\ud800", b"\xef\xbb\xbf", b" ", b"NaN"]


@st.composite
def damaged_bytes(draw, data, end=None):
    """`data` after one to three accidents in the first `end` bytes of it."""
    data, end = bytearray(data), len(data) if end is None else end
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.one_of(st.integers(0, 9), st.integers(0, end)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "remove", "digit", "repeat", "sign"]))
        if kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(INSERTED)))
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 8))]
        elif kind == "repeat":  # with luck a key twice
            data[at:at] = data[at : at + draw(st.integers(1, 80))]
        elif at < len(data):
            digits = [i for i in range(at, min(end, len(data))) if chr(data[i]).isdigit()]
            if kind == "flip" or not digits:
                data[at] ^= 1 << draw(st.integers(0, 7))
            elif kind == "digit":  # the JSON stays JSON, so that the checks behind it have work
                data[digits[0]] = ord(draw(st.sampled_from("0123456789-")))
            else:
                data[digits[0] : digits[0]] = b"-"
    return bytes(data)


def with_length(header, data=b""):
    return len(header).to_bytes(8, "little") + header + data


# ---- Headers, beside the library ------------------------------------------------------------------------------------

class Twice(Exception):
    pass


def as_the_format_says(header):
    """Whether a header that the library takes is one by the letter of the format. The library (0.8) also takes what its
    JSON parser happens to take. We refuse that, because other programs may read it otherwise:

        a tensor's name twice, of which it takes the last one      (the format says: not allowed)
        a field of a tensor beside dtype, shape and data_offsets   (it might change what the bytes mean)
        ["F32", [2], [0, 8]] for the object of a tensor, and {"F32": null} for the name of a dtype
    """
    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise Twice
        return dict(pairs)

    try:
        entries = json.loads(header, object_pairs_hook=once)
    except Twice:
        return False
    entries.pop("__metadata__", None)
    return all(isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}
               and isinstance(entry["dtype"], str) for entry in entries.values())


HEADERS = [
    {"__metadata__": {"format": "pt", "x": "y"}, "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
     "b": {"dtype": "BF16", "shape": [], "data_offsets": [16, 18]}},
    {"none": {"dtype": "U8", "shape": [0, 7], "data_offsets": [0, 0]},
     "a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}, "b": {"dtype": "I16", "shape": [1, 8],
                                                                      "data_offsets": [2, 18]}},
]
ODDITIES = [  # entries, each with 16 bytes of data: what the library does with them is what counts
    '["F32", [2, 2], [0, 16]]', '{"dtype": {"F32": null}, "shape": [4], "data_offsets": [0, 16]}',
    *('{{"dtype": "{}", "shape": {}, "data_offsets": {}{}}}'.format(*odd) for odd in [
        ("F32", "[4]", "[0, 16]", ', "more": 1'), ("F32", "[4]", "[-0, 16]", ""), ("F32", "[4.0]", "[0, 16]", ""),
        ("F32", "[4]", "[0, 16, 16]", ""), ("F32", '""', "[0, 16]", ""), ("F32", "{}", "[0, 4]", ""),
        ("F32", "[4]", "[0, 16]", ', "dtype": "F32"'), ("F32", "[4]", "[0, 16]", ', "x": ' + "[" * 200 + "]" * 200),
        ("F32", "[4]", "[0, 16]", ', "x": NaN'), ("f32", "[4]", "[0, 16]", ""), ("U8", "[-0, 0]", "[0, 0]", ""),
        ("U8", "[9223372036854775808, 2, 0]", "[0, 0]", ""), ("U8", "[0, 9223372036854775808, 2]", "[0, 0]", ""),
        ("U8", "[18446744073709551616, 0]", "[0, 0]", ""), ("U8", f"[{'1, ' * 70}16]", "[0, 16]", ""),
        ("U8", "[16]", "[16, 0]", ""), ("U8", "[17]", "[0, 17]", ""), ("F4", "[33]", "[0, 16]", ""),
        ("F6_E2M3", "[4]", "[0, 3]", ""), ("C64", "[2]", "[0, 16]", ""), ("X8", "[16]", "[0, 16]", "")]),
]


def like_the_library(path, content):
    """Reads a file as the library reads it, or refuses it as that does."""
    path.write_bytes(content)
    try:
        theirs = {name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
                  for name, tensor in safetensors.deserialize(content)}
    except safetensors.SafetensorError:
        theirs = None
    with one_sentence() as refused:
        ours = {name: (dtype, shape, data.tobytes()) for name, (dtype, shape, data) in map_safetensors(path).items()}
    if refused and theirs is not None:
        assert not as_the_format_says(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())
        return "the library takes it, against the format"
    assert theirs is None if refused else ours == theirs
    return "refused" if refused else "read"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("header") / "a.safetensors"


@cases(700)
@given(st.data())
def test_headers_are_read_or_refused_as_the_library_does(file, data):
    header, size = data.draw(st.sampled_from(HEADERS)), 18
    text = json.dumps(header).encode()
    how = data.draw(st.sampled_from(["values", "bytes", "text", "again"]))
    if how == "values":
        content = with_length(data.draw(damaged_json(header)), bytes(size))
    elif how == "bytes":
        content = data.draw(damaged_bytes(with_length(text, bytes(size)), 8 + len(text)))
    elif how == "text":  # here the length before the header stays right
        content = with_length(data.draw(damaged_bytes(text)), bytes(size))
    else:  # an object in it says something once more
        again = ['"a": 1', '"dtype": "F32"', '"format": "x"', '"__metadata__": {}', '"shape": []']
        again = data.draw(st.sampled_from(again))
        ends = [i for i, byte in enumerate(text) if byte == ord("}")]
        at = data.draw(st.sampled_from(ends))
        content = with_length(text[:at] + b", " + again.encode() + text[at:], bytes(size))
    event(like_the_library(file, content))


@pytest.mark.parametrize("entry", ODDITIES)
def test_an_odd_entry(entry, tmp_path):
    for size in (16, 3, 0):
        like_the_library(tmp_path / "a.safetensors", with_length(b'{"a": %b}' % entry.encode(), bytes(size)))


@pytest.mark.parametrize("header", [
    b"{}", b" {}", b"{}\n\t ", b"\xef\xbb\xbf{}", b"{}\0", "{}".encode("utf-16"), "{}".encode("utf-32-le"), b"[]", b"",
    b"null", b'{"__metadata__": null}', *(b'{"__metadata__": %b}' % about for about in (
        b"{}", b"[]", b'""', b"0", b"false", b'{"a": 1}', b'{"a": null}', b'{"a": "\\ud800"}', b'{"\\udc00": "a"}',
        b'{"a": "\\ud83d\\ude00"}', b'{"a": "1", "a": "2"}', b'{}, "__metadata__": {}')),
    b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}',
    b'{"\\u001b[2J": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}',
], ids=ascii)
def test_an_odd_header(header, tmp_path):
    like_the_library(tmp_path / "a.safetensors", with_length(header))


def test_the_types_are_those_of_the_library(tmp_path):
    """Of each type eight elements, and each has the bits that we think it has."""
    for dtype, bits in ITEM_BITS.items():
        header = json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}).encode()
        like_the_library(tmp_path / "a.safetensors", with_length(header, bytes(bits)))
        assert map_safetensors(tmp_path / "a.safetensors")["a"][:2] == (dtype, (8,))


# ---- config.json, generation_config.json, the index, the weights ----------------------------------------------------

@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The smallest checkpoint, in one file, in shards and in the other layout."""
    root = tmp_path_factory.mktemp("checkpoints")
    write_random(root / "hf", CONFIG)
    write_random(root / "shards", CONFIG, shards=2)
    write_random(root / "original", CONFIG, "original")
    return root


def load_damaged(path, content):
    """Loads and runs a checkpoint with `content` in one of its files, then puts the old content back."""
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        with one_sentence() as refused:
            logits = gptoss.load(path.parent, backend="numpy")([0])
            assert logits.shape == (1, CONFIG.vocab_size)
        return "refused" if refused else "read"
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["hf/config.json", "original/config.json", "hf/generation_config.json",
                                  f"shards/{INDEX}", f"hf/{WEIGHTS}", f"original/{WEIGHTS}"])
def test_damaged_files(name, checkpoints):
    path = checkpoints / name
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)
    text = content[8:end] if path.suffix == ".safetensors" else content

    @cases(120)
    @given(st.data())
    def run(data):
        if data.draw(st.booleans()):
            damaged = data.draw(damaged_bytes(content, end))
        else:
            damaged = data.draw(damaged_json(json.loads(text)))
            damaged = damaged if text is content else with_length(damaged, content[end:])
        event(load_damaged(path, damaged))

    run()


# ---- Adapters -------------------------------------------------------------------------------------------------------

LORA = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", "init_lora_weights": True, "use_rslora": False,
        "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"], "lora_dropout": 0.1,
        "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2}, "alpha_pattern": {".*experts.*": 9}}


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("lora"), np.random.default_rng(0)
    c, root = CONFIG, "base_model.model.model.layers.0."
    shapes = {"self_attn.q_proj.lora_A.weight": (2, c.hidden_size), "self_attn.q_proj.lora_B.weight": (60, 2),
              "mlp.experts.lora_A.weight": (21, c.hidden_size), "mlp.experts.lora_B.weight": (128, 21)}
    save_file({root + name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
              folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(LORA))
    return folder


def adapt_damaged(path, content):
    before, layers = path.read_bytes(), [Counter()]
    try:
        path.write_bytes(content)
        with one_sentence() as refused:
            adapt(layers, path.parent, CONFIG)
            for field, adapted in layers[0].items():
                *E, M, N = {"q_weight": (60, 96), "gate_up": (7, 128, 96)}.get(field, (0, 0))
                r = adapted.A.shape[-2]
                assert adapted.A.shape == (*E, r, N) and adapted.B.shape == (*E, M, r)
                assert np.isfinite(adapted.A).all() and np.isfinite(adapted.B).all()
        return "refused" if refused else "read"
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_adapters(name, lora):
    path = lora / name
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)
    text = content[8:end] if path.suffix == ".safetensors" else content
    assert adapt_damaged(path, content) == "read"

    @cases(150)
    @given(st.data())
    def run(data):
        how = data.draw(st.integers(0, 2))
        if how == 0:
            damaged = data.draw(damaged_bytes(content, end))
        elif how == 1 or text is not content:
            damaged = data.draw(damaged_json(json.loads(text)))
            damaged = damaged if text is content else with_length(damaged, content[end:])
        else:
            pattern = data.draw(st.text("()[]{}*+?|\\.^$a_q0,1", max_size=12))
            damaged = json.dumps(LORA | {"rank_pattern": {pattern: 2}}).encode()
        event(adapt_damaged(path, damaged))

    run()
