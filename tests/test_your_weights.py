"""Checkpoints as people have them: dense experts, as transformers saves them and with it TRL, Unsloth, LlamaFactory.

Each form is saved by transformers itself, and our logits equal its own in float32. What we do not run is refused by
name: a key or a file that would change the function is never ignored.
"""

import json
import math
import os
import re
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shapes import SMALL, F, S
from transformers import GptOssConfig, GptOssForCausalLM, Mxfp4Config

import gptoss
from bench.random_checkpoint import write_random
from checkpoint import CheckpointError, Config, read_config

BACKENDS = "numpy", "numba"
# float32 carries 6e-8 a rounding. Both backends multiply dense experts as float32, and differ from transformers in the
# order of sums of about 100 terms only: 2.1e-6 was seen on logits of size 1. (Numba's int16 is for MXFP4 only.)
DENSE = {"numpy": 1e-5, "numba": 1e-5}
PACKED = {"numpy": 2e-5, "numba": 5e-4}  # as in test_against_transformers.py
TYPES = {"float32": ("F32", np.float32), "bfloat16": ("BF16", np.uint16), "float16": ("F16", np.float16)}
E, N, F2 = SMALL.num_local_experts, SMALL.hidden_size, 2 * SMALL.intermediate_size


# ---- Making them ----------------------------------------------------------------------------------------------------

def random_shape(seed):
    """A Config in which no two dimensions are equal, and a number of tokens. Dense experts need no blocks of 32."""
    rng = np.random.default_rng(seed)
    while True:
        G, D, L, W = (int(rng.integers(low, high)) for low, high in ((2, 5), (3, 12), (2, 4), (3, 7)))
        c = Config(
            vocab_size=int(rng.integers(150, 250)), hidden_size=int(rng.integers(20, 90)),
            intermediate_size=int(rng.integers(20, 90)), num_hidden_layers=L, num_key_value_heads=G,
            num_attention_heads=G * int(rng.integers(2, 5)), head_dim=2 * D, num_local_experts=int(rng.integers(4, 10)),
            num_experts_per_tok=int(rng.integers(1, 6)), sliding_window=W, eos_token_id=(7, 9),
            rope_theta=float(rng.choice([1e4, 150000.0])), layer_types=tuple(rng.permutation([S, F, S][:L]).tolist()),
            max_position_embeddings=512, rms_norm_eps=float(rng.choice([1e-5, 1e-6])),
            swiglu_limit=float(rng.choice([0.7, 7.0])), rope_scaling=rng.choice([None, {
                "factor": float(rng.choice([8.0, 32.0])), "beta_fast": 32.0, "beta_slow": 1.0,
                "original_max_position_embeddings": int(rng.choice([64, 4096])), "truncate": bool(rng.integers(2))}],
                p=[0.2, 0.8]),
        )
        T = 3 * W + int(rng.integers(1, 9))
        sizes = [T, L, W, G, c.num_attention_heads, c.head_dim, c.num_attention_heads * c.head_dim, G * c.head_dim,
                 c.hidden_size, c.intermediate_size, 2 * c.intermediate_size, c.vocab_size, c.num_local_experts,
                 c.num_experts_per_tok]
        if len(set(sizes)) == len(sizes) and c.num_experts_per_tok < c.num_local_experts:
            return c, T


def theirs(config, **changes):
    """`config` as transformers has it."""
    fields = asdict(config) | {"layer_types": list(config.layer_types), "eos_token_id": list(config.eos_token_id)}
    scaling, theta, _ = fields.pop("rope_scaling"), fields.pop("rope_theta"), fields.pop("do_sample")
    rope = {"rope_type": "yarn"} | scaling if scaling else {"rope_type": "default"}
    return GptOssConfig(**(fields | changes), rope_parameters=rope | {"rope_theta": theta})


def random_model(config, seed=0, **changes):
    """transformers' model with random weights, scaled so that activations keep their size from layer to layer."""
    model, generator = GptOssForCausalLM(theirs(config, **changes)).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            x = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                x = 1 + x / 8
            elif name.endswith(("weight", "_proj")):
                x /= math.sqrt(weight.shape[1])  # [outputs, inputs] or, of experts, [E, inputs, outputs]
            weight.copy_(x)
    return model


