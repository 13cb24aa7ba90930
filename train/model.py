"""gpt-oss as a PyTorch module: the twin of gptoss.py that can be trained.

Every layer of the architecture is one small module that takes plain tensors, with the parameter names of the Hugging
Face checkpoint, so that each can be compared with its counterpart. It trains (pretrain.py) and it is compared
(tests/); it does not generate, keep a cache, or compute from packed MXFP4 weights: that is gptoss.py.

The letters are those of gptoss.py, and B rows of a batch:

    B  rows            T  tokens in a row      N  hidden_size      E  num_local_experts
    H  query heads     G  key/value heads      D  head_dim         K  num_experts_per_tok
    V  vocab_size                              F  intermediate_size
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)  # e2m1, by nibble


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def yarn_frequencies(config):
    """The D/2 rotation speeds and the factor on cos and sin (YaRN, Peng et al. 2023, section 3.2-3.4).

    Fast pairs of a head, which turn many times within the original context, keep their speed; slow ones are slowed
    down by `factor`; those between are blended. gpt-oss does not round the two bounds ("truncate": false).
    """
    scaling, half = config.rope_scaling, config.head_dim // 2
    speed = config.rope_theta ** -(torch.arange(half, dtype=torch.float32) / half)
    original = scaling["original_max_position_embeddings"]

    def pair_that_turns(times):
        return half * math.log(original / (times * 2 * math.pi)) / math.log(config.rope_theta)

    low, high = pair_that_turns(scaling["beta_fast"]), pair_that_turns(scaling["beta_slow"])
    slowed = ((torch.arange(half, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return speed * (1 - slowed) + speed / scaling["factor"] * slowed, 0.1 * math.log(scaling["factor"]) + 1.0


def rotate(x, cos, sin):
    """Rotary position embedding of x [..., T, D]: the first HALF of a head turns with the second, not neighbours.

    cos, sin: [..., T, D/2].
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attention(q, k, v, sinks, mask):
    """Softmax attention with a sink: a learned logit per head that takes part in the softmax and carries no value.

    q, k, v: [B, H, T, D] (keys and values already repeated for their group of query heads), sinks: [H],
    mask: bool, broadcastable to [B, 1, T, T], True where a query may look. Returns [B, H, T, D].
    """
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])                         # [B, H, T, T]
    scores = scores.masked_fill(~mask, float("-inf"))
    sink = sinks[None, :, None, None].expand(*scores.shape[:3], 1)                      # one more column ...
    weights = torch.softmax(torch.cat((scores, sink), dim=-1), dim=-1)[..., :-1]        # ... that is dropped again
    return weights @ v


def fused_attention(q, k, v, sinks, mask):
    """The same through PyTorch's fused kernel, which knows no sinks: the sink becomes a key.

    Heads get one more dimension, 1 in every query and 0 in every key, except in one extra key that is zero elsewhere
    and has sink * sqrt(D) there: its score is the sink. Its value is zero. Several times faster than `attention` in
    training.
    """
    B, H, T, D = q.shape
    q = torch.cat((q, q.new_ones(B, H, T, 1)), -1)
    sink = functional.pad((sinks * math.sqrt(D))[None, :, None, None].expand(B, H, 1, 1), (D, 0))
    k = torch.cat((functional.pad(k, (0, 1)), sink), 2)                                 # [B, H, keys + 1, D + 1]
    v = functional.pad(v, (0, 1, 0, 1))
    mask = functional.pad(mask, (0, 1), value=True)
    return functional.scaled_dot_product_attention(q, k, v, mask, scale=1 / math.sqrt(D))[..., :D]


class Attention(nn.Module):
    """Grouped-query attention: H query heads share G key/value heads (head h uses h // (H / G))."""

    def __init__(self, config):
        super().__init__()
        N, H, G, D = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.heads, self.kv_heads, self.head_dim = H, G, D
        self.q_proj = nn.Linear(N, H * D)
        self.k_proj = nn.Linear(N, G * D)
        self.v_proj = nn.Linear(N, G * D)
        self.o_proj = nn.Linear(H * D, N)
        self.sinks = nn.Parameter(torch.zeros(H))

    def forward(self, x, cos, sin, mask, attend=attention):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_dim).transpose(1, 2)        # [B, H, T, D]
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)     # [B, G, T, D]
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        out = attend(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), self.sinks, mask)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, self.heads * self.head_dim))


