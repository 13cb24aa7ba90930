"""From the trained PyTorch model to the published layouts of gpt-oss: MXFP4 experts, bfloat16 for the rest.

    write(model, DIR)                 Hugging Face layout: config.json, generation_config.json, model.safetensors
    write_original(model, DIR)        OpenAI's own: config.json, model.safetensors under other names
"""

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save

from bench.random_checkpoint import MXFP4_EXPERTS, atomic_write, config_json, write_json
from checkpoint import Config, tensor_table
from train.model import dequantize_mxfp4


def quantize_mxfp4(weights):
    """float32 [..., 32 n] -> blocks [..., n, 16] uint8, scales [..., n] uint8 (OCP Microscaling v1.0).

    32 neighbours share a power of two. The specification's choice puts the largest of them between 4 and 8, where 6
    is the end of the scale. Half or twice that is sometimes nearer on the whole, so of the three the one with the least
    squared error is kept. No other is better. A quarter adds at least 6.25 to the squared error of the largest, and
    takes at most 1/16 from that of each of the others. Four times has no value below 8 that twice does not have.
    What MXFP4 can hold comes back bit for bit. Every finite float32 is in range, and is rounded to a finite one.
    """
    groups = weights.float().unflatten(-1, (-1, 32))  # [..., n, 32]
    sizes = groups.abs()
    top = (torch.frexp(sizes.amax(-1)).exponent - 3).clamp(-126, 124)  # puts the largest in 4..8
    sizes = torch.ldexp(sizes, -top[..., None])
    shifts = (0, -1, 1)  # of equals the first
    errors = [(e2m1(nearest_code(sizes / 2.0**shift)) * 2.0**shift - sizes).square().sum(-1) for shift in shifts]
    shift = torch.tensor(shifts)[torch.stack(errors).argmin(0)]
    codes = (nearest_code(torch.ldexp(sizes, -shift[..., None])) + 8 * torch.signbit(groups)).to(torch.uint8)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4  # even element in the low nibble
    return blocks, (top + shift + 127).to(torch.uint8)


def nearest_code(sizes):
    """The code 0..7 of the e2m1 value nearest to each size, of two the even one. The values 0, 0.5, ... 2, 3, 4, 6 lie
    on three straight lines, each flatter than the one before: the lowest of them counts."""
    return torch.minimum(torch.minimum(2 * sizes, sizes + 2), sizes / 2 + 4).round().clamp(max=7)


def e2m1(codes):
    """The value of each code 0..7: the same lines, turned round."""
    return torch.maximum(torch.maximum(codes / 2, codes - 2), 2 * codes - 8)


def tensors(model):
    """The tensors of the Hugging Face layout by name."""
    out = {}
    for name, value in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):  # [E, in, out]: rows are inputs
            blocks, scales = quantize_mxfp4(value.transpose(1, 2).contiguous())
            out[f"{name}_blocks"], out[f"{name}_scales"] = blocks.contiguous(), scales
        else:
            out[name] = value.to(torch.bfloat16).contiguous()
    return out


def rounded(model):
    """A state dict for train.model.GptOss with what the exported tensors say."""
    stored, out = tensors(model), {}
    for name, value in stored.items():
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            out[stem] = dequantize_mxfp4(value, stored[stem + "_scales"]).transpose(1, 2)
        elif not name.endswith("_scales"):
            out[name] = value.float()
    return out


def special_ids(directory):
    added = json.loads((Path(directory) / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return {token["content"]: token["id"] for token in added}


def write_tensors(stored, path):
    """{name: tensor} as a file of safetensors that gets its name when all is written, or never."""
    with atomic_write(path) as out:
        out.write(save(stored, metadata={"format": "pt"}))


def write(model, directory):
    """The Hugging Face layout, beside a tokenizer.json that is already there. config.json comes last: without it, no
    program takes the directory for a checkpoint."""
    directory, c = Path(directory), vars(model.config)
    ids = special_ids(directory)
    eos = [ids["<|return|>"], ids["<|endoftext|>"], ids["<|call|>"]]
    config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", **c, "attention_bias": True,
              "attention_dropout": 0.0, "hidden_act": "silu", "tie_word_embeddings": False, "use_cache": True,
              "torch_dtype": "bfloat16", "eos_token_id": ids["<|return|>"], "pad_token_id": ids["<|endoftext|>"],
              "quantization_config": MXFP4_EXPERTS}
    write_tensors(tensors(model), directory / "model.safetensors")
    write_json(directory / "generation_config.json", {"bos_token_id": ids["<|startoftext|>"], "do_sample": False,
                                                      "eos_token_id": eos, "pad_token_id": ids["<|endoftext|>"]})
    write_json(directory / "config.json", config)


def write_original(model, directory):
    """OpenAI's layout: other names, and one matrix for queries, keys and values. The MXFP4 bytes are the same."""
    directory, stored = Path(directory), tensors(model)
    known = {field.name for field in fields(Config)}
    config = Config(**{key: value for key, value in vars(model.config).items() if key in known})
    ours = {(field, layer): name for name, (field, layer, _, _) in tensor_table(config, "hf").items()}
    out = {}
    for name, (field, layer, _, _) in tensor_table(config, "original").items():
        sources = [field.replace("qkv", x) for x in "qkv"] if field.startswith("qkv") else [field]
        out[name] = torch.cat([stored[ours[source, layer]] for source in sources])
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(out, directory / "model.safetensors")
    write_json(directory / "config.json", config_json(config, "original"))
