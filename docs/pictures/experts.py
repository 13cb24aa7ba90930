"""Pictures of chapter 6: the way through the experts, which of them tokens choose, and the curve of the gate."""

import math
from types import SimpleNamespace

import numpy as np
from runs import conversation, model, name
from style import WIDTH, Drawing, picture

import gptoss


def choices(ids):
    """What the router says while `ids` are read: (chosen [T, K], weights [T, K]) for each layer."""
    seen = []

    def route(logits, K):
        seen.append(gptoss.route(logits, K))
        return seen[-1]

    gptoss.load("nano", backend=SimpleNamespace(route=route))(ids)
    return seen


@picture("experts")
def way_through():
    c = model().config
    prompt, reply = conversation()
    layer, t = 2, len(prompt) + 13  # the = of 2+0=2
    chosen, weights = (rows[t] for rows in choices(prompt + reply)[layer])
    said = " and ".join(f"expert {e} with weight {w:.2f}" for e, w in zip(chosen, weights, strict=True))
    drawing = Drawing(372, f"One token's way through the experts of layer {layer}",
                      "From top to bottom. A row of the stream is normed. The normed row goes to the router and to the "
                      f"experts. The router chooses {said}. Only these compute. Their results, each times its weight, "
                      "are added to the stream.")
    E, left, step = c.num_local_experts, 172, 34
    middle = [left + step * e + 15 for e in range(E)]
    drawing.text(16, 26, f"Token {name((prompt + reply)[t])} of the thought, layer {layer}", bold=True)
    drawing.rect(16, 42, WIDTH - 32, 30, "orange", opacity=0.2, radius=5)
    drawing.text(WIDTH / 2, 62, f"its row of the residual stream: N = {c.hidden_size} numbers", anchor="middle")
    drawing.line([(84, 72), (84, 90)], "ink", 1.5, arrow=True)
    drawing.rect(16, 92, 136, 28, "line", opacity=0.3, radius=5)
    drawing.text(84, 111, "RMSNorm", anchor="middle")
    drawing.line([(84, 120), (84, 160)], "ink", 1.5, arrow=True)
    drawing.line([(84, 138), (max(middle[e] for e in chosen), 138)], "ink", 1.5)
    drawing.text(left, 128, "the normed row, the experts' input", "dim")
    drawing.rect(16, 162, 136, 62, "line", opacity=0.3, radius=5)
    for n, words in enumerate(("router", f"E = {E} scores", f"the K = {len(chosen)} best")):
        drawing.text(84, 180 + 18 * n, words, anchor="middle", bold=n == 0)
    for e in range(E):
        active = e in chosen
        drawing.rect(middle[e] - 15, 162, 30, 62, "green", opacity=0.45 if active else 0.08, radius=5)
        drawing.text(middle[e], 197, e, "ink" if active else "dim", anchor="middle", bold=active)
        if active:
            drawing.line([(middle[e], 138), (middle[e], 160)], "ink", 1.5, arrow=True)
    drawing.line([(84, 224), (84, 262), (max(middle[e] for e in chosen), 262)], "green", 1.5, dashed=True)
    drawing.text(94, 252, "weights", "green")
    for e, w in zip(chosen, weights, strict=True):
        drawing.line([(middle[e], 224), (middle[e], 334)], "ink", 1.5, arrow=True)
        drawing.circle(middle[e], 262, 15.5, "paper", "green", 1.5)
        drawing.text(middle[e], 266, f"{w:.2f}", size=11, anchor="middle")
    drawing.text(16, 300, "results, each times its weight", "dim")
    drawing.text(16, 318, "(all other experts compute nothing)", "dim")
    drawing.rect(16, 336, WIDTH - 32, 30, "orange", opacity=0.2, radius=5)
    drawing.text(WIDTH / 2, 356, "added to the row of the stream", anchor="middle")
    return drawing