class Router(nn.Module):
    """Scores the experts, keeps the best K, and weights them by a softmax over those K scores only."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.num_local_experts))

    def forward(self, x):                                                               # [BT, N]
        logits = functional.linear(x, self.weight, self.bias)                           # [BT, E]
        best, chosen = logits.topk(self.top_k, dim=-1)                                  # [BT, K]
        return torch.softmax(best, dim=-1), chosen, logits


def swiglu(x, limit):
    """gate * sigmoid(1.702 gate) * (up + 1) of x [..., 2F], whose even columns are gates and odd ones ups, clamped."""
    gate, up = x[..., ::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


class Experts(nn.Module):
    """E feed-forward networks of which each token visits K. Dense float weights, input axis first, as in
    transformers."""

    def __init__(self, config):
        super().__init__()
        E, N, F = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.limit = config.swiglu_limit
        self.gate_up_proj = nn.Parameter(torch.empty(E, N, 2 * F))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(E, 2 * F))
        self.down_proj = nn.Parameter(torch.empty(E, F, N))
        self.down_proj_bias = nn.Parameter(torch.zeros(E, N))

    def forward(self, x, weights, chosen):                                              # [BT, N], [BT, K], [BT, K]
        out = torch.zeros_like(x)
        for e in range(self.gate_up_proj.shape[0]):
            token, slot = torch.where(chosen == e)                                      # who visits expert e
            h = swiglu(torch.addmm(self.gate_up_proj_bias[e], x[token], self.gate_up_proj[e]), self.limit)
            y = torch.addmm(self.down_proj_bias[e], h, self.down_proj[e])
            out = out.index_add(0, token, y * weights[token, slot, None])
        return out


class MoE(nn.Module):
    """Mixture of experts: the router and its experts."""

    def __init__(self, config):
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)

    def forward(self, x):                                                               # [B, T, N]
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen, logits = self.router(flat)
        return self.experts(flat, weights, chosen).view_as(x), (logits, chosen)


class Block(nn.Module):
    """Attention, then the mixture of experts, each normed before and added to the residual stream."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config)

    def forward(self, x, cos, sin, mask, attend=attention):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, attend)
        y, routing = self.mlp(self.post_attention_layernorm(x))
        return x + y, routing


class GptOss(nn.Module):
    """The whole model. `config`: the keys of the Hugging Face config.json as attributes."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.model.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def hidden(self, tokens, positions=None, visible=None, attend=attention):
        """tokens [B, T] -> the last hidden state [B, T, N] and each layer's (router logits [BT, E], chosen [BT, K]).

        positions [B, T] (default 0, 1, ...) and visible (bool [B, T, T], default all) let several conversations share
        a row; a token never sees one with a later place in the row or, on sliding layers, a window or more positions
        back.
        """
        T = tokens.shape[1]
        if positions is None:
            positions = torch.arange(T, device=tokens.device)[None]
        speed, stretch = yarn_frequencies(self.config)
        angle = positions[..., None] * speed.to(tokens.device)                          # [B, T, D/2]
        cos, sin = (angle.cos() * stretch)[:, None], (angle.sin() * stretch)[:, None]   # [B, 1, T, D/2]
        order = torch.arange(T, device=tokens.device)
        causal = (order[:, None] >= order)[None]                                        # [1, T, T]
        if visible is not None:
            causal = causal & visible
        near = positions[:, :, None] - positions[:, None, :] < self.config.sliding_window
        masks = {"full_attention": causal[:, None], "sliding_attention": (causal & near)[:, None]}
        x, routing = self.model.embed_tokens(tokens), []
        for kind, layer in zip(self.config.layer_types, self.model.layers, strict=True):
            x, routed = layer(x, cos, sin, masks[kind], attend)
            routing.append(routed)
        return self.model.norm(x), routing

    def forward(self, tokens, positions=None, visible=None, attend=attention):
        """tokens [B, T] -> logits [B, T, V]."""
        return self.lm_head(self.hidden(tokens, positions, visible, attend)[0])


def read_config(path):
    """config.json of a checkpoint directory as a namespace; the rope fields may be in transformers 5's
    `rope_parameters`."""
    config = json.loads((Path(path) / "config.json").read_text())
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        config["rope_theta"], config["rope_scaling"] = rope["rope_theta"], rope
    return SimpleNamespace(**config)


def dequantize_mxfp4(blocks, scales):
    """MXFP4 blocks [..., n, 16] uint8 and scales [..., n] uint8 -> float32 [..., 32 n] (OCP Microscaling v1.0)."""
    values = torch.tensor(FP4_VALUES)
    pairs = torch.stack((values[(blocks & 15).long()], values[(blocks >> 4).long()]), -1)   # low nibble: even element
    return torch.ldexp(pairs.flatten(-2), scales.int()[..., None] - 127).flatten(-2)


def load(path):
    """A GptOss in float32 from a checkpoint directory in the Hugging Face layout (one file or shards, MXFP4 experts
    or dense)."""
    from safetensors.torch import load_file

    stored = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        stored.update(load_file(file))
    state = {}
    for name, tensor in stored.items():
        if name.endswith("_blocks"):        # [E, out, in/32, 16] -> [E, in, out]
            stem = name.removesuffix("_blocks")
            state[stem] = dequantize_mxfp4(tensor, stored[stem + "_scales"]).transpose(1, 2)
        elif not name.endswith("_scales"):
            state[name] = tensor.float()
    model = GptOss(read_config(path))
    model.load_state_dict(state)
    return model.eval()
