"""python -m bench: the GGUF file holds the same numbers, and the command says what it should. Nothing here is timed,
and llama.cpp is not needed."""

import json
import math
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from conftest import ROOT
from gguf import GGMLQuantizationType, GGUFReader, quants
from shapes import SMALL

import bench.__main__ as program
import gptoss
from bench import gguf_writer, measure
from bench.random_checkpoint import named_config, write_random
from checkpoint import MXFP4, bf16_to_float32, dequantize

Q8 = replace(SMALL, head_dim=32, num_attention_heads=9, num_key_value_heads=1)  # Q 288: rows are whole blocks of 32
DENSE = ("token_embd.weight", "output.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both configurations on disk, in the two layouts."""
    root = tmp_path_factory.mktemp("bench")
    write_random(root / "small", SMALL, seed=3)
    write_random(root / "original", SMALL, "original", seed=3)
    write_random(root / "q8", Q8, seed=4)
    return root


def expected_tensors(model):
    """{name in the GGUF file: float32 array}, from the model's own arrays."""
    tensors = {"token_embd.weight": model.embedding, "output_norm.weight": model.norm,
               "output.weight": model.unembedding}
    for i, layer in enumerate(model.layers):
        gate_up, bias = dequantize(layer.gate_up), layer.gate_up_bias
        found = {
            "attn_norm.weight": layer.attn_norm, "post_attention_norm.weight": layer.mlp_norm,
            "attn_sinks.weight": layer.sinks,
            "attn_q.weight": layer.q_weight, "attn_q.bias": layer.q_bias,
            "attn_k.weight": layer.k_weight, "attn_k.bias": layer.k_bias,
            "attn_v.weight": layer.v_weight, "attn_v.bias": layer.v_bias,
            "attn_output.weight": layer.o_weight, "attn_output.bias": layer.o_bias,
            "ffn_gate_inp.weight": layer.router_weight, "ffn_gate_inp.bias": layer.router_bias,
            "ffn_gate_exps.weight": gate_up[:, 0::2], "ffn_gate_exps.bias": bias[:, 0::2],
            "ffn_up_exps.weight": gate_up[:, 1::2], "ffn_up_exps.bias": bias[:, 1::2],
            "ffn_down_exps.weight": dequantize(layer.down), "ffn_down_exps.bias": layer.down_bias,
        }
        tensors |= {f"blk.{i}.{name}": array for name, array in found.items()}
    return {name: bf16_to_float32(array) for name, array in tensors.items()}


def first_layers(n):
    return replace(SMALL, num_hidden_layers=n, layer_types=SMALL.layer_types[:n])


def read_gguf(path):
    reader = GGUFReader(path)
    return reader, {t.name: (t.tensor_type, quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}


# ---- GGUF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["small", "original"])
def test_gguf_holds_the_same_numbers(layout, written, tmp_path):
    gguf_writer.write_gguf(tmp_path / "a.gguf", written / layout, SMALL, "bfloat16")
    _, found = read_gguf(tmp_path / "a.gguf")
    expected = expected_tensors(gptoss.load(written / layout, backend="numpy"))
    assert found.keys() == expected.keys()
    for name, (kind, array) in found.items():
        assert array.dtype == np.float32 and np.array_equal(array, expected[name]), name
        assert kind.name == ("MXFP4" if "exps.weight" in name else
                             "BF16" if name.endswith(DENSE) else "F32"), name


def test_gguf_of_weights_in_another_form_is_refused(written, tmp_path, monkeypatch):
    model = gptoss.load(written / "small", backend="numpy")
    model.layers[1] = model.layers[1]._replace(down=np.zeros((7, 96, 64), np.float16))
    monkeypatch.setattr(gptoss, "load", lambda *_, **__: model)
    with pytest.raises(ValueError, match="expected weights as published, bf16 and MXFP4, .* found others"):
        gguf_writer.write_gguf(tmp_path / "a.gguf", written / "small", SMALL, "bfloat16")


def test_gguf_with_dense_weights_in_8_bits(written, tmp_path):
    """Equal but for these weights, which are off by no more than half a step of their block."""
    gguf_writer.write_gguf(tmp_path / "a.gguf", written / "q8", Q8, "int8")
    _, found = read_gguf(tmp_path / "a.gguf")
    expected = expected_tensors(gptoss.load(written / "q8", backend="numpy"))
    assert found.keys() == expected.keys()
    for name, (kind, array) in found.items():
        if name.endswith(DENSE):
            assert kind == GGMLQuantizationType.Q8_0
            blocks, true = array.reshape(-1, 32), expected[name].reshape(-1, 32)
            most = np.abs(true).max(axis=1, keepdims=True)
            # half a step; and the scale, rounded to the 11 bits of float16, moves the 127th by 127 / 2^11 of one
            assert (np.abs(blocks - true) <= most / 127 * (0.5 + 127 / 2**11 + 1e-3)).all(), name
        else:
            assert np.array_equal(array, expected[name]), name


def test_every_nibble_and_scale_in_its_place():
    """Of all byte values, infinity and NaN aside: against the dequantizer of the gguf package."""
    rng = np.random.default_rng(0)
    blocks, scales = rng.integers(0, 256, (3, 85, 2, 16), dtype=np.uint8), (np.arange(510) % 253).astype(np.uint8)
    weight = MXFP4(blocks, scales.reshape(3, 85, 2))
    packed = gguf_writer.gguf_mxfp4(weight)
    assert packed.shape == (3, 85, 34) and packed.dtype == np.uint8
    assert np.array_equal(quants.dequantize(packed, GGMLQuantizationType.MXFP4), dequantize(weight))


def test_gguf_keys(written, tmp_path):
    gguf_writer.write_gguf(tmp_path / "a.gguf", written / "small", SMALL, "bfloat16")
    reader, _ = read_gguf(tmp_path / "a.gguf")
    found = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert found == {
        "general.architecture": "gpt-oss", "tokenizer.ggml.model": "none",
        "gpt-oss.vocab_size": 211, "gpt-oss.block_count": 3, "gpt-oss.context_length": 1024,
        "gpt-oss.embedding_length": 96, "gpt-oss.feed_forward_length": 64, "gpt-oss.expert_feed_forward_length": 64,
        "gpt-oss.expert_count": 7, "gpt-oss.expert_used_count": 4,
        "gpt-oss.attention.head_count": 6, "gpt-oss.attention.head_count_kv": 2,
        "gpt-oss.attention.key_length": 10, "gpt-oss.attention.value_length": 10,
        "gpt-oss.attention.sliding_window": 5, "gpt-oss.attention.sliding_window_pattern": [True, False, True],
        "gpt-oss.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "gpt-oss.rope.freq_base": 150000.0, "gpt-oss.rope.scaling.type": "yarn", "gpt-oss.rope.scaling.factor": 32.0,
        "gpt-oss.rope.scaling.original_context_length": 4096}


def test_gguf_of_the_first_layers(written, tmp_path):
    first = first_layers(2)
    gguf_writer.write_gguf(tmp_path / "a.gguf", written / "small", first, "bfloat16")
    reader, found = read_gguf(tmp_path / "a.gguf")
    assert reader.fields["gpt-oss.block_count"].contents() == 2
    assert "blk.1.attn_q.weight" in found and "blk.2.attn_q.weight" not in found


def test_gguf_refused(written, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="swiglu_limit: expected 7, .* found 3"):
        gguf_writer.write_gguf(tmp_path / "a.gguf", written / "small", replace(SMALL, swiglu_limit=3.0), "bfloat16")
    with pytest.raises(ValueError, match=r"60.*32"):  # Q 60 is no multiple of a block
        gguf_writer.write_gguf(tmp_path / "a.gguf", written / "small", SMALL, "int8")
    monkeypatch.setattr(gguf_writer.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match="expected room for .* GB, found 0.0 GB"):
        gguf_writer.write_gguf(tmp_path / "a.gguf", written / "small", SMALL, "bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_gguf_interrupted_leaves_nothing(written, tmp_path, monkeypatch):
    def interrupted(weight):
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_writer, "gguf_mxfp4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gguf_writer.write_gguf(tmp_path / "a.gguf", written / "small", SMALL, "bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_gguf_is_made_once_and_again_when_the_weights_are_younger(written, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(measure, "apart", lambda function, path, *rest: made.append(path) or path.touch())
    directory = tmp_path / "some.model"
    write_random(directory, SMALL)
    assert measure.gguf_of(directory, SMALL, "bfloat16") == tmp_path / "some.model-bf16.gguf"
    measure.gguf_of(directory, SMALL, "bfloat16")
    assert len(made) == 1
    (directory / "config.json").touch()
    measure.gguf_of(directory, SMALL, "bfloat16")
    assert measure.gguf_of(directory, SMALL, "int8").name == "some.model-q8_0.gguf" and len(made) == 3


# ---- The same function ----------------------------------------------------------------------------------------------


def rounded_as_llama_cpp(x):
    """Q8 activations: blocks of 32, steps of max / 127."""
    blocks = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    return (np.rint(blocks / np.where(step == 0, 1, step)) * step).reshape(len(x), -1)[:, : x.shape[1]]


def test_the_bound_lets_rounding_pass_and_nothing_else(tmp_path, monkeypatch):
    """llama.cpp's rounding, imitated in every product, is within the bound; weights in a wrong order are far off."""
    config = replace(named_config("20b", 2), vocab_size=1001, eos_token_id=(1000,), hidden_size=192,
                     intermediate_size=160, num_attention_heads=12, num_key_value_heads=2, num_local_experts=8)
    write_random(tmp_path, config)
    ids, swiglu = np.random.default_rng(0).integers(0, 1001, 150), gptoss.swiglu

    def logits(change=lambda layer: {}, rounded=lambda x: x):
        monkeypatch.setattr(gptoss, "swiglu", lambda *arguments: rounded(swiglu(*arguments)))
        model = gptoss.load(tmp_path, backend=SimpleNamespace(
            linear=lambda x, *rest: gptoss.linear(rounded(x), *rest),
            experts=lambda x, *rest: gptoss.experts(rounded(x), *rest)))
        model.layers = [layer._replace(**change(layer)) for layer in model.layers]
        return model(ids)[128:]

    def swap_nibbles(layer):
        return {"down": layer.down._replace(blocks=layer.down.blocks << 4 | layer.down.blocks >> 4)}

    def swap_gate_and_up(layer):
        order = np.arange(2 * config.intermediate_size).reshape(-1, 2)[:, ::-1].ravel()
        return {"gate_up": MXFP4(layer.gate_up.blocks[:, order], layer.gate_up.scales[:, order])}

    def no_sinks(layer):
        return {"sinks": np.full_like(layer.sinks, -100)}

    true = logits()
    assert 0.001 < measure.difference(true, logits(rounded=rounded_as_llama_cpp)) < measure.AGREE
    for change, least in ((swap_nibbles, 0.5), (swap_gate_and_up, 0.5), (no_sinks, 2 * measure.AGREE)):
        assert measure.difference(true, logits(change)) > least, change.__name__


def test_the_first_layers_run_as_a_model_of_their_own(written, tmp_path):
    """A seed gives the same first layers, so a checkpoint of two layers is the first two of three. The bounds of YaRN
    are those of the configuration that is given, not of the file."""
    rounded = replace(first_layers(2), rope_scaling=SMALL.rope_scaling | {"truncate": True})
    write_random(tmp_path, rounded, seed=3)
    ids, threads = np.arange(30), numba.get_num_threads()
    try:
        for config, path in (rounded, tmp_path), (SMALL, written / "small"):
            _, run = measure.gptoss_py(written / "small", config, 1, 40, "bfloat16")
            model = gptoss.load(path)
            cache = model.new_cache()
            for piece, fresh in (ids, True), (ids[5:6], False):
                assert np.array_equal(run(piece, fresh), model(piece, cache, logits_to_keep=1)[-1])
            assert np.array_equal(run(ids[:9], True), model(ids[:9], model.new_cache(), logits_to_keep=1)[-1])
    finally:
        numba.set_num_threads(threads)


def test_another_function_is_refused(written, monkeypatch):
    def apart(function, *arguments):
        if function is measure.measure:
            return {}, np.random.default_rng(len(str(arguments))).standard_normal((21, 211))

    monkeypatch.setattr(measure, "apart", apart)
    with pytest.raises(ValueError, match=r"logits of llama.cpp .*: expected those of gptoss.py .*, found \d+\.\d%"):
        measure.check_same_function(written / "small", SMALL, "bfloat16", ["llama.cpp"], 1)


# ---- Work of a token ------------------------------------------------------------------------------------------------


def test_work_of_a_token():
    """Counted by hand for SMALL: 3 layers; N 96, F 64, Q 60, KV 20, E 7, K 4, V 211, W 5; G 2, D 10, H 6."""
    flop, read = measure.work_of_a_token(SMALL, 2, 17 / 32, 10, [4, 20])
    attention, router = 96 * (60 + 20 + 20) + 60 * 96, 96 * 7
    experts = 4 * (2 * 64 * 96 + 64 * 96)
    seen = 2 * np.mean(np.minimum(np.arange(1, 11), 5)) + np.mean(np.arange(1, 11))  # two layers slide
    assert flop == pytest.approx(2 * 3 * (attention + router + experts) + 4 * 60 * seen)
    biases = 60 + 20 + 20 + 96 + 7 + 4 * (2 * 64 + 96)
    layer = 2 * (attention + router) + 4 * (biases + 96 + 96 + 6) + experts * 17 / 32
    weights = 3 * layer + 2 * 211 * 96 + 4 * 96
    cached = 2 * 2 * 2 * 10
    assert read == pytest.approx([weights + cached * (3 * 4), weights + cached * (2 * 5 + 20)])
    _, [eight] = measure.work_of_a_token(SMALL, 1.125, 17 / 32, 10, [4])
    assert eight == pytest.approx(read[0] - 0.875 * (3 * attention + 211 * 96))
    _, [unpacked] = measure.work_of_a_token(SMALL, 2, 2, 10, [4])
    assert unpacked == pytest.approx(read[0] + (2 - 17 / 32) * 3 * experts)


# ---- The command ----------------------------------------------------------------------------------------------------


def command(*args):
    return subprocess.run([sys.executable, "-m", "bench", *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          timeout=100)


def test_command_prints_json():
    done = command("--json", "--prompt", 40, "--depth", 9, 3, "--tokens", 2, "--rounds", 1, "--threads", 1)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"machine", "threads", "checkpoint", "dense_dtype", "file_bytes", "rounds", "limits",
                            "programs"}
    assert (found["checkpoint"], found["threads"], found["rounds"]) == ("nano", 1, 1)
    assert found["file_bytes"] == (ROOT / "nano" / "model.safetensors").stat().st_size
    assert found["limits"].keys() == {"matmul_flop_per_second", "bytes_per_second"}
    assert found["programs"].keys() == {"gptoss.py"}
    figures = found["programs"]["gptoss.py"]
    assert figures.keys() == {"load_seconds", "first_token_seconds", "prefill", "decode", "peak_resident_bytes",
                              "own_bytes"}
    assert figures["prefill"].keys() == {"tokens", "tokens_per_second", "flop_per_token", "share_of_limit"}
    assert [decode["depth"] for decode in figures["decode"]] == [3, 9] and figures["prefill"]["tokens"] == 40
    for decode in figures["decode"]:
        assert decode.keys() == {"depth", "tokens_per_second", "bytes_per_token", "share_of_limit"}
        assert all(math.isfinite(value) and value > 0 for value in decode.values())
    assert 0 < figures["own_bytes"] < figures["peak_resident_bytes"]


def test_report(capsys):
    """Every figure at its place, of both programs."""
    def figures(rate):
        return {"load_seconds": rate / 8, "first_token_seconds": rate / 4,
                "prefill": {"tokens": 512, "tokens_per_second": rate, "flop_per_token": 6e9, "share_of_limit": 0.5},
                "decode": [{"depth": 128, "tokens_per_second": rate / 2, "bytes_per_token": 3e9,
                            "share_of_limit": 0.25}],
                "peak_resident_bytes": 14e9, "own_bytes": 1.5e9}

    measure.report({
        "machine": "a machine", "threads": 2, "checkpoint": "x", "dense_dtype": "int8", "file_bytes": 13.8e9,
        "rounds": 3, "limits": {"matmul_flop_per_second": 2e11, "bytes_per_second": 3e10},
        "programs": {"gptoss.py": figures(20), "llama.cpp": figures(8) | {
            "logits_difference": {"first_layers": 0.011, "all_layers": 0.27}}}})
    assert capsys.readouterr().out.splitlines() == [
        "a machine",
        "limits       30.0 GB/s of memory, 200 GFLOP/s of float32 matrix products; 2 threads, medians of 3 rounds",
        "checkpoint   x, 13.8 GB, dense weights int8; a token takes 3 GB, 6 GFLOP",
        "",
        "                                gptoss.py                  llama.cpp",
        "load                           2.50 s                     1.00 s",
        "first token, with imports      5.00 s                     2.00 s",
        "prefill 512 tokens            20.00 tokens/s   50%        8.00 tokens/s   50%",
        "decode after 128 tokens       10.00 tokens/s   25%        4.00 tokens/s   25%",
        "peak memory, with the file    14.00 GB                   14.00 GB",
        "memory without the file        1.50 GB                    1.50 GB",
        "",
        "gptoss.py / llama.cpp: 2.50 x in prefill, 2.50 x in decode after 128",
        "logits apart by 1.1% in the first two layers, by 27.0% in all",
    ]


@pytest.mark.parametrize(("args", "said"), [
    (["--checkpoint", "nowhere"], "nowhere: expected a checkpoint directory, found no such directory"),
    (["--shape", "20b", "--layers", "25"], "layers: expected 1 to 24, found 25"),
    (["--layers", "2"], "--layers: expected with --shape, found alone"),
    (["--threads", "0"], "expected an integer of at least 1, found '0'"),
    (["--depth", "-5"], "--depth"),
    (["--prompt", "5000"], "nano: expected at most 4096 tokens, the context, found 5000"),
    (["--threads", "9999"], "--threads: expected at most"),
    (["--compare", "vllm"], "invalid choice: 'vllm'"),
])
def test_command_refuses(args, said):
    done = command(*args)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == ""
    assert said in done.stderr.splitlines()[-1] and done.stderr.splitlines()[-1].startswith("python -m bench: ")


def refused(monkeypatch, capsys, *args):
    """What the command says on standard error, run in this process with exit status 2."""
    monkeypatch.setattr(sys, "argv", ["bench", *args])
    with pytest.raises(SystemExit) as caught:
        program.main()
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("missing", ["llama_cpp", "gguf"])
def test_compare_without_the_other_program(missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(__spec__=True))
    monkeypatch.setitem(sys.modules, missing, None)
    assert refused(monkeypatch, capsys, "--compare", "llama.cpp") == f"python -m bench: {program.INSTALL}\n"


def test_a_process_that_dies_is_one_sentence(monkeypatch, capsys):
    def apart(*arguments):
        raise BrokenProcessPool("a child process terminated abruptly")

    monkeypatch.setattr(measure, "apart", apart)
    said = refused(monkeypatch, capsys).splitlines()
    assert said[-1] == "python -m bench: a measuring process ended before its time (out of memory?)"
