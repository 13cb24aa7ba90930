"""A model with an adapter computes what peft computes with it, and what it would compute otherwise it refuses.

The adapters are peft's own, of random numbers: its B begins as zeros, with which any mistake would go unseen. peft's
model is transformers', in float32 and dequantized. The tolerances are those of test_against_transformers.py, where
their analysis stands: an update adds two more sums to each product.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from shapes import SMALL, F, S
from test_against_transformers import TOLERANCE
from transformers import GptOssForCausalLM, Mxfp4Config

import adapter as adapters
import chat
import engine as engines
import gptoss
import models
import xray
from bench.random_checkpoint import write_random
from checkpoint import CheckpointError
from conversation import LocalEngine

ATTENTION, UP, DOWN = ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
ALL = {"target_modules": ATTENTION, "target_parameters": [UP, DOWN]}
ROOTS = "base_model.model.model.layers."
CASES = {  # what is trained, in peft's words
    "attention": {"target_modules": ATTENTION},
    "two of attention, in one layer": {"target_modules": ["k_proj", "o_proj"], "layers_to_transform": [1]},
    "experts": {"target_parameters": [UP, DOWN]},
    "experts, the other way round": {"target_parameters": [DOWN, UP]},
    "gate_up only": {"target_parameters": [UP]},
    "down only": {"target_parameters": [DOWN]},
    "down of one layer": {"target_modules": ["v_proj"], "target_parameters": ["1." + DOWN]},
    "both": ALL,
    "with the router": ALL | {"target_parameters": [UP, DOWN, "mlp.router.weight"]},
    "rslora": ALL | {"use_rslora": True},
    "ranks of their own": ALL | {"rank_pattern": {"q_proj": 3, r"layers\.1\.self_attn\.[kv]_proj": 2, "down_proj": 4},
                                 "alpha_pattern": {"k_proj": 7, r"^model\.layers\.0\..*gate_up_proj": 40}},
}


def random_config(seed):
    """A shape no two of whose dimensions are equal, and a rank that is another number again."""
    rng = np.random.default_rng(seed)
    while True:
        N, F_, (G, H), D = *32 * rng.integers(1, 6, 2), rng.integers(1, 5, 2), 2 * rng.integers(3, 9)
        E, (K, L), (W, r), V = rng.integers(4, 12), rng.integers(2, 4, 2), rng.integers(5, 9, 2), rng.integers(100, 300)
        dimensions = [N, F_, 2 * F_, G, G * H, D, G * D, G * H * D, E, K, L, W, V, r, r * E]
        if len(set(dimensions)) == len(dimensions):
            break
    sizes = {"hidden_size": N, "intermediate_size": F_, "num_key_value_heads": G, "num_attention_heads": G * H,
             "head_dim": D, "num_local_experts": E, "num_experts_per_tok": K, "num_hidden_layers": L,
             "sliding_window": W, "vocab_size": V}
    return replace(SMALL, **{key: int(n) for key, n in sizes.items()}, layer_types=(S, F, S)[:L]), int(r)


def reference(path, packed=True):
    """transformers' model, in float32."""
    how = {"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}
    return GptOssForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **how).eval()


def trained(model, folder, r=5, **lora):
    """peft's model with a random adapter, which is saved in the folder."""
    config = LoraConfig(**{"r": r, "lora_alpha": 11, "target_modules": []} | lora)
    torch.manual_seed(4)
    model = get_peft_model(model, config).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape) / 10
    model.save_pretrained(folder)
    return model


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)[None]).logits[0].numpy()


def both_ways(path, tokens, backend, **how):
    """The logits of one pass and those of one by one, and the model."""
    model = gptoss.load(path, backend=backend, **how)
    cache = model.new_cache("float32")
    return model(tokens), np.concatenate([model([token], cache) for token in tokens]), model


def assert_computes(path, folder, tokens, expected, **how):
    for backend, tolerance in TOLERANCE.items():
        once, one_by_one, _ = both_ways(path, tokens, backend, adapter=folder, **how)
        assert np.abs(once - expected).max() < tolerance, backend
        assert np.abs(one_by_one - expected).max() < tolerance, backend


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint, an adapter of all that one can have, tokens, and peft's logits."""
    path, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("lora")
    write_random(path, SMALL, seed=3)
    tokens = np.random.default_rng(1).integers(0, SMALL.vocab_size, 40)
    return path, folder, tokens, logits_of(trained(reference(path), folder, **ALL), tokens)