@picture("router")
def router_table():
    c = model().config
    E, cell, row, left = c.num_local_experts, 22, 18, 62
    prompt, reply = conversation()
    ids, n = prompt + reply, len(prompt)
    seen, tokens = choices(ids), range(n + 3, n + 25)
    drawing = Drawing(88 + row * len(tokens), "Which experts the tokens of a thought choose in layers 0 and 2",
                      "Two tables with a row for each token and a column for each of eight experts; a square holds the "
                      "weight in percent. In layer 0 all digits go to expert 4 first, and operators and most spaces to "
                      "expert 3. In layer 2 the digits of results go to expert 0, other digits to experts 1 and 7.")
    for at, layer in ((left, 0), (left + cell * E + 24, 2)):
        drawing.text(at, 24, f"layer {layer}: expert", bold=True)
        for e in range(E):
            drawing.text(at + cell * e + cell / 2 - 1, 44, e, "dim", 12, "middle")
        chosen, weights = seen[layer]
        for k, t in enumerate(tokens):
            y = 52 + row * k
            if layer == 0:
                drawing.text(left - 8, y + 13, name(ids[t]), size=12, anchor="end", mono=True)
            for e in range(E):
                drawing.rect(at + cell * e, y, cell - 2, row - 2, "line", opacity=0.3)
            for e, w in zip(chosen[t].tolist(), weights[t].tolist(), strict=True):
                drawing.rect(at + cell * e, y, cell - 2, row - 2, "green", opacity=round(0.1 + 0.55 * w, 3))
                drawing.text(at + cell * e + cell / 2 - 1, y + 12, f"{100 * w:.0f}", size=11, anchor="middle")
    drawing.text(16, 76 + row * len(tokens), "Numbers are weights in percent; those of a row sum to 100.", "dim")
    return drawing


def axes(drawing, left, top, width, height, x, y, ticks):
    """A frame with a plot's coordinates; returns (across, up), which turn a value into a place."""
    def across(value):
        return left + (value - x[0]) / (x[1] - x[0]) * width

    def up(value):
        return top + height - (value - y[0]) / (y[1] - y[0]) * height

    drawing.line([(left, up(0)), (left + width, up(0))], "line")
    drawing.line([(across(0), top), (across(0), top + height)], "line")
    for value in ticks[0]:
        drawing.text(across(value), top + height + 16, f"{value:g}".replace("-", "−"), "dim", 11, "middle")
    for value in ticks[1]:
        drawing.text(left - 6, up(value) + 4, f"{value:g}".replace("-", "−"), "dim", 11, "end")
    return across, up


@picture("swiglu")
def gate_curve():
    limit = model().config.swiglu_limit
    drawing = Drawing(300, "The curve of the gate, with and without the clamp, and beside GELU",
                      "Left: gate times sigmoid of 1.702 gate, for gates from minus 4 to 11. It is near zero for "
                      "negative gates, and about the gate itself for positive ones. With the clamp it is level from 7 "
                      "on. Right: the same curve near zero. It lies on GELU, while SiLU, with 1 instead of 1.702, dips "
                      "deeper.")

    def curve(g, a=1.702):
        return g / (1 + math.exp(-a * g))

    def gelu(g):
        return g * (1 + math.erf(g / math.sqrt(2))) / 2

    across, up = axes(drawing, 34, 56, 190, 190, (-4, 11), (-1, 11), ((-4, 0, 7, 11), (0, 7, 11)))
    drawing.text(16, 24, "what gate becomes", bold=True)
    drawing.line([(across(g), up(curve(g))) for g in (7, 11)], "dim", 1.5, dashed=True)
    drawing.text(across(9.2), up(10.3), "no clamp", "dim", 12, "end")
    drawing.line([(across(g), up(curve(min(g, limit)))) for g in np.arange(-4, 11.01, 0.1)], "green", 2.5)
    drawing.text(across(11), up(3.4), "clamped at 7", "green", 12, "end")
    drawing.text(34 + 95, 288, "gate", "dim", 12, "middle")
    across, up = axes(drawing, 278, 56, 166, 190, (-4, 1), (-0.35, 0.45), ((-4, -2, 0, 1), (-0.2, 0, 0.2, 0.4)))
    drawing.text(250, 24, "the same near zero", bold=True)
    for draw, color, thick, dashed in ((lambda g: curve(g, 1), "dim", 1.5, True), (curve, "green", 3, False),
                                       (gelu, "ink", 1.2, True)):
        inside = [g for g in np.arange(-4, 1.001, 0.05) if draw(g) <= 0.45]
        drawing.line([(across(g), up(draw(g))) for g in inside], color, thick, dashed)
    drawing.text(across(-3.9), up(-0.29) + 16, "SiLU: gate · σ(gate)", "dim", 12)
    drawing.text(across(-3.9), up(0.30), "gate · σ(1.702 gate)", "green", 12)
    drawing.text(across(-3.9), up(0.22), "GELU, dashed on it", "ink", 12)
    drawing.text(278 + 83, 288, "gate", "dim", 12, "middle")
    return drawing