def as_transformers_4(config):
    """The config.json that transformers 4.57 writes where version 5 writes this one."""
    rope = dict(config["rope_parameters"])
    new = ("rope_parameters", "swiglu_alpha")  # and it writes no key that is null
    rest = {key: value for key, value in config.items() if key not in new and value is not None}
    return rest | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "router_aux_loss_coef": 0.9,
                   "transformers_version": "4.57.6"}


def edit_json(path, change):
    """`change` is a function of the JSON in the file, or keys to set in it; ... removes a key."""
    value = json.loads(path.read_text())
    value = change(value) if callable(change) else value | change
    path.write_text(json.dumps({key: new for key, new in value.items() if new is not ...}))


def edit_tensors(path, change):
    save_file(change(load_file(path)), path, {"format": "pt"})


def their_logits(path, tokens):
    """transformers' logits in float32, from the very files. (Its faster experts want sizes that are multiples of 4.)"""
    model = GptOssForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)[None]).logits[0].numpy()


def assert_logits(path, tokens, expected, tolerance=DENSE, sizes=(1, 4)):
    """Of both backends: in one pass, in chunks, and one by one."""
    for backend in BACKENDS:
        model = gptoss.load(path, backend=backend)
        for size in (len(tokens), *sizes):
            cache = model.new_cache("float32")
            logits = np.concatenate([model(tokens[n : n + size], cache) for n in range(0, len(tokens), size)])
            difference = np.abs(logits - expected).max()
            assert difference <= tolerance[backend], f"{path}, {backend}, {size} at a time: differs by {difference:.1e}"


# ---- Every form has transformers' logits ----------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(24))
def test_logits_equal_transformers(seed, tmp_path):
    """Three types of numbers, one file or shards, the config of transformers 4 or 5."""
    config, T = random_shape(seed)
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, T)
    random_model(config, seed).save_pretrained(tmp_path / "saved")
    for dtype, (stored, _) in TYPES.items():
        saved, shards = tmp_path / dtype, tmp_path / f"{dtype}-shards"
        model = GptOssForCausalLM.from_pretrained(tmp_path / "saved", dtype=getattr(torch, dtype))
        model.save_pretrained(saved)
        model.save_pretrained(shards, max_shard_size="30KB")
        assert len(list(shards.glob("*.safetensors"))) > 2
        with safe_open(saved / "model.safetensors", "np") as file:
            for name in ("gate_up_proj", "down_proj"):
                assert file.get_slice(f"model.layers.0.mlp.experts.{name}").get_dtype() == stored
        expected = their_logits(saved, tokens)
        assert 0.3 < expected.std() < 3
        for form in saved, shards:
            assert_logits(form, tokens, expected)
            assert "rope_parameters" in json.loads((form / "config.json").read_text())
            edit_json(form / "config.json", as_transformers_4)
            assert read_config(form) == (read_config(tmp_path / "saved"))
        assert_logits(shards, tokens, expected, sizes=())
        assert np.array_equal(their_logits(saved, tokens), expected)  # they read version 4's config alike


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The small shape in float32, as transformers 5 saves it, some tokens and their logits."""
    path, tokens = tmp_path_factory.mktemp("saved"), np.random.default_rng(1).integers(0, SMALL.vocab_size, 17)
    random_model(SMALL).save_pretrained(path)
    return SimpleNamespace(path=path, tokens=tokens, logits=their_logits(path, tokens))


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of it to spoil."""
    for file in saved.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_packed_model_dequantized_and_saved_again(tmp_path):
    """MXFP4 has 2 bits of fraction, so bf16 holds it exactly: the logits are those of the packed one."""
    write_random(tmp_path / "packed", SMALL, seed=3)
    tokens = np.random.default_rng(1).integers(0, SMALL.vocab_size, 17)
    model = GptOssForCausalLM.from_pretrained(
        tmp_path / "packed", quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "dense")
    assert read_config(tmp_path / "dense")[0].eos_token_id == SMALL.eos_token_id
    expected = their_logits(tmp_path / "dense", tokens)
    assert_logits(tmp_path / "dense", tokens, expected)
    assert_logits(tmp_path / "packed", tokens, expected, PACKED)


