"""Pictures of chapter 5: pairs on their circles, how YaRN slows them, and what three heads make of the distance."""

import math
from dataclasses import replace

import numpy as np
from runs import conversation, model
from style import Drawing, picture

import gptoss
from bench.random_checkpoint import SHAPES


@picture("rope-circles")
def circles():
    frequencies, pairs = model().frequencies, (0, 4, 9)
    drawing = Drawing(232, "Three pairs of a head and how far they turn from token to token",
                      "Three circles with a dot for each of the positions 0 to 6. The fast pair turns by a radian a "
                      "token and is once around after six tokens. The second is a twelfth of the way around by then. "
                      "The slow pair has hardly moved.")
    radius, middle = 58, 112
    for n, pair in enumerate(pairs):
        x, frequency = 80 + 150 * n, float(frequencies[pair])
        drawing.text(x, 28, f"pair {pair}", anchor="middle", bold=True)
        drawing.circle(x, middle, radius, stroke="line")
        for position in range(7):
            angle = position * frequency
            end = (x + radius * math.cos(angle), middle - radius * math.sin(angle))
            drawing.line([(x, middle), end], "blue" if position else "orange", 1.2)
            drawing.circle(*end, 4 if position else 5, "blue" if position else "orange")
            if n == 0 or n == 1 and position in (0, 6):
                beside = (x + (radius + 13) * math.cos(angle), middle - (radius + 13) * math.sin(angle) + 4)
                drawing.text(*beside, position, size=12, anchor="middle")
        if n == 2:
            drawing.text(x + radius - 8, middle - 10, "0 to 6", size=12, anchor="end")
        drawing.text(x, 204, f"{frequency:.4f} radians a token", "dim", 12, "middle")
        drawing.text(x, 221, f"a turn in {2 * math.pi / frequency:,.0f} tokens", "dim", 12, "middle")
    return drawing


def ramp(drawing, config, caption, top):
    """Tokens that a turn takes for each pair, without and with YaRN, on a logarithmic scale."""
    pairs, L = config.head_dim // 2, config.rope_scaling["original_max_position_embeddings"]
    plain, _ = gptoss.rope_frequencies(replace(config, rope_scaling=None))
    stretched, _ = gptoss.rope_frequencies(config)
    left, width, height = 72, 360, 150
    highest = math.log10(4 * math.pi / float(stretched[-1]))

    def place(pair, tokens):
        return left + 8 + (width - 16) * pair / (pairs - 1), top + 20 + height * (1 - math.log10(tokens) / highest)

    scaling = config.rope_scaling
    low, high = (pairs * math.log(L / (2 * math.pi * scaling[turns])) / math.log(config.rope_theta)
                 for turns in ("beta_fast", "beta_slow"))
    (x_low, _), (x_high, _) = place(low, 1), place(high, 1)
    drawing.text(16, top, f"{caption}: {pairs} pairs, bounds {low:.2f} and {high:.2f}", bold=True)
    drawing.rect(x_low, top + 20, x_high - x_low, height, "blue", opacity=0.1)
    drawing.text((x_low + x_high) / 2, top + height + 14, "blended", "blue", 12, "middle")
    drawing.text((left + x_low) / 2, top + height + 14, "kept", "dim", 12, "middle")
    slowed = f"slowed {scaling['factor']:.0f} times"
    drawing.text((x_high + left + width) / 2, top + height + 14, slowed, "dim", 12, "middle")
    for tokens in (L / scaling["beta_fast"], L, L * scaling["factor"]):
        y = place(0, tokens)[1]
        drawing.line([(left, y), (left + width, y)], "line", 1, dashed=True)
        drawing.text(left - 6, y + 4, f"{tokens:,.0f}", "dim", 11, "end")
    for pair in range(pairs):
        (x, y), (_, y_new) = (place(pair, 2 * math.pi / float(frequencies[pair])) for frequencies in (plain, stretched))
        drawing.line([(x, y), (x, y_new)], "blue", 1)
        drawing.circle(x, y, 2.6, "paper", "dim", 1.2)
        drawing.circle(x, y_new, 3, "blue")
        if pair % 4 == 0 or pair == pairs - 1:
            drawing.text(x, top + height + 36, pair, "dim", 11, "middle")
    drawing.text(left + width / 2, top + height + 54, "pair", "dim", 12, "middle")
    return top + height + 54


