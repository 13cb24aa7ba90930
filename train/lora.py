"""LoRA for model.py: two thin matrices beside each weight, which alone are trained (arXiv 2106.09685).

`adapt` puts them onto a model, and `write_adapter` writes them as the PEFT library does, so that PEFT can load them.
"""

import torch
from torch.nn.utils import parametrize

from bench.random_checkpoint import write_json
from train.export import write_tensors

RANK, ALPHA = 8, 16
ATTENTION, EXPERTS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_up_proj", "down_proj")


class LowRank(torch.nn.Module):
    """W + alpha/r B A in place of a weight: a matrix [out, in], or the experts' [E, in, out].

    A [r E, in] and B [out, r E] are stacked as PEFT does it: in A the expert is the slow index, in B the fast one."""

    def __init__(self, weight):
        super().__init__()
        self.experts = weight.shape[0] if weight.dim() == 3 else 1
        out, inputs = weight.shape if weight.dim() == 2 else weight.shape[:0:-1]
        self.A = torch.nn.Parameter(torch.empty(RANK * self.experts, inputs))
        self.B = torch.nn.Parameter(torch.zeros(out, RANK * self.experts))
        torch.nn.init.uniform_(self.A, -(inputs**-0.5), inputs**-0.5)  # as PEFT begins
        self.requires_grad_(True)

    def forward(self, weight):
        A, B = self.A.unflatten(0, (self.experts, RANK)), self.B.unflatten(1, (RANK, self.experts))
        delta = torch.einsum("ore,eri->eio", B, A) * (ALPHA / RANK)
        return weight + (delta if weight.dim() == 3 else delta[0].T)


def adapt(net):
    """Freezes a GptOss and puts LowRank onto attention and experts of each layer. -> {name in PEFT's file: LowRank}"""
    net.requires_grad_(False)
    adapters = {}
    for i, layer in enumerate(net.model.layers):
        stem = f"base_model.model.model.layers.{i}."
        for name in ATTENTION:
            module = getattr(layer.self_attn, name)
            adapters[f"{stem}self_attn.{name}"] = LowRank(module.weight)
            parametrize.register_parametrization(module, "weight", adapters[f"{stem}self_attn.{name}"])
        for name, inside in zip(EXPERTS, (".base_layer", ""), strict=True):  # the first named is the innermost
            adapters[f"{stem}mlp.experts{inside}"] = low = LowRank(getattr(layer.mlp.experts, name))
            parametrize.register_parametrization(layer.mlp.experts, name, low)
    return adapters


def write(adapters, base, directory):
    """An adapter in PEFT's form. base: the name of the model that it belongs to."""
    stored = {f"{name}.lora_{x}.weight": getattr(low, x).detach() for name, low in adapters.items() for x in "AB"}
    write_tensors(stored, directory / "adapter_model.safetensors")
    write_json(directory / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
        "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "target_modules": list(ATTENTION),
        "target_parameters": [f"mlp.experts.{name}" for name in EXPERTS], "inference_mode": True})