def test_each_tensor_may_have_its_own_type(saved, copy):
    """transformers keeps the norms of a float16 model in float32, and trainers their router."""
    types = np.random.default_rng(4).choice([*TYPES], 99)
    edit_tensors(copy / "model.safetensors", lambda tensors: {
        name: x.to(getattr(torch, dtype)) for (name, x), dtype in zip(sorted(tensors.items()), types, strict=False)})
    assert_logits(copy, saved.tokens, their_logits(copy, saved.tokens))


def test_the_length_that_transformers_4_55_leaves_out(saved, copy):
    edit_json(copy / "config.json", lambda config: as_transformers_4(config) | {"max_position_embeddings": 64})
    edit_json(copy / "config.json", lambda config: config | {"rope_scaling": {
        key: value for key, value in config["rope_scaling"].items() if key != "original_max_position_embeddings"}})
    expected = their_logits(copy, saved.tokens)
    assert np.abs(expected - saved.logits).max() > 0.1
    assert_logits(copy, saved.tokens, expected, sizes=())


@pytest.mark.parametrize("dtype", TYPES)
def test_matrices_are_views_into_the_file(dtype, saved, tmp_path):
    GptOssForCausalLM.from_pretrained(saved.path, dtype=getattr(torch, dtype)).save_pretrained(tmp_path)
    model = gptoss.load(tmp_path)
    layer = model.layers[1]
    for matrix in (layer.gate_up, layer.down, layer.q_weight, layer.o_weight, model.embedding, model.unembedding):
        assert matrix.dtype == TYPES[dtype][1] and not matrix.flags.owndata and not matrix.flags.writeable
    assert layer.gate_up.shape == (E, F2, N) and layer.down.shape == (E, N, F2 // 2)


@pytest.mark.parametrize("dtype", TYPES)
def test_int8_weights_change_little(dtype, saved, tmp_path):
    """As of a packed checkpoint: half a step of 255 a block is 0.5% of a product's size, a percent or so of logits."""
    GptOssForCausalLM.from_pretrained(saved.path, dtype=getattr(torch, dtype)).save_pretrained(tmp_path)
    expected = their_logits(tmp_path, saved.tokens)
    logits = [gptoss.load(tmp_path, backend=backend, dense_dtype="int8")(saved.tokens) for backend in BACKENDS]
    error = np.median(np.linalg.norm(logits[0] - expected, axis=1) / np.linalg.norm(expected, axis=1))
    assert 1e-4 < error < 0.03, error
    assert np.abs(logits[0] - logits[1]).max() < PACKED["numba"]


# ---- What lies in the directory -------------------------------------------------------------------------------------

def test_a_stale_index_beside_a_newer_file(saved, tmp_path):
    """transformers leaves the index of old shards where it saves a single file, and reads the file."""
    model = GptOssForCausalLM.from_pretrained(saved.path)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("model*")} == {"model.safetensors", "model.safetensors.index.json"}
    refused(tmp_path, f"{tmp_path}: expected model.safetensors, or", "model.safetensors.index.json", "found both")
    (tmp_path / "model.safetensors.index.json").unlink()  # as the sentence says
    assert_logits(tmp_path, saved.tokens, saved.logits, sizes=())


def test_newer_shards_beside_a_file(saved, tmp_path):
    """transformers leaves the old file where it saves shards, and reads that one again."""
    model = GptOssForCausalLM.from_pretrained(saved.path)
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    refused(tmp_path, f"{tmp_path}: expected model.safetensors, or", "model.safetensors.index.json", "found both")
    (tmp_path / "model.safetensors").unlink()
    assert_logits(tmp_path, saved.tokens, saved.logits, sizes=())


def test_a_file_stands_for_its_directory(saved):
    assert_logits(saved.path / "model.safetensors", saved.tokens, saved.logits, sizes=())


