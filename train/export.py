"""From the trained PyTorch model to the published layouts of gpt-oss: MXFP4 experts, bfloat16 for the rest.

    write(model, DIR)                 Hugging Face layout: config.json, generation_config.json, model.safetensors
    write_original(model, DIR)        OpenAI's own: config.json, model.safetensors under other names
"""

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.random_checkpoint import config_json, write_json
from checkpoint import Config, tensor_table
from train.model import FP4_VALUES, dequantize_mxfp4


def quantize_mxfp4(weights):
    """float32 [..., 32 n] -> blocks [..., n, 16] uint8, scales [..., n] uint8 (OCP Microscaling v1.0).

    32 neighbours share a power of two. The specification's choice puts the largest of them between 4 and 8, where 6
    is the end of the scale; a neighbouring power is sometimes nearer on the whole, so of four the one with the least
    squared error is kept.
    """
    groups = weights.float().unflatten(-1, (-1, 32))                                    # [..., n, 32]
    values = torch.tensor(FP4_VALUES[:8])
    middles = (values[1:] + values[:-1]) / 2
    largest = groups.abs().amax(-1).clamp(min=2.0 ** -120)
    top = torch.floor(torch.log2(largest)) - 2                                          # puts the largest in 4..8
    best = None
    for exponent in (top - 2, top - 1, top, top + 1):
        scaled = groups / torch.exp2(exponent)[..., None]
        codes = torch.bucketize(scaled.abs(), middles)                                  # nearest of eight magnitudes
        error = (values[codes] - scaled.abs()).square().sum(-1) * torch.exp2(2 * exponent)
        codes = codes + 8 * (scaled < 0)
        if best is None:
            best = error, codes, exponent
        else:
            better = error < best[0]
            best = (torch.where(better, error, best[0]), torch.where(better[..., None], codes, best[1]),
                    torch.where(better, exponent, best[2]))
    _, codes, exponent = best
    codes = codes.to(torch.uint8)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4                                    # even element in the low nibble
    return blocks, (exponent + 127).to(torch.uint8)


def tensors(model):
    """The tensors of the Hugging Face layout by name."""
    out = {}
    for name, value in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):                                # [E, in, out]: rows are inputs
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


def write(model, directory):
    """The Hugging Face layout, beside a tokenizer.json that is already there."""
    directory, c = Path(directory), vars(model.config)
    ids = special_ids(directory)
    eos = [ids["<|return|>"], ids["<|endoftext|>"], ids["<|call|>"]]
    config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", **c, "attention_bias": True,
              "attention_dropout": 0.0, "hidden_act": "silu", "tie_word_embeddings": False, "use_cache": True,
              "torch_dtype": "bfloat16", "eos_token_id": ids["<|return|>"], "pad_token_id": ids["<|endoftext|>"],
              "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": [
                  "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}}
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {"bos_token_id": ids["<|startoftext|>"], "do_sample": False,
                                                      "eos_token_id": eos, "pad_token_id": ids["<|endoftext|>"]})
    save_file(tensors(model), directory / "model.safetensors", metadata={"format": "pt"})


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
    write_json(directory / "config.json", config_json(config, "original"))
    save_file(out, directory / "model.safetensors", metadata={"format": "pt"})
