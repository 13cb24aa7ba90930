"""train/pack.py: MXFP4 of a fine-tuned checkpoint, right to the last bit, whole or resumed, or one sentence."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from shapes import SMALL
from transformers import GptOssConfig, GptOssForCausalLM, Mxfp4Config

import gptoss
from bench.random_checkpoint import bytes_of, config_json, write_random, write_safetensors
from checkpoint import MXFP4, Checkpoint, CheckpointError, bf16_to_float32, dequantize
from train import pack

NANO = ROOT / "nano"
IDS = list(range(3, 60, 3))
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
BLOCKS, SCALES = "_blocks", "_scales"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(path, dtype="BF16", config=SMALL):
    """A checkpoint with random weights in `dtype`, as transformers saves it."""
    fields = config_json(config, "hf")
    del fields["quantization_config"], fields["architectures"]
    torch.manual_seed(5)
    model = GptOssForCausalLM(GptOssConfig(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5)
    model.to(DTYPES[dtype]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint in each format, which tests only read."""
    root = tmp_path_factory.mktemp("trained")
    return {dtype: random_model(root / dtype, dtype) for dtype in DTYPES}


def tensors(path):
    """{name: (dtype, shape, bytes)} of a checkpoint."""
    return {name: (dtype, shape, data.tobytes()) for name, (_, dtype, shape, data) in Checkpoint(path).tensors.items()}


def rewrite(path, changed):
    """Replaces the tensors of the checkpoint in one file at `path` by {name: (dtype, shape, bytes)}."""
    described = {name: (dtype, shape) for name, (dtype, shape, _) in changed.items()}
    write_safetensors(path / "model.safetensors", described, [data for *_, data in changed.values()])


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def weight(path, name):
    """Experts [E, M, N] in float32, from either form."""
    stored = Checkpoint(path)
    if name in stored.tensors:
        return bf16_to_float32(stored.view(name, "BF16", stored.tensors[name][2])).swapaxes(1, 2)
    return dequantize(MXFP4(*(stored.view(name + part, "U8", stored.tensors[name + part][2])
                              for part in (BLOCKS, SCALES))))


def experts(config=SMALL, layers=None):
    return [f"model.layers.{i}.mlp.experts.{which}_proj" for which in ("gate_up", "down")
            for i in layers or range(config.num_hidden_layers)]


def their_logits(path):
    model = GptOssForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor(IDS)[None]).logits[0].numpy()


