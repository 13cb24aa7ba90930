"""Chapter 3, the residual stream: docs/03-the-residual-stream.md

Check what you wrote: python exercises/check.py rms_norm"""

import numpy as np


def rms_norm(x, weight, eps):
    """RMSNorm: each token's vector, divided by its root mean square, times the weight.

    x: float32 [T, N]. weight: float32 [N]. eps: a small number, 1e-5. -> float32 [T, N].

    The mean is taken over the N numbers of a token, each token by itself. eps is added to the mean square, under the
    root. Nothing is subtracted.

    Hint: np.mean(..., axis=-1, keepdims=True) gives [T, 1], which divides [T, N] row by row."""
    raise NotImplementedError