@picture("yarn")
def yarn():
    drawing = Drawing(558, "How many tokens a turn takes for each pair, without and with YaRN",
                      "Two charts, for gpt-oss-20b and for the small model. Each pair has a hollow dot, its turn "
                      "without YaRN, and a filled dot, its turn with it. Fast pairs have both in one place. Slow "
                      "pairs lie the whole factor higher. Between the two bounds the distance grows from pair to "
                      "pair.")
    drawing.text(16, 24, "Tokens for one turn: without YaRN ○, with YaRN ●", "ink", 13)
    end = ramp(drawing, SHAPES["20b"], "gpt-oss-20b", 54)
    end = ramp(drawing, model().config, "the small model", end + 36)
    drawing.text(16, end + 30, "Dashed lines: a 32nd of the original context, the context,", "dim", 12)
    drawing.text(16, end + 46, "and the context that it is stretched to.", "dim", 12)
    return drawing


def mean_vectors():
    """{(layer, head): (mean query of the reply's tokens, mean key of all tokens)}, before they are rotated."""
    caught, (prompt, reply) = [], conversation()

    class Watching:
        @staticmethod
        def rotate(x, cos, sin):
            caught.append(x)
            return gptoss.rotate(x, cos, sin)

    watched = gptoss.load("nano", backend=Watching)
    watched(prompt + reply)
    c = watched.config
    group = c.num_attention_heads // c.num_key_value_heads
    vectors = {}
    for layer in range(c.num_hidden_layers):
        k, q = caught[2 * layer : 2 * layer + 2]  # keys are rotated first
        for head in range(c.num_attention_heads):
            vectors[layer, head] = (q[len(prompt):, head].mean(axis=0), k[:, head // group].mean(axis=0))
    return vectors


@picture("score-over-distance")
def score_over_distance():
    drawing = Drawing(290, "The score of an average query and an average key, over their distance, for three heads",
                      "Three curves. That of layer 2, head 2 has a sharp peak one token back. That of layer 2, head "
                      "1 peaks three tokens back. That of layer 3, head 2 is nearly flat: this head does not care "
                      "how far a key is away.")
    vectors, m, distances = mean_vectors(), model(), range(33)
    left, top, width, height, low, high = 44, 66, 396, 170, -20, 12
    drawing.text(16, 26, "Score of an average query with an average key", bold=True)
    drawing.text(16, 44, "that is so many tokens back", bold=True)
    for value in (10, 0, -10, -20):
        y = top + height * (high - value) / (high - low)
        drawing.line([(left, y), (left + width, y)], "line")
        drawing.text(left - 6, y + 4, value, "dim", 11, "end")
    for distance in range(0, 33, 4):
        drawing.text(left + width * distance / 32, top + height + 18, distance, "dim", 11, "middle")
    drawing.text(left + width / 2, top + height + 38, "distance in tokens", "dim", 12, "middle")
    for layer, head, color, (x, y), words in ((2, 2, "blue", (54, 228), "layer 2, head 2: one back"),
                                              (2, 1, "orange", (206, 115), "layer 2, head 1: three back"),
                                              (3, 2, "green", (238, 72), "layer 3, head 2: any distance")):
        q, k = vectors[layer, head]
        turned = gptoss.rotate(np.repeat(q[None, None], len(distances), axis=0), *m.rope_tables(0, len(distances)))
        scores = turned[:, 0] @ gptoss.rotate(k[None, None], *m.rope_tables(0, 1))[0, 0] / math.sqrt(m.config.head_dim)
        points = [(left + width * d / 32, top + height * (high - float(s)) / (high - low))
                  for d, s in zip(distances, scores, strict=True)]
        drawing.line(points, color, 2)
        for point in points[:8]:
            drawing.circle(*point, 2.6, color)
        drawing.text(x, y, words, color, 12)
    return drawing