def test_what_else_lies_beside_is_not_read(saved, copy):
    for name in "adapter_model.safetensors", "value_head.safetensors":
        save_file({"model.norm.weight": torch.zeros(3)}, copy / name)
    (copy / "training_args.bin").write_bytes(b"a pickle")
    assert_logits(copy, saved.tokens, saved.logits, sizes=())


@pytest.mark.parametrize("quantization", [None, ..., {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}])
def test_the_tensors_say_whether_experts_are_packed(quantization, saved, copy):
    """The config may say nothing of it, or still say what the model was before it was dequantized."""
    edit_json(copy / "config.json", {"quantization_config": quantization})
    assert_logits(copy, saved.tokens, saved.logits, sizes=())


def test_stop_ids_are_those_of_both_files(copy):
    def stops(of_config, of_generation):
        edit_json(copy / "config.json", {"eos_token_id": of_config})
        edit_json(copy / "generation_config.json", {"eos_token_id": of_generation})
        return set(read_config(copy)[0].eos_token_id)

    assert stops(7, [9, 11]) == {7, 9, 11}
    assert stops([7, 9], 9) == {7, 9}
    assert stops(7, ...) == {7}
    assert stops(None, [8]) == {8}
    assert stops(None, None) == {200002, 199999, 200012}  # as published; in this vocabulary they never come
    refused_ids = f"{copy / 'generation_config.json'}: eos_token_id: expected ids from 0 to {SMALL.vocab_size - 1}"
    with pytest.raises(CheckpointError, match=re.escape(refused_ids)):
        stops(7, [9, 211])
    with pytest.raises(CheckpointError, match=re.escape(f"{copy / 'config.json'}: eos_token_id: expected ids")):
        stops(-1, [9])


# ---- Refused by name ------------------------------------------------------------------------------------------------

def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        gptoss.load(path)
    sentence = str(caught.value)
    for word in words:
        assert word in sentence, f"expected {word!r} in {sentence!r}"


def rope(**changes):
    return lambda config: config | {"rope_parameters": config["rope_parameters"] | changes}


KEYS = {  # name: a change of config.json, what is said of it
    "tied": ({"tie_word_embeddings": True}, "tie_word_embeddings: expected false, found true"),
    "no biases": ({"attention_bias": False}, "attention_bias: expected true, found false"),
    "gelu": ({"hidden_act": "gelu"}, 'hidden_act: expected "silu", found "gelu"'),
    "alpha": ({"swiglu_alpha": 1.5}, "swiglu_alpha: expected"),
    "half a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, found 0.5"),
    "half a head, inside": (lambda config: rope(partial_rotary_factor=0.5)(config) | {"partial_rotary_factor": None},
                            "partial_rotary_factor: expected 1, found 0.5"),
    "linear": (rope(rope_type="linear"), 'rope_parameters.rope_type: expected "yarn" or "default", found "linear"'),
    "dynamic": (rope(rope_type="dynamic"), 'found "dynamic"'),
    "llama3": (rope(rope_type="llama3"), 'found "llama3"'),
    "longrope": (rope(rope_type="longrope"), 'found "longrope"'),
    "attention_factor": (rope(attention_factor=1.0), "attention_factor: expected"),
    "mscale": (rope(mscale=1.0, mscale_all_dim=1.0), "mscale: expected"),
    # transformers 4 takes this for plain RoPE, version 5 for the published YaRN
    "null": ({"rope_parameters": ..., "rope_scaling": None}, "rope_scaling: expected"),
    "none": ({"rope_parameters": ...}, "rope_scaling: expected"),
    # one of two different values is ignored, by some version
    "two ropes": (lambda config: config | {"rope_scaling": config["rope_parameters"] | {"factor": 2.0}},
                  "rope_scaling: expected"),
    "two thetas": ({"rope_theta": 10000.0}, "rope_theta: expected"),
    "two lengths": ({"original_max_position_embeddings": 64}, "original_max_position_embeddings: expected"),
    "two counts": ({"num_experts": 5}, "num_experts: expected"),
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
                     'quantization_config: expected nothing or quant_method "mxfp4"'),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, 'found {"quant_method": "fp8"}'),
}


