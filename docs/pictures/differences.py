"""The picture of chapter 17: what number formats between the operations do to the logits of the small model."""

import math

import numpy as np
from runs import conversation
from style import Drawing, picture

import gptoss


def rounding(round_):
    """A backend whose linear layers and experts take rounded input: `round_` is a function of an array."""
    class Rounding:
        @staticmethod
        def linear(x, weight, bias=None):
            return gptoss.linear(round_(x), weight, bias)

        @staticmethod
        def experts(x, chosen, weights, layer, limit):
            return gptoss.experts(round_(x), chosen, weights, layer, limit)

    return Rounding


def to_bf16(x):
    return gptoss.bf16_to_float32(gptoss.float32_to_bf16(x))


def to_integers(most):
    """Rounding to whole steps, `most` of them for the largest number of each block of 32."""
    def round_(x):
        blocks = x.reshape(*x.shape[:-1], -1, 32)
        step = np.abs(blocks).max(axis=-1, keepdims=True) / most + 1e-30
        return (np.rint(blocks / step) * step).reshape(x.shape).astype(np.float32)
    return round_


FORMATS = {"int16": to_integers(32639), "bf16": to_bf16, "int8": to_integers(127)}


def distances():
    """{format of the activations: rms difference of each token's logits, relative to their size, [T]}."""
    prompt, reply = conversation()
    exact = gptoss.load("nano", backend="numpy")(prompt + reply)
    for name, round_ in FORMATS.items():
        logits = gptoss.load("nano", backend=rounding(round_))(prompt + reply)
        yield name, np.sqrt(((logits - exact) ** 2).mean(axis=-1) / (exact**2).mean(axis=-1))


@picture("activations")
def activations():
    drawing = Drawing(226, "How far the logits move when activations are rounded to int16, bf16 and int8",
                      "Three rows of dots on a logarithmic scale, a dot for each token. Rounding to int16 moves the "
                      "logits of a typical token by about 0.002%, bf16 by 0.2%, int8 by 0.5%. Single tokens move by a "
                      "hundred times more.")
    left, width = 64, 360
    drawing.text(16, 26, "Logits move when what goes into a product is rounded", bold=True)
    low, high = -6, 0
    def x_of(value):
        return left + width * (min(max(math.log10(value), low), high) - low) / (high - low)
    for power in range(low, high + 1, 2):
        drawing.line([(x_of(10**power), 44), (x_of(10**power), 172)])
        drawing.text(x_of(10**power), 190, f"{10.0 ** (power + 2):.{max(0, -2 - power)}f}%", "dim", 12, "middle")
    for n, (name, distance) in enumerate(distances()):
        y = 66 + 42 * n
        drawing.text(left - 10, y + 4, name, anchor="end", mono=True)
        for t, value in enumerate(distance):
            drawing.circle(x_of(value), y + (t * 7) % 11 - 5, 2, "blue", opacity=0.35)
        drawing.line([(x_of(np.median(distance)), y - 12), (x_of(np.median(distance)), y + 12)], "orange", 3)
    drawing.text(left + width / 2, 212, "difference of a token's logits; orange: the median", "dim", 12, "middle")
    return drawing
