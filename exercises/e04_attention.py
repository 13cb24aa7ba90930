"""Chapter 4, attention: docs/04-attention.md

Check what you wrote: python exercises/check.py softmax attention"""

import math

import numpy as np

from checkpoint import bf16_to_float32  # float32 passes through it, so it may be called on anything


def softmax(x):
    """e^x divided by its sum, along the last axis.

    x: float32 [..., S]. -> float32 [..., S]; each row along the last axis sums to 1.

    x may be large (1,000) or -inf, and the result must be right all the same: e^1000 is too large for a float32.

    Hint: softmax(x) does not change if the same number is taken from all x of a row. Which one makes every e^x at
    most 1?"""
    raise NotImplementedError


def attention(q, k, v, sinks, window):
    """Grouped-query attention of the last T of S positions, with a window and sinks.

    q: float32 [T, H, D], the queries. k, v: [G, S, D], keys and values, float32 or bf16 as uint16 bit patterns.
    sinks: bf16 bit patterns (uint16) [H], one for each query head. All that is bf16 is turned into float32 here, by
    bf16_to_float32. window: a whole number; in a layer with full attention it is S or more.
    -> float32 [T, H, D], in the order of q's heads.

    - Query head h uses key/value head h // (H // G).
    - Query t stands at position S - T + t. It sees the key at its own position and those before it, at most `window`
      keys in all, its own included.
    - The score of a query and a key is their dot product, divided by sqrt(D).
    - The softmax of each query goes over the scores of the keys that it sees and one more logit: the sink of its head.
      The sink's share is given to no value, so the weights of the keys sum to less than 1.
    - The result is the sum of the values, each times its key's weight.

    Hint: write it with loops over heads and queries first. A score of -inf becomes a weight of 0. math.sqrt(D) is a
    Python number; np.sqrt(D) would turn float32 arrays into float64."""
    raise NotImplementedError
