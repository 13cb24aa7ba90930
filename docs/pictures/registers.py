"""Pictures of chapter 11 and of the appendix on vectors: a register, nibbles unpacked, tiles, and what a lane holds."""

import numpy as np
from runs import model
from style import Drawing, picture

from bench.random_checkpoint import SHAPES
from checkpoint import E2M1


def cells(drawing, x, y, width, height, words, color, opacity=0.22, size=12, mono=True):
    """A row of cells with words in them."""
    for n, word in enumerate(words):
        drawing.rect(x + n * width, y, width - 2, height, color, opacity=opacity, radius=3)
        middle = x + n * width + width / 2 - 1
        drawing.text(middle, y + height / 2 + size / 3, word, size=size, anchor="middle", mono=mono)


@picture("register")
def register():
    drawing = Drawing(
        330, "One number at a time, and eight at a time",
        "Above, a multiplication of two single numbers. Below, two registers of eight numbers each, "
        "multiplied lane by lane with one instruction. At the bottom, how many numbers of which type a "
        "register of 256 and of 512 bits holds.")
    x = [1, 2, 3, 4, 5, 6, 7, 8]
    w = [2, 0, 1, -1, 3, 1, 0, 2]
    drawing.text(16, 26, "One instruction on single numbers", bold=True)
    cells(drawing, 16, 36, 50, 26, [w[0]], "green")
    drawing.text(76, 54, "×", anchor="middle")
    cells(drawing, 88, 36, 50, 26, [x[0]], "orange")
    drawing.text(148, 54, "=", anchor="middle")
    cells(drawing, 160, 36, 50, 26, [w[0] * x[0]], "blue")
    drawing.text(16, 96, "One instruction on vectors of eight lanes", bold=True)
    rows = ("", w, "green"), ("×", x, "orange"), ("=", np.multiply(w, x), "blue")
    for n, (sign, numbers, color) in enumerate(rows):
        drawing.text(24, 124 + 32 * n, sign, anchor="middle")
        cells(drawing, 36, 106 + 32 * n, 50, 26, numbers, color)
    for lane in range(8):
        drawing.text(36 + 50 * lane + 24, 216, f"lane {lane}", "dim", 11, "middle")
    drawing.text(16, 248, "What a register holds", bold=True)
    for n, (name, bits, color) in enumerate((("float32", 32, "orange"), ("int16", 16, "blue"), ("int8", 8, "green"))):
        y = 258 + 23 * n
        drawing.text(16, y + 14, name, size=12, mono=True)
        for k in range(256 // bits):
            drawing.rect(84 + k * bits, y, bits - 1.5, 17, color, opacity=0.35, radius=2)
        drawing.text(348, y + 13, f"{256 // bits} or {512 // bits}", size=12)
    drawing.text(444, 248, "of 256 or 512 bits", "dim", 11, "end")
    return drawing


@picture("nibbles")
def nibbles():
    blocks = model().layers[0].gate_up.blocks[0, 0, 0]  # the small model's first block
    some = [int(byte) for byte in blocks[:4]]
    value = lambda code: f"{E2M1[code]:g}"  # noqa: E731
    drawing = Drawing(
        284, "Packed bytes become a register of even and one of odd weights",
        f"The first four bytes of the small model's first block, {', '.join(f'{b:02x}' for b in some)}. "
        "The low half of each byte goes into one register, the high half into another. A table of sixteen "
        "entries turns the codes into numbers. The vector x is put into the same order beforehand.")
    drawing.text(16, 26, "Four packed bytes (two weights each)", bold=True)
    for n, byte in enumerate(some):
        x = 100 + 86 * n
        drawing.rect(x, 36, 80, 28, "ink", opacity=0.08, radius=3)
        drawing.text(x + 24, 55, f"{byte >> 4:x}", "violet", 15, "middle", mono=True, bold=True)
        drawing.text(x + 56, 55, f"{byte & 15:x}", "green", 15, "middle", mono=True, bold=True)
        drawing.text(x + 40, 80, f"w{2 * n + 1}, w{2 * n}", "dim", 11, "middle")
    for row, (words, shift, color, first) in enumerate((("& 15", 0, "green", 0), (">> 4", 4, "violet", 1))):
        y = 98 + 96 * row
        drawing.text(16, y + 17, "low" if shift == 0 else "high", color, 12, bold=True)
        drawing.text(16, y + 49, "table", "dim", 12)
        drawing.text(16, y + 74, "times", "dim", 12)
        drawing.text(92, y + 17, words, color, 12, "end", mono=True)
        codes = [byte >> shift & 15 for byte in some]
        cells(drawing, 100, y, 86, 24, [f"{code:x}" for code in codes], color)
        cells(drawing, 100, y + 32, 86, 24, [value(code) for code in codes], color)
        for n in range(4):
            drawing.text(100 + 86 * n + 42, y + 74, f"x{2 * n + first}", "orange", 12, "middle", mono=True)
    return drawing


@picture("tile")
def tile():
    c = SHAPES["20b"]
    drawing = Drawing(
        352, "A tile of sixteen rows of weights meets four tokens",
        "Sixteen rows of weights, converted to float32, lie side by side as columns of a tile. One line of "
        "the tile, sixteen weights, is multiplied by the same input of four tokens, and added to four vectors "
        "of sixteen sums, which stay in registers.")
    lanes, left, step = 16, 128, 20
    drawing.text(16, 26, f"The tile: 16 rows of weights side by side, {c.hidden_size:,} lines", bold=True)
    for n in range(5):
        for r in range(lanes):
            opacity = 0.55 if n == 2 else 0.16
            drawing.rect(left + step * r, 52 + 20 * n, step - 2, 18, "green", opacity=opacity, radius=2)
        drawing.text(left - 8, 66 + 20 * n, f"input {n}", "ink" if n == 2 else "dim", 11, "end")
    for r in (0, 15):
        drawing.text(left + step * r + 9, 46, f"row {r}", "dim", 11, "middle")
    drawing.text(left + 8 * step, 166, "⋮", "dim", 13, "middle")
    drawing.line([(left + 8 * step, 176), (left + 8 * step, 202)], "dim", 1.5, arrow=True)
    drawing.text(16, 192, "one load serves four tokens:", "dim", 12)
    for t in range(4):
        y = 214 + 26 * t
        drawing.text(16, y + 15, f"x[{t}, 2] ×", "orange", 12, mono=True, bold=True)
        for r in range(lanes):
            drawing.rect(left + step * r, y, step - 2, 20, "blue", opacity=0.3, radius=2)
        drawing.text(left - 8, y + 15, "+=", "dim", 12, "end", mono=True)
    drawing.text(16, 338, "Four registers hold 64 sums: 4 tokens × 16 rows of weights.", "dim", 12)
    return drawing


@picture("lanes")
def lanes():
    drawing = Drawing(
        430, "What a lane holds: for one token, and for many",
        "For one token, a register holds 32 weights of one row, and x lies beside them; the eight sums belong "
        "to the same row and are added up at the end. For many tokens, a register holds four weights of each "
        "of eight rows, and the same four numbers of x stand in all lanes; each sum belongs to a row of its "
        "own.")
    left, step = 76, 46
    few = ("Numbers are the elements' places in a block: lanes 0–3",
           "hold block 0, lanes 4–7 block 1. At the row's end the", "eight sums are added up, across lanes.")
    several = ("Each lane holds one row's sum, and is multiplied by that",
               "row's scale. Nothing is added across lanes.")
    for top, caption, lines in ((26, "One token: a register has weights of one row", few),
                                (226, "Many tokens: a lane for each row", several)):
        drawing.text(16, top, caption, bold=True)
        many = lines is several
        for n, (name, color) in enumerate((("weights", "green"), ("x", "orange"), ("sums", "blue"))):
            y = top + 14 + 36 * n
            drawing.text(left - 8, y + 18, name, size=12, anchor="end")
            for lane in range(8):
                middle = left + step * lane + step / 2 - 1
                drawing.rect(left + step * lane, y, step - 3, 28, color, opacity=0.2, radius=3)
                if color == "blue":
                    words = f"row {lane}" if many else "row 0"
                elif color == "orange":
                    words = "0 2 4 6" if many else f"{8 * lane % 32}…{8 * lane % 32 + 6}"
                else:
                    words = f"r{lane}" if many else f"{8 * lane % 32}…{8 * lane % 32 + 6}"
                    if many:
                        drawing.text(middle, y + 24, "0 2 4 6", size=11, anchor="middle")
                drawing.text(middle, y + (12 if many and color == "green" else 18), words, size=11, anchor="middle")
        y = top + 14 + 36 * 3 + 14
        for n, line in enumerate(lines):
            drawing.text(16, y + 16 * n, line, "dim", 12)
    drawing.text(16, 416, "The register with the odd elements (1 3 5 7, …) is treated alike.", "dim", 12)
    return drawing
