"""Chapter 6, experts: docs/06-experts.md

Check what you wrote: python exercises/check.py route swiglu experts"""

import numpy as np

from checkpoint import MXFP4, bf16_to_float32, dequantize  # four bits are chapter 7's
from gptoss import softmax  # or take your own, from chapter 4


def route(logits, K):
    """Which experts a token goes to, and how much each counts.

    logits: float32 [T, E], a score of each expert for each token. K: how many are chosen.
    -> (chosen, whole numbers [T, K]; weights, float32 [T, K]).

    The K experts with the highest logits, the best first; of two that are equal, the earlier one first. Their weights
    are a softmax over the logits of those K alone.

    Hint: np.argsort(-logits, axis=-1, kind="stable") and np.take_along_axis."""
    raise NotImplementedError


def swiglu(gate_up, limit):
    """Clamped SwiGLU, the nonlinearity of an expert.

    gate_up: float32 [..., 2F], gate and up interleaved: the even columns are the gate, the odd ones are up.
    limit: a number (7 in gpt-oss). -> float32 [..., F].

    The gate is cut off above `limit`; below, nothing is done to it. up is kept between -limit and limit. The result is
    gate * sigmoid(1.702 gate) * (up + 1), where sigmoid(z) = 1 / (1 + e^-z).

    Hint: x[..., 0::2] takes the even columns."""
    raise NotImplementedError


def experts(x, chosen, weights, layer, limit):
    """Mixture of experts: what the chosen experts say of each token, weighted and added up.

    x: float32 [T, N]. chosen: whole numbers [T, K]. weights: float32 [T, K]. limit: for swiglu.
    layer.gate_up: MXFP4, blocks [E, 2F, N/32, 16] and scales [E, 2F, N/32]; layer.down: the same for [E, N, F].
    layer.gate_up_bias [E, 2F] and layer.down_bias [E, N]: numbers that bf16_to_float32 makes float32: bf16 bit
    patterns (uint16), or float32 already. -> float32 [T, N].

    Expert e turns a token's x into down(swiglu(gate_up(x))). Both are linear: W x + bias, W being [outputs, inputs].
    The whole output, the bias of down included, is multiplied by the token's weight for this expert.

    Hint: dequantize(MXFP4(layer.gate_up.blocks[e], layer.gate_up.scales[e])) is W of expert e, [2F, N]. For each
    expert in use, np.nonzero(chosen == e) says which tokens chose it and in which of their K places. swiglu is yours,
    so write that first."""
    raise NotImplementedError