@pytest.mark.parametrize("change, sentence", KEYS.values(), ids=KEYS)
def test_keys_that_would_change_the_function(change, sentence, copy):
    edit_json(copy / "config.json", change)
    refused(copy, f"{copy / 'config.json'}: ", sentence)


def one_by_one(tensors):
    """As Unsloth's 4-bit model has them: a linear layer [outputs, inputs] for each expert."""
    out = {}
    for name, x in tensors.items():
        if "mlp.experts." in name:
            stem, kind = (name[:-5], "bias") if name.endswith("_bias") else (name, "weight")
            parts = x if kind == "bias" else x.mT
            out |= {f"{stem}s.{e}.{kind}": part.contiguous() for e, part in enumerate(parts)}
        else:
            out[name.replace("router.", "router.linear.")] = x
    return out


def changed(name, change):
    return lambda tensors: tensors | {name: change(tensors[name]).contiguous()}


GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
TENSORS = {
    "a wrapper's prefix": (lambda tensors: {"module." + name: x for name, x in tensors.items()},
                           ("module.model.", ": expected a tensor of gpt-oss, found a name from a training")),
    "compiled": (lambda tensors: {"_orig_mod." + name: x for name, x in tensors.items()},
                 ("_orig_mod.", ": expected a tensor of gpt-oss, found a name from a training")),
    "peft, not merged": (lambda tensors: {"base_model.model." + name: x for name, x in tensors.items()},
                         ("base_model.model.", ": expected a tensor of gpt-oss, found a name from a training")),
    "without its head": (lambda tensors: {name: x for name, x in tensors.items() if name != "lm_head.weight"},
                         ("lm_head.weight: expected",)),
    "one by one": (one_by_one, ("experts.gate_up_projs.0", "save_pretrained_merged")),
    "float64": (changed(GATE_UP, torch.Tensor.double), (GATE_UP, "F64")),
    "float8": (changed(GATE_UP, lambda x: x.to(torch.float8_e4m3fn)), (GATE_UP, "F8_E4M3")),
    "transposed": (changed(GATE_UP, lambda x: x.mT), (GATE_UP, f"[{E}, {N}, {F2}]", f"found F32 [{E}, {F2}, {N}]")),
    "an expert less": (changed(GATE_UP, lambda x: x[1:]), (GATE_UP, f"[{E}, {N}, {F2}]", f"[{E - 1}, {N}, {F2}]")),
}


@pytest.mark.parametrize("change, words", TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_no_gpt_oss(change, words, copy):
    edit_tensors(copy / "model.safetensors", change)
    refused(copy, str(copy), *words)


FILES = {
    "pickled": ("pytorch_model.bin", b"PK", ("expected a .safetensors file", "pickles")),
    "gguf": ("gpt-oss-20b.gguf", b"GGUF", ("expected a .safetensors file", "GGUF")),
    "gguf by another name": ("model.safetensors", b"GGUF\3\0\0\0", ("expected a safetensors file", "GGUF")),
    "git-lfs": ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ("git-lfs",)),
    "fsdp": ("pytorch_model_fsdp_0/__0_0.distcp", b"PK", ("expected a .safetensors file", ".distcp")),
}


@pytest.mark.parametrize("name, content, words", FILES.values(), ids=FILES)
def test_files_that_are_something_else(name, content, words, copy):
    os.remove(copy / "model.safetensors")
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(content)
    refused(copy, str(copy), *words)


@pytest.mark.parametrize("config", [False, True], ids=["as peft saves it", "with a config.json"])
def test_an_adapter_is_no_checkpoint(config, copy):
    os.remove(copy / "model.safetensors")
    if not config:
        os.remove(copy / "config.json")
    (copy / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"base_model.model.model.norm.weight": torch.zeros(3)}, copy / "adapter_model.safetensors")
    refused(copy, f"{copy}: expected", "found an adapter (adapter_config.json)")
