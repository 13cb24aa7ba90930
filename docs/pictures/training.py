"""Pictures of chapter 14: a packed row and what is learned of it, the course of a training, and Muon."""

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
from runs import name, tokenizer
from style import Drawing, picture

from train import rows, tasks

LOG = Path(__file__).resolve().parent.parent.parent / "train" / "log.jsonl"
COLORS = ("blue", "green")


@picture("training-row")
def training_row():
    tokens, _, groups, learn = rows.row(random.Random("a row"), tokenizer(), 640,
                                         setting=tasks.Setting("medium", "2026-01-01"))
    first = next(n for n, learned in enumerate(learn) if learned)
    group = groups[first]
    ids = [n for n in range(len(tokens)) if groups[n] == group][:78]
    drawing = Drawing(356, "A row of training: one system message, several conversations, padding, and what is learned",
                      f"A bar of 640 tokens: a system message of {groups.count(0)}, then {max(groups)} conversations, "
                      "then padding. A second bar marks the tokens on which a loss is taken: what the assistant "
                      "says. Below, the beginning of one conversation token by token, with the learned ones marked.")
    left, width = 16, 428
    drawing.text(left, 26, "One row of 640 tokens", bold=True)
    def x_of(n):
        return left + width * n / len(tokens)
    for g in range(-1, max(groups) + 1):
        place = [n for n, other in enumerate(groups) if other == g]
        if place:
            color = "line" if g == -1 else "violet" if g == 0 else COLORS[g % 2]
            drawing.rect(x_of(place[0]), 38, x_of(place[-1] + 1) - x_of(place[0]) - 1, 24, color, opacity=0.45)
    drawing.text(left, 80, "system", "violet", 12)
    drawing.text(x_of(groups.index(1)), 80, f"{max(groups)} conversations, which do not see each other", "dim", 12)
    drawing.text(left + width, 80, "padding", "dim", 12, "end")
    for learned, run in itertools.groupby(range(len(learn)), learn.__getitem__):
        run = list(run)
        if learned:
            drawing.rect(x_of(run[0]), 92, x_of(run[-1] + 1) - x_of(run[0]), 12, "orange")
    drawing.line([(left, 105), (left + width, 105)])
    drawing.text(left, 122, f"orange: the {sum(learn)} tokens that are learned", "orange", 12)
    drawing.text(left, 160, f"The beginning of conversation {group}", bold=True)
    x, y = left, 172
    for n in ids:
        text = name(tokens[n])
        wide = 7 * len(text) + 6
        if x + wide > left + width:
            x, y = left, y + 24
        drawing.rect(x, y, wide, 18, "orange" if learn[n] else "line", opacity=0.3 if learn[n] else 0.35, radius=3)
        drawing.text(x + wide / 2, y + 13, text, size=11, anchor="middle", mono=True)
        x += wide + 2
    drawing.height = y + 38
    return drawing


@picture("training-curve")
def training_curve():
    lines = [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()]
    losses = [(line["tokens"] / 1e6, line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["tokens"] / 1e6, line["held_out"]) for line in lines if "held_out" in line]
    end = losses[-1][0]
    drawing = Drawing(460, "The loss falls while training goes on, and held-out problems are solved, effort by effort",
                      f"Above, the loss of the assistant's tokens over {end:.0f} million tokens, on a logarithmic "
                      f"scale, from {losses[0][1]:.1f} to {losses[-1][1]:.2f}. Below, the share of held-out problems "
                      "whose every token is the likeliest: high and medium effort rise to nearly all, low effort to "
                      "about a half.")
    left, width, height = 56, 380, 150
    def x_of(millions):
        return left + width * millions / end
    drawing.text(16, 24, "Loss of the assistant's tokens, in nats", bold=True)
    low, high = math.log(0.01), math.log(8)
    def y_of(loss):
        return 40 + height * (high - math.log(loss)) / (high - low)
    for mark in (5, 1, 0.1, 0.01):
        drawing.level(y_of(mark), left, left + width, mark)
    drawing.line([(x_of(n), y_of(max(loss, 0.01))) for n, loss in losses], "orange", 1.5)
    top = 256
    drawing.text(16, top - 20, "Held-out problems, word for word", bold=True)
    for percent in (0, 50, 100):
        drawing.level(top + height * (1 - percent / 100), left, left + width, f"{percent}%")
    for effort, color in zip(tasks.EFFORTS, ("green", "blue", "violet"), strict=True):
        points = []
        for millions, scores in held_out:
            right = [score[1] for key, score in scores.items() if key.endswith(effort)]
            points.append((x_of(millions), top + height * (1 - sum(right) / len(right))))
        drawing.line(points, color, 2)
        n, down, anchor = {"low": (-1, -8, "end"), "medium": (2, -8, "end"), "high": (4, 20, "start")}[effort]
        drawing.text(points[n][0], points[n][1] + down, effort, color, 12, anchor, bold=True)
    for millions in (0, 12, 24, 36, 48):
        drawing.text(x_of(millions), top + height + 20, millions, "dim", 12, "middle")
    drawing.text(left + width / 2, top + height + 40, "million tokens", "dim", 12, "middle")
    return drawing


def newton_schulz(x, steps):
    """The update of train/pretrain.py's `orthogonal`, on singular values: the same polynomial, `steps` times."""
    for _ in range(steps):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


@picture("muon")
def muon():
    drawing = Drawing(282, "What Muon does to the singular values of an update",
                      "Curves of the singular value after one, three and five Newton-Schulz steps, over the singular "
                      "value before, on a logarithmic scale from 0.001 to 1. The more steps, the smaller the values "
                      "that are brought near 1: after five steps, those from about 0.005 up.")
    left, top, width, height = 48, 44, 330, 190
    drawing.text(16, 26, "Singular values before and after", bold=True)
    for value in (0, 0.5, 1):
        drawing.level(top + height * (1 - value / 1.25), left, left + width, value)
    def x_of(value):
        return left + width * (1 + math.log10(value) / 3)
    for value in (0.001, 0.01, 0.1, 1):
        drawing.text(x_of(value), top + height + 18, value, "dim", 12, "middle")
    before = np.geomspace(0.001, 1, 201)
    shown = {0: ("none", "dim", 1), 1: ("1 step", "green", 1.5), 3: ("3 steps", "blue", 1.5),
             5: ("5 steps", "orange", 2.5)}
    for n, (steps, (label, color, thick)) in enumerate(shown.items()):
        after = newton_schulz(before, steps)
        points = [(x_of(a), top + height * (1 - b / 1.25)) for a, b in zip(before, after, strict=True)]
        drawing.line(points, color, thick)
        drawing.text(left + width + 10, top + 104 - 20 * n, label, color, 12, bold=steps > 0)
    drawing.text(left + width / 2, top + height + 38, "before, divided by the norm of all", "dim", 12, "middle")
    return drawing
