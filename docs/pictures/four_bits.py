"""Pictures of chapter 7: a block of MXFP4 byte by byte, and the sixteen values with how often they occur."""

import numpy as np
from runs import model
from style import WIDTH, Drawing, picture

from checkpoint import E2M1, E8M0


def shown(value):
    return f"{value:g}".replace("-", "−")


@picture("block")
def block():
    layer = model().layers[0].gate_up
    packed, scale = layer.blocks[0, 0, 0], int(layer.scales[0, 0, 0])
    values = np.stack([E2M1[packed & 15], E2M1[packed >> 4]], axis=-1).reshape(-1) * E8M0[scale]
    first = int(packed[0])
    drawing = Drawing(404, "One block of MXFP4, byte by byte",
                      f"A scale byte, {scale}, and sixteen bytes of numbers. Byte {first:02x} is taken apart. Its low "
                      f"four bits are element 0, {values[0]:g}, its high four bits element 1, {values[1]:g}. Each has a "
                      "sign, two bits of exponent and one of mantissa. Below is a bar for each of the 32 weights.")
    drawing.text(16, 24, "17 bytes are 32 weights (layer 0, expert 0, row 0)", bold=True)
    step = 25
    for n, byte in enumerate([scale, *packed.tolist()]):
        x = 16 + step * n + (6 if n else 0)
        drawing.rect(x, 38, step - 2, 26, "violet" if n == 0 else "green", opacity=0.25, radius=3)
        drawing.text(x + (step - 2) / 2, 56, f"{byte:02x}", size=12, anchor="middle", mono=True)
    drawing.text(16, 82, f"scale: byte {scale} is 2^({scale} − 127) = {shown(float(E8M0[scale]))}", "violet", 12)
    drawing.text(16, 116, f"byte {first:02x}", bold=True)
    fields = (("sign", "blue"), ("exponent", "orange"), ("exponent", "orange"), ("mantissa", "green"))
    for left, caption, nibble in ((84, "high half: element 1", first >> 4), (272, "low half: element 0", first & 15)):
        drawing.text(left, 116, caption, "dim", 12)
        for bit in range(4):
            drawing.rect(left + 42 * bit, 126, 40, 30, fields[bit][1], opacity=0.2, radius=3)
            drawing.text(left + 42 * bit + 20, 146, nibble >> 3 - bit & 1, anchor="middle", mono=True)
        drawing.text(left + 20, 172, "sign", "blue", 11, "middle")
        drawing.text(left + 83, 172, "exponent", "orange", 11, "middle")
        drawing.text(left + 146, 172, "mantissa", "green", 11, "middle")
        e, m, value = nibble >> 1 & 3, nibble & 1, float(E2M1[nibble])
        rule = f"(1 + {m}/2) · 2^({e} − 1)" if e else f"{m}/2"
        drawing.text(left, 196, f"{'−' if nibble >> 3 else ''}{rule} = {shown(value)}", size=12)
        weight = shown(value * float(E8M0[scale]))
        drawing.text(left, 214, f"{shown(value)} · {shown(float(E8M0[scale]))} = {weight}", size=12)
    drawing.text(16, 250, "all 32 weights of the block", bold=True)
    top, height, most = 262, 118, float(np.abs(values).max())
    zero = top + height / 2
    for n, value in enumerate(values.tolist()):
        size = abs(value) / most * height / 2
        drawing.rect(16 + 13.4 * n, zero - size if value > 0 else zero, 11, max(size, 0.8), "green", opacity=0.75)
    drawing.line([(16, zero), (WIDTH - 16, zero)], "dim")
    drawing.text(16, 398, "element 0", "dim", 11)
    drawing.text(WIDTH - 16, 398, "element 31", "dim", 11, "end")
    drawing.text(WIDTH / 2, 398, f"the longest bar is {shown(most)}", "dim", 11, "middle")
    return drawing


@picture("sixteen-values")
def sixteen_values():
    counts = np.zeros(16, np.int64)
    for layer in model().layers:
        for weight in (layer.gate_up, layer.down):
            counts += np.bincount((weight.blocks & 15).ravel(), minlength=16)
            counts += np.bincount((weight.blocks >> 4).ravel(), minlength=16)
    share = counts / counts.sum()
    drawing = Drawing(300, "The sixteen values of e2m1, and how many weights have each",
                      "A number line from minus 6 to 6 with the values of e2m1, which are closer together near zero. "
                      "Above each is a bar for the share of the small model's expert weights that have it. Zero and "
                      "minus zero are one bar. Below, the interval that is rounded to each value.")

    def across(value):
        return WIDTH / 2 + value * 33.5

    drawing.text(16, 24, "How many of the small model's expert weights", bold=True)
    drawing.text(16, 41, "have each value, before the scale", bold=True)
    grid = sorted({float(value) for value in E2M1})
    bottom, tallest = 210, share[0] + share[8]
    for value in grid:
        part = sum(share[code] for code in range(16) if E2M1[code] == value)
        height = part / max(tallest, share.max()) * 130
        drawing.rect(across(value) - 7, bottom - height, 14, height, "green", opacity=0.7)
        drawing.text(across(value), bottom - height - 6, f"{100 * part:.0f}", "dim", 11, "middle")
    drawing.line([(12, bottom), (WIDTH - 12, bottom)], "dim")
    for value in grid:
        if value in (-6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6):
            drawing.text(across(value), bottom + 17, shown(value), size=12, anchor="middle")
    middles = [(a + b) / 2 for a, b in zip(grid, grid[1:], strict=False)]
    for n, (begin, end) in enumerate(zip([-6.5, *middles], [*middles, 6.5], strict=True)):
        drawing.rect(across(begin), 236, across(end) - across(begin) - 1, 16, "blue", opacity=0.5 if n % 2 else 0.2)
    drawing.text(16, 274, "Each stripe is rounded to the value above it; what is beyond", "dim")
    drawing.text(16, 291, "6 becomes 6. Numbers above the bars are percent.", "dim")
    return drawing
