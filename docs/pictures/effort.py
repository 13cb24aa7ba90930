"""Pictures of chapter 13: what effort buys, in the small model and in the published figures, and three replies."""

import re
from pathlib import Path

from runs import conversation, name, tokenizer
from style import Drawing, picture

CARD = Path(__file__).resolve().parent.parent.parent / "nano" / "README.md"
EFFORTS = ("low", "medium", "high")
PUBLISHED = {  # arXiv 2508.10925, table 3: right answers in percent at low, medium and high effort, without tools
    "AIME 2024, 120b": (56.3, 80.4, 95.8), "AIME 2024, 20b": (42.1, 80.0, 92.1),
    "GPQA Diamond, 120b": (67.1, 73.1, 80.1), "GPQA Diamond, 20b": (56.8, 66.0, 71.5)}


def measured():
    """The rows of the table in nano/README.md: {task: ((right in percent, tokens of thought), one for each effort)}."""
    rows = {}
    for line in CARD.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip(" *") for cell in line.split("|")[1:-1]]
        if len(cells) == 6 and "%" in cells[1]:
            right = [float(re.match(r"(\d+)%", cell)[1]) for cell in cells[1:4]]
            rows[cells[0]] = tuple(zip(right, (0.0, *map(float, cells[4:])), strict=True))
    return rows


@picture("effort")
def effort():
    rows = measured()
    drawing = Drawing(590, "Right answers by reasoning effort, measured in the small model and published for gpt-oss",
                      "Above, the small model: right answers over tokens of thought, a line for each task. Sums, "
                      "products and weekdays rise steeply, sorting and reversing do not. Below, the published figures "
                      "of gpt-oss on AIME 2024 and GPQA Diamond rise from low to high effort.")
    left, width, top, height = 48, 320, 44, 210
    drawing.text(16, 24, "The small model, held-out problems", bold=True)

    def frame(top):
        for percent in (0, 50, 100):
            drawing.level(top + height * (1 - percent / 100), left, left + width, f"{percent}%")

    frame(top)
    longest = max(length for row in rows.values() for _, length in row)
    shown = {"all": ("orange", 3), "product": ("blue", 1.5), "weekday": ("violet", 1.5), "sort": ("green", 1.5)}
    def place(right, length):
        return left + width * length / longest, top + height * (1 - right / 100)
    for task, row in sorted(rows.items(), key=lambda item: item[0] in shown):
        color, thick = shown.get(task, ("line", 1.5))
        points = [place(*point) for point in row]
        drawing.line(points, color, thick)
        for x, y in points:
            drawing.circle(x, y, 3.5 if task in shown else 2.5, color)
    for n, (task, (color, _)) in enumerate(shown.items()):
        x, y = place(*rows[task][-1])
        label, bold = ("all tasks", True) if task == "all" else (task, False)
        drawing.text(left + width + 10, top + 14 + 20 * n, label, color, 12, bold=bold)
    drawing.text(left + width, top + height + 20, f"{longest:.0f}", "dim", 12, "middle")
    drawing.text(left, top + height + 20, "0", "dim", 12, "middle")
    drawing.text(left + width / 2, top + height + 20, "tokens of thought", "dim", 12, "middle")

    top = 340
    drawing.text(16, top - 24, "gpt-oss, without tools (model card, table 3)", bold=True)
    frame(top)
    for (benchmark, figures), (color, thick) in zip(PUBLISHED.items(), (("orange", 3), ("orange", 1.5), ("blue", 3),
                                                                        ("blue", 1.5)), strict=True):
        points = [(left + 20 + (width - 90) * n / 2, top + height * (1 - right / 100))
                  for n, right in enumerate(figures)]
        drawing.line(points, color, thick)
        for x, y in points:
            drawing.circle(x, y, 3.5, color)
        drawing.text(points[-1][0] + 8, points[-1][1] + (8 if "20b" in benchmark else 0), benchmark, color, 12)
    for n, word in enumerate(EFFORTS):
        drawing.text(left + 20 + (width - 90) * n / 2, top + height + 20, word, "dim", 12, "middle")
    return drawing


@picture("three-thoughts")
def three_thoughts():
    question, rows = "What is 23 * 41?", []
    for word in EFFORTS:
        _, reply = conversation(question, word)
        rows.append((word, [(name(id), id in tokenizer().special_tokens.values()) for id in reply]))
    height = 40 + sum(44 + 20 * lines(row) for _, row in rows)
    drawing = Drawing(height, "The same question at low, medium and high effort, token by token",
                      "Three replies of the small model to 23 times 41, a box for each token. At low effort there is "
                      "only a final message, and it is wrong. At medium effort there is a thought. At high effort the "
                      "thought is longest and ends with a check.")
    drawing.text(16, 26, f"{question}  a box is a token", bold=True)
    y = 44
    for word, row in rows:
        drawing.text(16, y + 14, f"Reasoning: {word}, {len(row)} tokens", "orange", bold=True)
        y += 22
        for text, x, line, special in boxes(row):
            color, opacity = ("violet", 0.25) if special else ("blue", 0.14)
            drawing.rect(x, y + 20 * line, wide(text), 17, color, opacity=opacity, radius=3)
            drawing.text(x + wide(text) / 2, y + 20 * line + 13, text, "ink", 11, "middle", mono=True)
        y += 20 * lines(row) + 22
    return drawing


def wide(text):
    return 7 * len(text) + 6


def boxes(row):
    """Where each token goes: (text, x, line, special)."""
    x, line = 16, 0
    for text, special in row:
        if x + wide(text) > 448:
            x, line = 16, line + 1
        yield text, x, line, special
        x += wide(text) + 2


def lines(row):
    return 1 + max(line for _, _, line, _ in boxes(row))
