"""Chapter 5, position: docs/05-position.md

Check what you wrote: python exercises/check.py rope_frequencies rotate"""

import math

import numpy as np


def rope_frequencies(config):
    """How far each pair of a head turns from one position to the next, and the factor for cos and sin.

    config: has head_dim (D), rope_theta, and rope_scaling: None, or a dict with factor, beta_fast, beta_slow,
    original_max_position_embeddings (L) and truncate (False in gpt-oss, but it may be True).
    -> (radians, float32 [D/2], attention factor, a number).

    - RoPE: pair i of D/2 turns theta^(-2i/D) radians per position. Without rope_scaling that is all; the factor is 1.
    - YaRN: pairs that turn more than beta_fast times within L positions keep their frequency. Those that turn less than
      beta_slow times have it divided by `factor`. Between the two bounds it is blended, in a straight line over i.
    - The bounds are real numbers. A pair turns r times within L positions where theta^(-2i/D) L = 2 pi r, so
      i = D/2 * ln(L / (2 pi r)) / ln(theta). Where truncate is True, the first bound (that of beta_fast) is rounded
      down and the second one up. Then the first is made at least 0, and the second at most D - 1.
    - The attention factor is 0.1 ln(factor) + 1, but 1 where `factor` is 1 or less. The frequencies are computed as
      above for any `factor`.

    Hint: ramp = np.clip((i - low) / (high - low), 0, 1) is 0 for the fast pairs and 1 for the slow ones. If the bounds
    are equal, divide by 0.001. Compute in float64 and turn the result into float32."""
    raise NotImplementedError


def rotate(x, cos, sin):
    """RoPE: turns every pair of every head by the angle of its position.

    x: float32 [T, heads, D]. cos, sin: float32 [T, 1, D/2]. -> float32 [T, heads, D].

    Pair d of a head is made of its elements d and d + D/2, the halves of a head. (a, b) becomes
    (a cos - b sin, b cos + a sin), and both stay where they were.

    Hint: np.split(x, 2, axis=-1) gives the halves, and [T, 1, D/2] fits to [T, heads, D/2] by itself."""
    raise NotImplementedError
