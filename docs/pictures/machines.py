"""The picture of chapter 16: three ways to split a model between two devices."""

from style import Drawing, picture

LAYERS, EXPERTS = 4, 4
COLORS = "blue", "green"  # of the two devices
WIDE, HIGH, ATTENTION, EXPERT = 132, 50, 34, 15  # units: a layer, and the boxes in it


def boxes(split, i):
    """What layer i has on each device: (device, left, top, width, height, what is written there), inside the layer."""
    experts = [(52 + (EXPERT + 4) * e, str(e)) for e in range(EXPERTS)]
    if split == "tensor":
        for left, width, words in [(6, ATTENTION, "att"), *((left, EXPERT, words) for left, words in experts)]:
            for device in range(2):
                yield device, left + width / 2 * device, 8, width / 2 - 1, 34, ""
            yield None, left, 8, width, 34, words
    elif split == "pipeline":
        for left, width, words in [(6, ATTENTION, "att"), *((left, EXPERT, words) for left, words in experts)]:
            yield i // (LAYERS // 2), left, 8, width, 34, words
    else:
        for device in range(2):
            yield device, 6, 8 + 18 * device, ATTENTION, 16, "att"
        for e, (left, words) in enumerate(experts):
            yield e // (EXPERTS // 2), left, 8, EXPERT, 34, words


@picture("three-splits")
def three_splits():
    drawing = Drawing(374, "Three ways to split a model between two devices",
                      "Three drawings of the same four layers, each with a box for attention and four boxes for "
                      "experts. Tensor parallel: every box is cut in two, a half for each device. Pipeline parallel: "
                      "the first two layers are on one device, the others on the second. Expert parallel: each device "
                      "has two of the four experts of every layer, and a copy of the attention.")
    for n, color in enumerate(COLORS):
        drawing.rect(16 + 130 * n, 16, 14, 14, color, opacity=0.75, radius=3)
        drawing.text(36 + 130 * n, 28, f"on device {n}")
    travels = {"tensor": ("a sum", "after attention", "and after experts"),
               "pipeline": ("the stream,", "from one device", "to the next"),
               "expert": ("tokens,", "to their experts", "and back")}
    for column, (split, lines) in enumerate(travels.items()):
        x = 16 + (WIDE + 16) * column
        drawing.text(x + WIDE / 2, 58, split, anchor="middle", bold=True)
        for i in range(LAYERS):
            y = 70 + (HIGH + 8) * i
            drawing.rect(x, y, WIDE, HIGH, stroke="line", radius=5)
            for device, left, top, width, height, words in boxes(split, i):
                if device is not None:
                    drawing.rect(x + left, y + top, width, height, COLORS[device], opacity=0.75)
                if i == 0:
                    middle = x + left + width / 2, y + top + height / 2 + 4
                    drawing.text(*middle, words, "paper", 12, "middle", bold=True)
        for n, line in enumerate(lines):
            drawing.text(x + WIDE / 2, 322 + 17 * n, line, "dim", 12, "middle")
    return drawing