# ---- What it computes -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", CASES)
def test_logits_equal_pefts(case, tmp_path):
    config, r = random_config(list(CASES).index(case))
    write_random(tmp_path / "base", config, seed=2)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 23)
    model = reference(tmp_path / "base")
    base = logits_of(model, tokens)
    expected = logits_of(trained(model, tmp_path / "lora", r, **CASES[case]), tokens)
    assert np.abs(expected - base).max() > 0.1
    assert_computes(tmp_path / "base", tmp_path / "lora", tokens, expected)


@pytest.mark.parametrize("form", ["bfloat16", "float16", "float32"])
def test_unpacked_weights_take_it_too(form, small, tmp_path):
    path, _, tokens, _ = small
    reference(path).to(getattr(torch, form)).save_pretrained(tmp_path / "base")
    expected = logits_of(trained(reference(tmp_path / "base", False), tmp_path / "lora", **ALL), tokens)
    assert_computes(tmp_path / "base", tmp_path / "lora", tokens, expected)


def test_the_original_layout_takes_it_too(tmp_path):
    for layout in "hf", "original":
        write_random(tmp_path / layout, SMALL, layout, seed=3)
    tokens = np.arange(30)
    expected = logits_of(trained(reference(tmp_path / "hf"), tmp_path / "lora", **ALL), tokens)
    assert_computes(tmp_path / "original", tmp_path / "lora", tokens, expected)


def test_int8_weights_change_little(small):
    """As without an adapter, whose matrices stay as they are."""
    path, folder, tokens, expected = small
    for backend in TOLERANCE:
        for logits in both_ways(path, tokens, backend, adapter=folder, dense_dtype="int8")[:2]:
            error = np.median(np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1))
            assert 1e-4 < error < 0.03, error


@pytest.mark.parametrize("backend", TOLERANCE)
def test_merged_is_adapted_is_not_the_base(backend, small, tmp_path):
    """Three computations of the same function. A merge that forgets some update is no such thing: none of one layer,
    none of one expert, not even of those that one token comes to."""
    path, folder, tokens, _ = small
    PeftModel.from_pretrained(reference(path), folder).merge_and_unload().save_pretrained(tmp_path / "merged")
    merged, adapted = (both_ways(at, tokens, backend, adapter=lora)[0] for at, lora in
                       ((tmp_path / "merged", None), (path, folder)))
    assert np.abs(merged - adapted).max() < 2 * TOLERANCE[backend]
    assert np.abs(both_ways(path, tokens, backend)[0] - adapted).max() > 0.1

    model, chosen = gptoss.load(path, backend=backend, adapter=folder), []
    plain, route = list(model.layers), model.operations.route
    model.operations.route = lambda *args: chosen.append(result := route(*args)) or result
    assert np.array_equal(model(tokens), adapted)
    model.operations.route = route
    for i, layer in enumerate(plain):
        used = np.unique(chosen[i][0])
        assert len(used) > SMALL.num_experts_per_tok
        for field in "q_weight", "k_weight", "v_weight", "o_weight", "gate_up", "down":
            weight = getattr(layer, field)
            for e in used if field in ("gate_up", "down") else [slice(None)]:
                B = weight.B.copy()
                B[e] = 0
                model.layers[i] = layer._replace(**{field: weight._replace(B=B)})
                assert np.abs(model(tokens) - merged).max() > 2 * TOLERANCE[backend], (i, field, e)
        model.layers[i] = layer


@pytest.mark.parametrize("backend", TOLERANCE)
def test_an_update_of_zeros_changes_nothing(backend, small, tmp_path):
    """In NumPy to the last bit. The kernels take adapted experts one after the other, and so sum in another order."""
    path, folder, tokens, _ = small
    tensors = load_file(folder / "adapter_model.safetensors")
    write(tmp_path, folder, {name: 0 * w if "lora_B" in name else w for name, w in tensors.items()})
    base, adapted = (both_ways(path, tokens, backend, adapter=at)[:2] for at in (None, tmp_path))
    for one, other in zip(base, adapted, strict=True):
        assert np.abs(one - other).max() <= (0 if backend == "numpy" else TOLERANCE["numba"])


@pytest.mark.parametrize("backend", TOLERANCE)
def test_generation_goes_back_and_on(backend, small):
    path, folder, tokens, _ = small
    model = gptoss.load(path, backend=backend, adapter=folder)
    cache = model.new_cache()
    ids = list(gptoss.generate(model, tokens, max_tokens=9, temperature=0, stop=(), cache=cache))
    cache.rewind(len(tokens) - 7)
    assert list(gptoss.generate(model, tokens[-7:], max_tokens=9, temperature=0, stop=(), cache=cache)) == ids


