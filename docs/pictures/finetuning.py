"""Pictures of chapter 15: an adapter beside a packed matrix, and what rounding leaves of a small update."""

import numpy as np
from runs import model
from style import Drawing, picture

import gptoss
from exercises.solutions import quantize


@picture("adapter")
def adapter():
    layer, r = model().layers[0], 4
    out, into = layer.q_weight.shape
    drawing = Drawing(300, "An adapter: two thin matrices beside a large one that stays as it is",
                      f"The input x goes two ways. One is the frozen matrix W of {out} by {into}. The other is a thin "
                      f"matrix A of {r} by {into}, then a thin matrix B of {out} by {r}, then a factor alpha over r. "
                      "Both results are added.")
    drawing.text(16, 26, "A low-rank adapter (LoRA) on the query projection", bold=True)
    scale = 0.85
    wide, tall, thin = into * scale, out * scale, 14
    drawing.text(28, 170, "x", mono=True, size=16, bold=True)
    drawing.rect(80, 60, wide, tall, "line", "dim", 0.5, 4)
    drawing.text(80 + wide / 2, 60 + tall / 2, "W, frozen", anchor="middle")
    drawing.text(80 + wide / 2, 60 + tall / 2 + 18, f"{out} × {into}", "dim", 12, "middle")
    drawing.rect(80, 204, wide, thin, "orange", opacity=0.6, radius=3)
    drawing.text(80 + wide / 2, 238, f"A  {r} × {into}", "orange", 12, "middle", bold=True)
    drawing.rect(250, 188, thin, tall * 0.6, "orange", opacity=0.6, radius=3)
    drawing.text(250 + thin / 2, 272, f"B  {out} × {r}", "orange", 12, "middle", bold=True)
    drawing.line([(44, 164), (62, 164), (62, 110), (78, 110)], "dim", 1.5, arrow=True)
    drawing.line([(62, 164), (62, 211), (78, 211)], "dim", 1.5, arrow=True)
    drawing.line([(80 + wide + 4, 211), (246, 211)], "dim", 1.5, arrow=True)
    drawing.text(80 + wide + 6, 203, f"{r} numbers", "dim", 11)
    drawing.line([(80 + wide + 4, 110), (345, 110), (345, 150)], "dim", 1.5, arrow=True)
    drawing.line([(268, 211), (345, 211), (345, 178)], "dim", 1.5, arrow=True)
    drawing.text(284, 203, "× α / r", "orange", 12)
    drawing.circle(345, 164, 12, "none", "ink", 1.5)
    drawing.text(345, 169, "+", anchor="middle", size=16)
    drawing.line([(358, 164), (396, 164)], "dim", 1.5, arrow=True)
    drawing.text(404, 169, "y", mono=True, size=16, bold=True)
    drawing.text(16, 292, f"{r * (out + into):,} new numbers beside {out * into:,}", "dim", 12)
    return drawing


def changes(update_sizes):
    """The share of the first expert's weights that change when an update is packed again: [(size, share)]. A size is
    relative to the weights (rms)."""
    packed = model().layers[0].gate_up
    weight = gptoss.dequantize(gptoss.MXFP4(packed.blocks[0], packed.scales[0]))
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((len(weight), 4)) @ rng.standard_normal((4, weight.shape[1]))
    direction *= np.sqrt((weight**2).mean() / (direction**2).mean())
    for size in update_sizes:
        update = (size * direction).astype(np.float32)
        kept = gptoss.dequantize(quantize(weight + update)) - weight
        yield size, float((kept != 0).mean())


@picture("requantized")
def requantized():
    drawing = Drawing(280, "How many weights change when a small update is rounded to MXFP4 again",
                      "The share of weights that change at all, over the size of an update relative to the weights. "
                      "Below one hundredth, hardly a weight changes. At a tenth, a fifth of them do.")
    left, top, width, height = 52, 44, 372, 180
    drawing.text(16, 26, "Weights that change when an update is packed again", bold=True)
    for share in (0, 0.5, 1):
        drawing.level(top + height * (1 - share), left, left + width, f"{share:.0%}")
    sizes = np.geomspace(0.003, 1, 26)
    def x_of(size):
        return left + width * np.log(size / sizes[0]) / np.log(sizes[-1] / sizes[0])
    for mark in (0.01, 0.03, 0.1, 0.3, 1):
        drawing.text(x_of(mark), top + height + 18, f"{mark:.0%}", "dim", 12, "middle")
    drawing.line([(x_of(size), top + height * (1 - changed)) for size, changed in changes(sizes)], "green", 2.5)
    drawing.text(left + width / 2, top + height + 38, "size of the update relative to the weights", "dim", 12, "middle")
    return drawing
