"""Files as the safetensors library, PyTorch and transformers write and read them: checkpoint.py reads the same."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from shapes import SMALL
from transformers import GptOssConfig

import checkpoint
from bench import random_checkpoint
from checkpoint import Checkpoint, read_config, tensor_table


@pytest.mark.parametrize(("layout", "shards"), [("hf", 1), ("hf", 3), ("original", 1)])
def test_the_same_tensors(layout, shards, tmp_path):
    random_checkpoint.write_random(tmp_path, SMALL, layout, seed=5, shards=shards)
    ours, names = Checkpoint(tmp_path), set()
    for file in tmp_path.glob("*.safetensors"):
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


def test_all_bf16_patterns(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16).reshape(2**10, 2**6)
    tensors = {"odd": torch.arange(7, dtype=torch.uint8), "all": torch.from_numpy(bits).view(torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = Checkpoint(tmp_path)
    assert np.array_equal(found.view("odd", "U8", (7,)), np.arange(7))
    ours = checkpoint.bf16_to_float32(found.view("all", "BF16", bits.shape))
    assert np.array_equal(ours.view(np.uint32), tensors["all"].float().numpy().view(np.uint32))


def test_rope_parameters_as_transformers_writes_them(tmp_path):
    """transformers 4 has rope_scaling and rope_theta side by side, transformers 5 rope_parameters with both."""
    random_checkpoint.write_random(tmp_path, SMALL)
    before = read_config(tmp_path)
    fields = random_checkpoint.config_json(SMALL, "hf")
    scaling = fields.pop("rope_scaling")
    del fields["architectures"]
    theirs = GptOssConfig(**fields | {"rope_parameters": scaling | {"rope_theta": fields.pop("rope_theta")}})
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_parameters"]["rope_theta"] == SMALL.rope_theta and "rope_theta" not in written
    assert read_config(tmp_path) == before