# ---- As other programs write it -------------------------------------------------------------------------------------

def write(folder, like, tensors=None, **config):
    """An adapter like another one, with some of it changed."""
    folder.mkdir(exist_ok=True)
    tensors = load_file(like / "adapter_model.safetensors") if tensors is None else tensors
    save_file({name: np.ascontiguousarray(w) for name, w in tensors.items()}, folder / "adapter_model.safetensors")
    said = json.loads((like / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(said))


def renamed(*changes):
    def change(name):
        for old, new in changes:
            name = name.replace(old, new)
        return name

    return lambda tensors: {change(name): weight for name, weight in tensors.items()}


def swap_nesting(tensors):
    """The experts' other weight inside, as it is where `down` was wrapped first."""
    names = {name: name.replace("experts.base_layer", "experts") if "base_layer" in name
             else name.replace("mlp.experts", "mlp.experts.base_layer") for name in tensors}
    return {names[name]: weight for name, weight in tensors.items()}


def one_by_one(tensors):
    """Each expert's matrices by themselves, as Unsloth has them for experts in four bits of bitsandbytes' kind."""
    found, E = {}, SMALL.num_local_experts
    for name, weight in tensors.items():
        if "mlp.experts" not in name:
            found[name] = weight
            continue
        inner = "gate_up_projs" if "base_layer" in name else "down_projs"
        for e in range(E):
            part = weight.reshape(E, -1, weight.shape[1])[e] if "lora_A" in name else weight[:, e::E]
            found[name.replace(".base_layer", "").replace("experts", f"experts.{inner}.{e}")] = part
    return found


WRITTEN = {
    "no prefix": renamed(("base_model.model.", "")),
    "the layers alone": renamed(("base_model.model.model.", "")),
    "the adapter's name": renamed((".weight", ".default.weight")),
    "compiled": renamed(("base_model.model.", "base_model.model._orig_mod.")),
    "each layer compiled": renamed((".self_attn", "._orig_mod.self_attn"), (".mlp", "._orig_mod.mlp")),
    "sharded": renamed(("model.layers", "_fsdp_wrapped_module.model.layers"), (".mlp", "._fsdp_wrapped_module.mlp")),
    "in parallel": renamed(("base_model.model.", "module.base_model.model.")),
    "the other nesting": swap_nesting,
    "expert by expert": one_by_one,
}


@pytest.mark.parametrize("how", WRITTEN)
def test_other_programs_names(how, small, tmp_path):
    path, folder, tokens, _ = small
    tensors = load_file(folder / "adapter_model.safetensors")
    changed = WRITTEN[how](tensors)
    assert any(tensors.get(name) is not weight for name, weight in changed.items())
    write(tmp_path, folder, changed)
    ours, theirs = (gptoss.load(path, backend="numpy", adapter=at)(tokens) for at in (folder, tmp_path))
    assert np.array_equal(ours, theirs)


def test_an_expert_that_is_not_there_stays_as_it_is(small, tmp_path):
    path, folder, tokens, _ = small
    tensors = load_file(folder / "adapter_model.safetensors")
    zeroed = {name: w.copy() for name, w in tensors.items()}
    for name, w in zeroed.items():
        if "mlp.experts" in name and "lora_B" in name:
            w[:, 2 :: SMALL.num_local_experts] = 0
    write(tmp_path / "zeroed", folder, zeroed)
    write(tmp_path / "fewer", folder, {name: w for name, w in one_by_one(tensors).items() if "projs.2." not in name})
    ours, theirs = (gptoss.load(path, backend="numpy", adapter=tmp_path / at)(tokens) for at in ("zeroed", "fewer"))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("lora", [{"target_parameters": [UP, DOWN]}, {"target_parameters": [UP]}])
def test_inputs_taken_for_outputs(lora, small, tmp_path):
    """As peft 0.19 and later do it on experts of transformers before 5, which do not say how they lie."""
    path, _, tokens, _ = small
    model = reference(path)
    kind = type(model.model.layers[0].mlp.experts)
    for layer in model.model.layers:
        layer.mlp.experts.is_transposed = False
    model = trained(model, tmp_path, **lora)
    for module in model.modules():
        if isinstance(module, kind):
            module.is_transposed = True
    rows = load_file(tmp_path / "adapter_model.safetensors")[
        ROOTS + "0.mlp.experts." + "base_layer." * (len(lora["target_parameters"]) - 1) + "lora_B.weight"].shape[0]
    assert rows == SMALL.hidden_size  # and not 2 F
    assert_computes(path, tmp_path, tokens, logits_of(model, tokens))


@pytest.mark.parametrize("form", ["float16", "bfloat16"])
def test_an_adapter_in_sixteen_bits(form, small, tmp_path):
    """The same as in float32 with the same numbers."""
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    path, folder, tokens, _ = small
    tensors = {name: w.to(getattr(torch, form)) for name, w in load(folder / "adapter_model.safetensors").items()}
    write(tmp_path, folder, {name: w.float().numpy() for name, w in tensors.items()})
    expected = gptoss.load(path, backend="numpy", adapter=tmp_path)(tokens)
    save(tensors, tmp_path / "adapter_model.safetensors")
    assert np.array_equal(gptoss.load(path, backend="numpy", adapter=tmp_path)(tokens), expected)


# ---- What is refused ------------------------------------------------------------------------------------------------

Q, K_A = ROOTS + "0.self_attn.q_proj.lora_", ROOTS + "0.self_attn.k_proj.lora_A.weight"
CONFIGS = [  # what adapter_config.json says, and the answer
    ({"peft_type": "IA3"}, "peft_type: expected 'LORA', found 'IA3'"),
    ({"peft_type": None}, "peft_type: expected 'LORA', found None"),
    ({"use_dora": True}, "use_dora: expected nothing: it changes what is computed"),
    ({"bias": "lora_only"}, "bias: expected 'none', found 'lora_only'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save: expected nothing"),
    ({"lora_bias": True}, "lora_bias: expected nothing"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out: expected nothing"),
    ({"trainable_token_indices": [5]}, "trainable_token_indices: expected nothing"),
    ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens: expected nothing"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication: expected nothing"),
    ({"use_qalora": True}, "use_qalora: expected nothing"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora: expected nothing"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config: expected nothing"),
    ({"kasa_config": {"beta": 1}}, "kasa_config: expected nothing"),
    ({"monteclora_config": {"n": 1}}, "monteclora_config: expected nothing"),
    ({"megatron_config": {"tp": 2}}, "megatron_config: expected nothing"),
    ({"something_of_2030": 1}, "something_of_2030: expected nothing"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: expected a beginning that leaves the model's own"),
    ({"init_lora_weights": "olora"}, "init_lora_weights: expected"),
    ({"r": 6}, "expected lora_A [42, 96] and lora_B [128, 42] or lora_A [42, 64] and lora_B [96, 42], found [35, "),
    ({"r": 0}, "r: expected an integer from 1 to"),
    ({"r": None}, "r: expected an integer from 1 to"),
    ({"lora_alpha": "11"}, "lora_alpha: expected a number from"),
    ({"lora_alpha": float("nan")}, "lora_alpha: expected a number from"),
    ({"use_rslora": "no"}, "use_rslora: expected true or false, found 'no'"),
    ({"rank_pattern": {"q_proj": 4}}, "expected lora_A [4, 96] and lora_B [60, 4], found [5, 96] and [60, 5]"),
    ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern: q_proj: expected an integer"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern: expected an object"),
    ({"alpha_pattern": {"(": 4}}, "alpha_pattern: expected regular expressions (missing )"),
]


def zeros(*shape):
    return np.zeros(shape, np.float32)


def nan(tensors):
    weight = tensors[Q + "B.weight"].copy()
    weight[3, 2] = np.nan
    return {Q + "B.weight": weight}


TENSORS = [  # tensors that take the place of others (None: gone), and the answer
    ({ROOTS + "0.mlp.router.bias": zeros(7)}, "0.mlp.router.bias: expected lora_A and lora_B of q_proj, k_proj"),
    ({Q + "magnitude_vector": zeros(60)}, "lora_magnitude_vector: expected lora_A and lora_B of"),
    ({Q + "B.bias": zeros(60)}, "q_proj.lora_B.bias: expected lora_A and lora_B of"),
    ({"base_model.model.lm_head.lora_A.weight": zeros(5, 96)}, "lm_head.lora_A.weight: expected lora_A and lora_B of"),
    ({"base_model.model.lm_head.weight": zeros(211, 96)}, "lm_head.weight: expected lora_A and lora_B of"),
    ({"base_model.model.model.embed_tokens.lora_embedding_A": zeros(5, 211)}, "lora_embedding_A: expected lora_A and"),
    ({"base_model.model.model.norm.weight": zeros(96)}, "model.norm.weight: expected lora_A and lora_B of"),
    ({ROOTS + "1.input_layernorm.weight": zeros(96)}, "input_layernorm.weight: expected lora_A and lora_B of"),
    ({ROOTS + "1.self_attn.sinks": zeros(6)}, "self_attn.sinks: expected lora_A and lora_B of"),
    ({ROOTS + "1.mlp.gate_proj.lora_A.weight": zeros(5, 96)}, "mlp.gate_proj.lora_A.weight: expected lora_A and"),
    ({ROOTS + "1.mlp.experts.down_projs.7.lora_A.weight": zeros(5, 64)}, "down_projs.7.lora_A.weight: expected lora_A"),
    ({ROOTS + "3.self_attn.q_proj.lora_A.weight": zeros(5, 96)}, "expected layers 0 to 2, as the model"),
    ({Q + "A.weight": None}, "layers.0.self_attn.q_proj: expected lora_A and lora_B, found one of them"),
    ({Q + "A.weight": zeros(5, 97)}, "expected lora_A [5, 96] and lora_B [60, 5], found [5, 97] and [60, 5]"),
    ({Q + "B.weight": zeros(96, 5)}, "expected lora_A [5, 96] and lora_B [60, 5], found [5, 96] and [96, 5]"),
    ({Q + "A.weight": zeros(0)}, "q_proj.lora_A.weight: expected a matrix of BF16, F16, F32, found F32 [0]"),
    ({Q + "A.weight": np.zeros((5, 96), np.float64)}, "expected a matrix of BF16, F16, F32, found F64 [5, 96]"),
    ({Q + "A.weight": np.zeros((5, 96), np.int8)}, "expected a matrix of BF16, F16, F32, found I8 [5, 96]"),
    ({Q + "A.other.weight": zeros(5, 96)}, "expected each matrix once, found it twice"),
    ({ROOTS + "0.mlp.experts.lora_A.weight": zeros(160, 64)}, "expected lora_A [35, 96] and lora_B [128, 35] or lora_A "
     "[35, 64] and lora_B [96, 35], found [160, 64] and [96, 35]"),  # experts of a larger model
    ({ROOTS + "0.mlp.experts.lora_A.weight": zeros(35, 96), ROOTS + "0.mlp.experts.lora_B.weight": zeros(128, 35)},
     "expected each weight once, gate_up too, found it twice"),
    (nan, "layers.0.self_attn.q_proj: expected finite numbers, found nan or inf"),
    (lambda tensors: dict.fromkeys(tensors), "expected matrices lora_A and lora_B, found none"),
]


def refused(path, folder):
    with pytest.raises(CheckpointError) as error:
        gptoss.load(path, backend="numpy", adapter=folder)
    said = str(error.value)
    assert said.count("expected") == 1 and "\n" not in said
    return said


@pytest.mark.parametrize("config, said", CONFIGS)
def test_configs_that_are_refused(config, said, small, tmp_path):
    write(tmp_path, small[1], **config)
    assert f"adapter_config.json: {said}" in (answer := refused(small[0], tmp_path)) or said in answer


@pytest.mark.parametrize("change, said", TENSORS)
def test_tensors_that_are_refused(change, said, small, tmp_path):
    tensors = load_file(small[1] / "adapter_model.safetensors")
    tensors |= change(tensors) if callable(change) else change
    write(tmp_path, small[1], {name: weight for name, weight in tensors.items() if weight is not None})
    assert said in refused(small[0], tmp_path)


def test_directories_that_are_refused(small, tmp_path):
    path, folder, *_ = small
    assert refused(path, tmp_path / "none").endswith("the directory of an adapter, found no such file")
    assert refused(path, path).endswith("expected an adapter (adapter_config.json), found a checkpoint (config.json)")
    shutil.copytree(folder, tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    assert "expected adapter_model.safetensors, found adapter_model.bin, a pickle" in refused(path, tmp_path / "lora")
    file.with_suffix(".bin").unlink()
    assert "model.safetensors: expected a safetensors file, found no such file" in refused(path, tmp_path / "lora")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "expected a safetensors file, found a git-lfs pointer" in refused(path, tmp_path / "lora")


def test_all_keys_of_peft_are_known_or_refused():
    """A key that a new version of peft brings is looked at before it is called harmless."""
    known = set(LoraConfig.__dataclass_fields__)
    assert {"use_dora", "modules_to_save", "lora_bias"} <= known - adapters.HARMLESS
    assert adapters.HARMLESS - known <= {"peft_version"}


# ---- In the programs ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def nano_lora(tmp_path_factory):
    """An adapter of the small model that makes another one of it, in a directory called `wild`."""
    folder, rng = tmp_path_factory.mktemp("nano") / "wild", np.random.default_rng(0)
    folder.mkdir()
    layer = gptoss.load(ROOT / "nano", backend="numpy").layers[0]
    M, N = layer.q_weight.shape
    save_file({f"{ROOTS}0.self_attn.q_proj.lora_{part}.weight": rng.standard_normal(shape).astype(np.float32)
               for part, shape in (("A", (3, N)), ("B", (M, 3)))}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 300}')
    return folder


def test_a_kept_prompt_is_of_the_model_with_its_adapter(small, tmp_path, monkeypatch):
    """Not of the base, nor of another adapter, though it were the same but for one expert or for its scale."""
    monkeypatch.setattr(engines, "LEAST", 30)
    path, folder, tokens, _ = small
    tensors = load_file(folder / "adapter_model.safetensors")
    name = ROOTS + "1.mlp.experts.lora_B.weight"
    other = tensors[name].copy()
    other[3, 2] += 1  # of expert 2 in the middle, in a row in the middle
    write(tmp_path / "one expert", folder, tensors | {name: other})
    write(tmp_path / "scale", folder, lora_alpha=12)
    replies = []
    for adapter in (None, folder, tmp_path / "one expert", tmp_path / "scale"):
        said = []
        model = gptoss.load(path, backend="numpy", adapter=adapter)
        engine = LocalEngine(model, 1, tmp_path / "kept", said.append)
        assert len(said) == len(replies) and all("model: expected" in text for text in said)
        expected = list(gptoss.generate(model, tokens, max_tokens=5, temperature=0, stop=()))
        replies.append(list(engine.generate(tokens, max_tokens=5, temperature=0, stop=())))
        assert replies[-1] == expected
    assert replies[0] != replies[1]
    again = LocalEngine(gptoss.load(path, backend="numpy", adapter=folder), 1, tmp_path / "kept")
    assert again.files.best(tokens.tolist())[1] == len(tokens)


def run(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


def test_the_programs_take_it(nano_lora, monkeypatch):
    question = "chat.py", "--prompt", "What is 12 + 30?", "--temperature", 0, "--max-tokens", 60
    assert run(*question) == (0, "12 + 30 = 42\n", "")
    code, out, _ = run(*question, "--adapter", nano_lora)
    assert code == 0 and out != "12 + 30 = 42\n"
    monkeypatch.setenv("HOME", str(nano_lora.parent))
    model, _, directory = models.load("nano", print, adapter="~/wild")
    assert isinstance(model.layers[0].q_weight, gptoss.Adapted)
    assert models.label("nano", directory, "~/wild") == "nano+wild"
    assert xray.load("nano", print, "~/wild")[2] == "nano+wild"


def test_another_model_in_the_chat_has_no_adapter(nano_lora):
    screen, said = chat.Screen(), []
    screen.note = said.append
    engine, tokenizer, name = chat.local_engine("nano", screen, adapter=nano_lora)
    talk = chat.Chat(chat.Conversation(models.Meter(engine), tokenizer), name, screen, {"temperature": 1.0})
    talk.adapter = nano_lora
    assert talk.status().startswith("nano+wild   ")
    for note in "model nano without the adapter; the conversation goes on", "model nano; the conversation goes on":
        talk.do_model("nano")
        assert said.pop() == note
    assert not isinstance(talk.meter.engine.model.layers[0].q_weight, gptoss.Adapted)


@pytest.mark.parametrize("program", [["chat.py", "--prompt", "x"], ["serve.py", "--port", 0], ["xray.py", "x"]])
def test_the_programs_refuse_in_one_line(program):
    assert run(*program, "--adapter", ROOT / "nano") == (2, "", f"{program[0]}: {ROOT / 'nano'}: expected an adapter "
                                                         "(adapter_config.json), found a checkpoint (config.json)\n")


def test_a_page_or_a_server_takes_none(capsys):
    for program, arguments, said in (
        (chat, ["--server", "http://localhost:1"], "--adapter: expected a model on this machine, found --server"),
        (xray, ["--page", "x.html"], "--page: expected no --adapter, found one; --html writes the page of a run"),
    ):
        with pytest.raises(SystemExit) as end:
            program.main([*arguments, "--adapter", "x"])
        assert end.value.code == 2 and said in capsys.readouterr().err
