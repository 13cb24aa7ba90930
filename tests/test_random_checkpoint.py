"""bench/random_checkpoint.py: whole files with the right shapes, in both layouts, or one sentence."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from shapes import SMALL

import gptoss
from bench import random_checkpoint
from bench.random_checkpoint import SHAPES, write_random
from checkpoint import CheckpointError


def read_all(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_seed_gives_the_same_bytes(tmp_path):
    for name, seed in ("one", 5), ("again", 5), ("other", 6):
        write_random(tmp_path / name, SMALL, seed=seed)
    one, other = read_all(tmp_path / "one"), read_all(tmp_path / "other")
    assert one == read_all(tmp_path / "again")
    assert {name for name in one if one[name] != other[name]} == {"model.safetensors"}


def test_layouts_are_equal_where_tensors_are_written_in_pieces(tmp_path):
    """Pieces of 4 MB: of q alone they end elsewhere than of q, k and v together."""
    config = replace(SMALL, hidden_size=64, num_hidden_layers=1, layer_types=SMALL.layer_types[:1], head_dim=6000)
    write_random(tmp_path / "hf", config)
    write_random(tmp_path / "original", config, "original")
    [ours], [theirs] = (gptoss.load(tmp_path / layout, backend="numpy").layers for layout in ("hf", "original"))
    assert ours.q_weight.nbytes > 2**22
    for name in ("q_weight", "k_weight", "v_weight", "q_bias", "o_weight", "down_bias"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_random_model_thinks(tmp_path):
    """Numbers of a sensible size: finite logits, neither all alike nor one above all."""
    write_random(tmp_path, SMALL)
    logits = gptoss.load(tmp_path, backend="numpy")(np.arange(0, 200, 6))
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 10


def full_disk(monkeypatch, free):
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - free, free))


def test_disk_too_small(tmp_path, monkeypatch):
    full_disk(monkeypatch, 10**9)
    with pytest.raises(CheckpointError) as caught:
        write_random(tmp_path / "20b", SHAPES["20b"])
    assert str(caught.value) == f"{tmp_path / '20b'}: expected room for 13.8 GB, found 1.0 GB"
    assert list((tmp_path / "20b").iterdir()) == []


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(("shards", "whole"), [(1, set()), (3, {"model-00000-of-00002.safetensors"})])
def test_interrupted(error, shards, whole, tmp_path, monkeypatch):
    """What stands under its final name is whole, nothing else stands there, and the rest is not taken for a model."""
    write_random(tmp_path / "all", SMALL, shards=shards)
    calls, rows = [], random_checkpoint.random_rows

    def failing(*args):
        calls.append(args)
        if len(calls) == 30:
            raise error
        return rows(*args)

    monkeypatch.setattr(random_checkpoint, "random_rows", failing)
    with pytest.raises(type(error)):
        write_random(tmp_path / "new", SMALL, shards=shards)
    kept, expected = read_all(tmp_path / "new"), read_all(tmp_path / "all")
    assert kept == {name: expected[name] for name in whole}
    with pytest.raises(CheckpointError, match="config.json: expected a file, found no such file"):
        gptoss.load(tmp_path / "new")


def test_what_the_original_layout_cannot_say(tmp_path):
    for scaling in (None, SMALL.rope_scaling | {"truncate": True}):
        with pytest.raises(CheckpointError, match="original/ layout: expected YaRN with truncate false, .* found"):
            write_random(tmp_path, replace(SMALL, rope_scaling=scaling), "original")
    assert list(tmp_path.iterdir()) == []


# ---- The command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "status", "said"), [
    (["--help"], 0, "20b is 13.8 GB, 120b 65.2 GB"),
    (["new", "--layers", "0"], 2, "layers: expected 1 to 24, found 0"),
    (["new", "--layers", "25"], 2, "layers: expected 1 to 24, found 25"),
    (["new", "--shape", "120b", "--layers", "37"], 2, "layers: expected 1 to 36, found 37"),
    (["new", "--layers", "x"], 2, "invalid int value: 'x'"),
    (["new", "--shape", "7b"], 2, "invalid choice: '7b'"),
    (["new", "--layout", "gguf"], 2, "invalid choice: 'gguf'"),
    ([], 2, "the following arguments are required: directory"),
])
def test_command_says(args, status, said, tmp_path):
    done = subprocess.run([sys.executable, "-m", "bench.random_checkpoint", *args], cwd=tmp_path, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert said in (done.stdout if status == 0 else done.stderr.splitlines()[-1])
    assert list(tmp_path.iterdir()) == []


def run(monkeypatch, *args):
    """The command in this process, where 20b is a small shape."""
    monkeypatch.setitem(SHAPES, "20b", SMALL)
    monkeypatch.setattr(sys, "argv", ["random_checkpoint", *map(str, args)])
    random_checkpoint.main()


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_command_writes(layout, tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "--layers", "2", "--layout", layout)
    model = gptoss.load(tmp_path, backend="numpy")
    assert model.config.layer_types == ("sliding_attention", "full_attention") and len(model.layers) == 2


@pytest.mark.parametrize("where", ["disk", "file"])
def test_command_fails_in_one_line(where, tmp_path, monkeypatch, capsys):
    target = tmp_path / "new"
    if where == "disk":
        full_disk(monkeypatch, 0)
    else:
        target.write_text("a file, not a directory")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, target)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and str(target) in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]


def test_unpacked_experts(tmp_path):
    """As a training leaves them: bf16, inputs before outputs. The size of the logits is that of packed ones."""
    write_random(tmp_path, SMALL, packed=False, seed=3)
    model = gptoss.load(tmp_path, backend="numpy")
    assert model.layers[1].gate_up.shape == (7, 2 * 64, 96) and model.layers[1].gate_up.dtype == np.uint16
    assert 0.5 < model([1, 2, 3]).std() < 3
    with pytest.raises(CheckpointError, match="original/ layout: expected packed experts"):
        write_random(tmp_path, SMALL, "original", packed=False)