# ---- What comes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_packed_model_is_what_transformers_computes(dtype, trained, tmp_path):
    """Float32 on both sides, as in test_against_transformers.py. Packing is no small change: it can be told."""
    pack.pack(trained[dtype], tmp_path)
    expected, before = their_logits(tmp_path), their_logits(trained[dtype])
    ours = gptoss.load(tmp_path, backend="numpy")(IDS)
    assert np.abs(ours - expected).max() < 2e-5 * np.abs(expected).max()
    assert 0.01 < np.abs(expected - before).max() / np.abs(before).max() < 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_but_the_experts_stays_bit_for_bit(dtype, trained, tmp_path):
    pack.pack(trained[dtype], tmp_path)
    before, after = tensors(trained[dtype]), tensors(tmp_path)
    for name in experts():
        found, shape, _ = before.pop(name)
        assert found == dtype
        E, N, M = shape
        assert after.pop(name + BLOCKS)[:2] == ("U8", (E, M, N // 32, 16))
        assert after.pop(name + SCALES)[:2] == ("U8", (E, M, N // 32))
    assert after == before and len(after) == 3 + 15 * SMALL.num_hidden_layers


def test_the_config_says_that_experts_are_packed_and_texts_come_along(trained, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    shutil.copytree(trained["BF16"], source)
    texts = {"tokenizer.json": "{}", "tokenizer_config.json": "[1]", "chat_template.jinja": "{{ x }}", "LICENSE": "x"}
    for name, text in texts.items():
        (source / name).write_text(text)
    for name in ("optimizer.pt", "training_args.bin", ".hidden"):
        (source / name).write_text("a training's own")
    pack.pack(source, target)
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, target))
    assert after.pop("quantization_config") == json.loads((NANO / "config.json").read_text())["quantization_config"]
    assert after == before
    assert {name: (target / name).read_text() for name in texts} == texts
    weights = {"config.json", "generation_config.json", "model.safetensors"}
    assert {path.name for path in target.iterdir()} == weights | set(texts)


def dequantized(packed, path):
    """`packed` as transformers unpacks it and saves it again."""
    model = GptOssForCausalLM.from_pretrained(packed, quantization_config=Mxfp4Config(dequantize=True),
                                              dtype=torch.bfloat16)
    model.save_pretrained(path)
    assert "quantization_config" not in json.loads((path / "config.json").read_text())


@pytest.mark.parametrize("which", ["random", "nano"])
def test_what_was_unpacked_is_packed_without_error(which, tmp_path):
    """To the bit, with the signs of zeros. (The bytes may differ: 0.5, 1 and 1.5 are also 1, 2 and 3 times half.)"""
    packed, unpacked, again = NANO, tmp_path / "unpacked", tmp_path / "again"
    if which == "random":
        packed = tmp_path / "packed"
        write_random(packed, SMALL, seed=3)
    dequantized(packed, unpacked)
    errors = pack.pack(unpacked, again)
    names = experts(gptoss.load(packed, backend="numpy").config)
    assert sorted(errors) == sorted(names)
    for name in names:
        before = weight(packed, name)
        assert np.array_equal(weight(again, name).view(np.uint32), before.view(np.uint32))
        squared, _, blocks, exact, largest = errors[name]
        assert squared == largest == 0 and blocks == exact == before.size / 32


def test_what_is_packed_already_is_copied(trained, tmp_path):
    """Layer 1 stays packed in IN, with bytes that packing anew would not give."""
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(trained["BF16"], source)
    write_random(tmp_path / "packed", SMALL, seed=8)
    mixed, packed = tensors(source), tensors(tmp_path / "packed")
    for name in experts(layers=[1]):
        del mixed[name]
        for part in BLOCKS, SCALES:
            mixed[name + part] = packed[name + part]
    rewrite(source, mixed)
    errors = pack.pack(source, out)
    assert sorted(errors) == sorted(experts(layers=[0, 2]))
    found = tensors(out)
    assert all(found[name + part] == packed[name + part] for name in experts(layers=[1]) for part in (BLOCKS, SCALES))
    assert np.allclose(gptoss.load(out, backend="numpy")(IDS), their_logits(out), atol=2e-4)
    assert [line.split()[0] for line in pack.table(errors).splitlines()[2:]] == ["0", "2", "all"]


def test_a_packed_checkpoint_is_copied_whole(tmp_path):
    assert pack.table(pack.pack(NANO, tmp_path)) == "The experts were packed already: nothing was changed."
    assert tensors(tmp_path) == tensors(NANO)
    assert (tmp_path / "tokenizer.json").read_bytes() == (NANO / "tokenizer.json").read_bytes()


def test_shards_are_not_larger_than_asked(trained, tmp_path, monkeypatch):
    pack.pack(trained["F32"], tmp_path / "one")
    monkeypatch.setattr(pack, "SHARD", 100_000)
    pack.pack(trained["F32"], tmp_path / "many")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert one == many and set(index["weight_map"]) == set(one)
    assert index["metadata"]["total_size"] == sum(len(data) for *_, data in one.values())
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert [file.name for file in shards] == [f"model-{j:05}-of-{len(shards):05}.safetensors"
                                              for j in range(1, len(shards) + 1)] and len(shards) > 3
    largest = max(len(data) for *_, data in one.values())
    for file in shards:  # 5,000: the header
        assert file.stat().st_size < max(100_000, largest * 17 / 16) + 5_000
    assert np.array_equal(*(gptoss.load(tmp_path / name, backend="numpy")(IDS) for name in ("one", "many")))


def test_the_table_says_the_error(trained, tmp_path, monkeypatch):
    """Against whole matrices in plain NumPy; some blocks of the source are exact. Slabs of one block are added up."""
    monkeypatch.setattr(pack, "SLAB", 1)
    source = tmp_path / "in"
    shutil.copytree(trained["F16"], source)
    stored = tensors(source)
    name = experts(layers=[2])[0]
    dtype, shape, data = stored[name]
    values = np.frombuffer(data, np.float16).reshape(shape).copy()
    values[3, :64] = 0.25  # two blocks of each of 2F columns
    rewrite(source, stored | {name: (dtype, shape, values.tobytes())})
    errors = pack.pack(source, tmp_path / "out")
    lines = pack.table(errors).splitlines()[2:]
    total = np.zeros((2, 3))
    for i in range(3):
        row, exact, blocks, largest = [], 0, 0, 0
        for j, which in enumerate(("gate_up", "down")):
            name = f"model.layers.{i}.mlp.experts.{which}_proj"
            x = weight(source, name).astype(np.float64)
            error = weight(tmp_path / "out", name) - x
            row.append(f"{np.sqrt((error**2).mean() / (x**2).mean()):.3%}")
            exact += int((error.reshape(-1, 32) == 0).all(1).sum())
            blocks, largest = blocks + x.size // 32, max(largest, np.abs(error).max())
            total[j] += (error**2).sum(), (x**2).sum(), 0
        assert lines[i].split() == [str(i), *row, f"{exact:,}", "of", f"{blocks:,}", f"{largest:.3g}"]
        assert exact == (2 * 2 * SMALL.intermediate_size if i == 2 else 0)
    assert lines[3].split()[:3] == ["all", *(f"{np.sqrt(a / b):.3%}" for a, b, _ in total)]


# ---- Whole or resumed -----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from train import pack

left = int(sys.argv.pop(1))

def event(name="slab"):
    global left
    if name in ("slab", "os.rename", "os.remove", "shutil.copyfile"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

quantize = pack.quantize_mxfp4
pack.quantize_mxfp4 = lambda weights: event() or quantize(weights)
sys.addaudithook(lambda name, args: event(name))
pack.SHARD, pack.SLAB = 100_000, 2000
pack.main()
"""


def test_killed_at_any_moment_it_goes_on(trained, tmp_path):
    """The process kills itself before its n-th slab, renaming, copying or deleting, again and again."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(target, moment):
        return subprocess.run([sys.executable, "-c", KILLED, str(moment), trained["BF16"], target], env=env,
                              capture_output=True, text=True, timeout=100)
    whole = run(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    rng, runs, kept = random.Random(4), 0, {}
    target = tmp_path / "killed"
    while (done := run(target, rng.randint(1, 60))).returncode:
        assert done.returncode == -9 and done.stdout == "", done.stderr
        runs += 1
        left = files(target) if target.exists() else {}
        if "config.json" in left:  # then only the record was still there
            assert left.pop("unfinished.json") and left == files(tmp_path / "whole")
        elif left:
            with pytest.raises(CheckpointError, match="config.json: expected a file, found no such file"):
                gptoss.load(target, backend="numpy")
        now = {path.name: path.stat().st_mtime_ns for path in target.glob("*.safetensors")}
        recorded = json.loads((target / "unfinished.json").read_text())["files"] if now else {}
        assert all(now[name] == kept[name] for name in kept)  # what was whole is not written again
        kept = {name: now[name] for name in recorded}
    assert runs > 3 and kept
    assert files(target) == files(tmp_path / "whole") and done.stdout == whole.stdout


GROWTH = """
import re, sys
from train import pack

def most():  # (getrusage would count what the process had before it was this program)
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

pack.pack(*sys.argv[1:3])
before = most()
pack.pack(*sys.argv[3:5])
print(most() - before)
"""


def test_memory_is_that_of_a_part(trained, tmp_path):
    """36 MB in float32 is the largest matrix here, 50 MB are the embeddings, 85 MB the file; 16 MB is one piece."""
    config = replace(SMALL, vocab_size=50000, hidden_size=256, intermediate_size=544, num_local_experts=32,
                     num_hidden_layers=1, layer_types=SMALL.layer_types[:1])
    random_model(tmp_path / "in", config=config)
    command = [sys.executable, "-c", GROWTH, trained["BF16"], tmp_path / "small", tmp_path / "in", tmp_path / "out"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=100,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32e6


def test_a_changed_source_is_not_mixed_with_what_was_packed_before(trained, tmp_path, monkeypatch):
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(trained["BF16"], source)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pack, "write_index", lambda *args: None)
        patch.setattr(pack, "texts", interrupt)
        pack.pack(source, out)
    os.utime(source / "model.safetensors")
    before = files(out)
    with pytest.raises(CheckpointError, match="when it was interrupted, found what packing another checkpoint left"):
        pack.pack(source, out)
    assert files(out) == before


def interrupt(*args, **named):
    raise KeyboardInterrupt


def test_interrupted_by_a_person_it_ends_quietly(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "pack", interrupt)
    monkeypatch.setattr(sys, "argv", ["pack", "in", "out"])
    with pytest.raises(SystemExit) as caught:
        pack.main()
    assert caught.value.code == 130 and capsys.readouterr() == ("", "")


# ---- What is refused ------------------------------------------------------------------------------------------------


def spoilt(value, dtype="BF16"):
    """Makes a source in which one weight of layer 1's down_proj has these bytes."""
    def make(source):
        random_model(source, dtype)
        stored, name = tensors(source), experts(layers=[1])[1]
        _, shape, data = stored[name]
        rewrite(source, stored | {name: (dtype, shape, data[:1000] + value + data[1000 + len(value):])})
    return make


def both_forms(source):
    random_model(source)
    stored, name = tensors(source), experts(layers=[1])[0]
    rewrite(source, stored | {name + BLOCKS: ("U8", (5,), bytes(5))})


def another_layer(source):
    random_model(source)
    rewrite(source, tensors(source) | {experts(layers=[7])[0]: ("I16", (5,), bytes(10))})


def adapter(source):
    source.mkdir()
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    write_safetensors(source / "adapter_model.safetensors", {"base_model.x.lora_A.weight": ("F32", (1,))}, [bytes(4)])


NAN, INF = np.float32([np.nan, np.inf])
REFUSED = {
    "no such directory": (lambda source: None, "in: expected a checkpoint directory"),
    "an adapter": (adapter, "in"),
    "a GGUF": (lambda source: source.write_bytes(b"GGUF" + bytes(100)), "in"),
    "original/": (lambda source: write_random(source, SMALL, "original"),
                  "in: expected the Hugging Face layout, found original/, which is packed always"),
    "size": (lambda source: random_model(source, config=replace(SMALL, hidden_size=80)),
             "gate_up_proj: expected inputs in a multiple of 32, the MXFP4 block, found 80 of them"),
    "nan": (spoilt(NAN.tobytes()[2:]), "layers.1.mlp.experts.down_proj: expected finite weights, found inf or nan"),
    "inf": (spoilt(INF.tobytes(), "F32"), "layers.1.mlp.experts.down_proj: expected finite weights, found inf or nan"),
    "half inf": (spoilt(np.float16(-np.inf).tobytes(), "F16"), "down_proj: expected finite weights, found inf or nan"),
    "both forms": (both_forms, "layers.1.mlp.experts.gate_up_proj: expected each matrix once, found it packed as well"),
    "another layer": (another_layer, "gate_up_proj: expected BF16 or F16 or F32 [E, N, M], found I16 [5]"),
}


def refuses(source, target, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pack", str(source), str(target)])
    with pytest.raises(SystemExit) as caught:
        pack.main()
    out, error = capsys.readouterr()
    sentence = error.splitlines()[-1]  # above it may be the bar
    assert caught.value.code == 2 and out == "" and "Traceback" not in error
    assert sentence.startswith("python -m train.pack: ") and said in sentence, sentence


@pytest.mark.parametrize("what", REFUSED)
def test_a_source_that_cannot_be_packed(what, tmp_path, monkeypatch, capsys):
    make, said = REFUSED[what]
    make(tmp_path / "in")
    refuses(tmp_path / "in", tmp_path / "out", said, monkeypatch, capsys)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_target_that_is_something_else(trained, tmp_path, monkeypatch, capsys):
    source = trained["BF16"]
    (tmp_path / "file").write_text("a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "own").write_text("somebody's")
    (tmp_path / "same").symlink_to(source)
    before = files(source)
    for name, said in (("file", "file: expected a directory, found a file"),
                       ("full", "full: expected a new or empty directory, found one with other files"),
                       ("same", "same: expected another directory than IN, found the same")):
        refuses(source, tmp_path / name, said, monkeypatch, capsys)
    assert files(source) == before and files(tmp_path / "full") == {"own": b"somebody's"}


def test_a_finished_target_is_not_written_again(trained, tmp_path):
    pack.pack(trained["BF16"], tmp_path)
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match="expected a new or empty directory"):
        pack.pack(trained["BF16"], tmp_path)
    assert files(tmp_path) == before


def test_a_disk_too_small(trained, tmp_path, monkeypatch):
    needed = sum(bytes_of(*tensor) for tensor in pack.plan(Checkpoint(trained["BF16"]))["model.safetensors"].values())
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - needed + 1, needed - 1))
    with pytest.raises(CheckpointError, match=r"out: expected room for 0\.0 GB, found 0\.0 GB"):
        pack.pack(trained["BF16"], tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - needed, needed))
    pack.pack(trained["BF16"], tmp_path / "out")
