"""Rooflines (Williams, Waterman and Patterson, CACM 2009): what memory and arithmetic allow, and what is reached.

Chapter 10 has one for whole tokens, chapter 11 one for the rungs of bench/ladder.py. Both are drawn from the figures of
a run that the chapter shows, so that picture and text agree.
"""

import math
import re
from pathlib import Path

from style import Drawing, picture

CHAPTERS = Path(__file__).resolve().parent.parent


class Roofline(Drawing):
    """Logarithmic axes: FLOP per byte to the right, GFLOP/s upwards. `across` and `up` are (low, high)."""

    def __init__(self, height, title, description, across, up):
        super().__init__(height, title, description)
        self.across, self.up, self.left, self.right, self.top, self.bottom = across, up, 52, 444, 40, height - 84

    def x(self, intensity):
        low, high = map(math.log, self.across)
        return self.left + (math.log(intensity) - low) / (high - low) * (self.right - self.left)

    def y(self, rate):
        low, high = map(math.log, self.up)
        return self.bottom - (math.log(rate) - low) / (high - low) * (self.bottom - self.top)

    def axes(self, heading, marks, ticks):
        """Marks on the axis below: (intensity, [words, ...]); ticks on the left: rates."""
        for rate in ticks:
            self.line([(self.left - 4, self.y(rate)), (self.left, self.y(rate))], "dim")
            self.text(self.left - 8, self.y(rate) + 4, f"{rate:g}", "dim", 11, "end")
        for intensity, words in marks:
            x = self.x(intensity)
            self.line([(x, self.bottom), (x, self.bottom + 5)], "dim")
            for n, word in enumerate([f"{intensity:.{2 if intensity < 10 else 3}g}", *words]):
                self.text(x, self.bottom + 18 + 14 * n, word, "dim" if n else "ink", 11, "middle")
        self.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], "dim")
        self.text(12, 24, f"GFLOP/s {heading}", bold=True)
        self.text(self.right, self.height - 10, "FLOP per byte of weights", "dim", 12, "end")

    def plumb(self, intensity, bandwidth, peak):
        """From an intensity on the axis up to what the machine allows there."""
        x = self.x(intensity)
        self.line([(x, self.bottom), (x, self.y(min(bandwidth * intensity, peak)))], "line", dashed=True)

    def roof(self, bandwidth, peak, slope_words, roof_words):
        """The slope of a memory of `bandwidth` GB/s, and the roof of `peak` GFLOP/s, with their names beside them."""
        low, ridge = self.across[0], peak / bandwidth
        ends = [(self.x(low), self.y(low * bandwidth)), (self.x(ridge), self.y(peak))]
        self.line([*ends, (self.right, self.y(peak))], "ink", 2.5)
        (x0, y0), (x1, y1) = ends
        angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
        length = math.hypot(x1 - x0, y1 - y0)
        u, v = (x1 - x0) / length, (y1 - y0) / length
        self.text(x0 + 20 * u + 7 * v, y0 + 20 * v - 7 * u, slope_words, size=12, turn=angle)
        self.text(x1 + 6, self.y(peak) - 8, roof_words, size=12)


def bench_report():
    """The report of `python -m bench` that chapter 10 shows, as numbers: of its column gptoss.py, and the limits."""
    text = (CHAPTERS / "10-what-a-token-costs.md").read_text(encoding="utf-8")
    find = lambda pattern: [float(n) for n in re.search(pattern, text).groups()]  # noqa: E731
    memory, arithmetic = find(r"\nlimits +([\d.]+) GB/s of memory, ([\d.]+) GFLOP/s")
    read, flop = find(r"a token takes ([\d.]+) GB, ([\d.]+) GFLOP")
    tokens, prefill = find(r"\nprefill ([\d]+) tokens +([\d.]+) tokens/s")
    (decode,) = find(r"\ndecode after \d+ tokens +([\d.]+) tokens/s")
    return memory, arithmetic, read, flop, int(tokens), prefill, decode


def active_weights(c):
    """The weights that one decoded token meets."""
    N, Q, KV = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    layer = 2 * N * (Q + KV) + c.num_local_experts * N + c.num_experts_per_tok * 3 * N * c.intermediate_size
    return c.num_hidden_layers * layer + c.vocab_size * N


@picture("roofline")
def of_a_token():
    from bench.random_checkpoint import SHAPES

    memory, arithmetic, read, flop, tokens, prefill, decode = bench_report()
    c = SHAPES["20b"]
    unembedding, one_token = c.vocab_size * c.hidden_size, active_weights(c)  # weights
    other_experts = (c.num_local_experts - c.num_experts_per_tok) * 3 * c.hidden_size * c.intermediate_size
    prompt_bytes = read + c.num_hidden_layers * other_experts * 17 / 32 / 1e9  # a prompt uses all of them
    marks = [(2 * one_token / read / 1e9, ["1 token", "(decoding)"])]
    for T in (64, tokens):
        weights = T * (one_token - unembedding) + unembedding  # logits of the last token only
        marks.append((2 * weights / prompt_bytes / 1e9, [f"{T} tokens", "(prompt)"]))
    drawing = Roofline(
        400, "What one machine allows, and where decoding and a prompt lie",
        f"Logarithmic axes. A line rises with the memory's {memory:g} GB/s up to a roof of {arithmetic:g} "
        "GFLOP/s. Decoding lies at about 2 FLOP per byte, under the slope. Prompts of 64 and "
        f"{tokens} tokens lie far to the right, under the roof.", (0.5, 700), (10, 500))
    drawing.axes("of 20b on one machine", marks, (10, 20, 50, 100, 200))
    for intensity, _ in marks:
        drawing.plumb(intensity, memory, arithmetic)
    drawing.roof(memory, arithmetic, f"memory: {memory:g} GB/s", f"arithmetic: {arithmetic:g} GFLOP/s")
    ridge = arithmetic / memory
    drawing.circle(drawing.x(ridge), drawing.y(arithmetic), 4, "ink")
    drawing.text(drawing.x(ridge) + 8, drawing.y(arithmetic) + 20, f"ridge: {ridge:.1f}", "dim", 12)
    rate = decode * 2 * one_token / 1e9
    at = drawing.x(marks[0][0]), drawing.y(rate)
    drawing.circle(*at, 5.5, "orange")
    drawing.text(at[0] + 12, at[1] + 14, f"decoding: {decode:g} tokens/s,", "orange", 12, bold=True)
    drawing.text(at[0] + 12, at[1] + 30, f"{rate:.0f} GFLOP/s", "orange", 12)
    at = drawing.x(marks[-1][0]), drawing.y(prefill * flop)
    drawing.circle(*at, 5.5, "blue")
    drawing.text(drawing.right, at[1] - 30, f"prompt of {tokens}: {prefill:g} tokens/s,", "blue", 12, "end", bold=True)
    drawing.text(drawing.right, at[1] - 14, f"{prefill * flop:.0f} GFLOP/s", "blue", 12, "end")
    return drawing


def ladder(figures, matmul, at_once):
    """What bench.ladder.climb returns, on all threads and (small circles) on one."""
    from bench.ladder import KERNEL, LIMIT, PACKED, TOKENS

    most = max(matmul)
    memory, peak = figures[LIMIT][1][most] / 1e9, matmul[most] / 1e9
    speed = {name: max(rates.values()) * 2 / PACKED / 1e9 for name, (_, rates) in figures.items() if name != LIMIT}
    threads = f"{most} threads" if most > 1 else "1 thread"
    drawing = Roofline(
        540, "One product with four-bit weights in eleven ways, beside what the machine allows",
        "Logarithmic axes. Eleven points stand one above the other at 3.8 FLOP per byte, from plain Python, "
        f"{speed['plain Python']:.2g} GFLOP/s, to the model's kernel, {speed[KERNEL]:.3g}, close to the "
        f"line of the memory, {memory:.3g} GB/s. With {TOKENS} tokens at once the product reaches "
        f"{at_once[1] / 1e9:.3g} GFLOP/s, where float32 arithmetic has its roof at {peak:g}.",
        (0.5, 600), (0.15, 600))
    one, some = 2 / PACKED, 2 * TOKENS / PACKED
    words = f"on {threads}" + (" (small circles: on one)" if most > 1 else "")
    marks = (1, ["bf16,", "1 token"]), (one, ["4 bits,", "1 token"]), (some, ["4 bits,", f"{TOKENS} tokens"])
    drawing.axes(words, marks, (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500))
    for at in (1, one, some):
        drawing.plumb(at, memory, peak)
    drawing.roof(memory, peak, f"memory: {memory:.3g} GB/s", f"float32 products: {peak:.3g}")

    x, above = drawing.x(one), drawing.y(peak) + 4
    for name in sorted(speed, key=speed.get, reverse=True):
        color, rates = "blue" if name == KERNEL else "orange", figures[name][1]
        y = min(drawing.y(speed[name]), drawing.bottom - 12)
        above = max(above + 16, y)  # a column of labels, moved down where points are closer than letters are high
        if speed[name] < drawing.up[0]:
            drawing.line([(x, y - 8), (x, drawing.bottom - 2)], color, 2, arrow=True)
            drawing.text(x + 30, y + 4, f"{name}: {speed[name]:.3g}, far below", size=12)
            continue
        drawing.line([(x, y), (x + 18, above), (x + 26, above)], color, 0.8)
        for n, rate in rates.items():
            if n == max(rates):
                drawing.circle(x, y, 4.5, color)
            else:
                drawing.circle(x, drawing.y(rate * 2 / PACKED / 1e9), 2.8, "paper", color)
        bold = name == KERNEL
        drawing.text(x + 30, above + 4, f"{name}: {speed[name]:.3g}", color if bold else "ink", 12, bold=bold)
    drawing.circle(drawing.x(1), drawing.y(memory), 4.5, "ink")
    drawing.text(drawing.x(1) + 4, drawing.y(memory) + 22, f"{memory:.3g}", size=12, anchor="middle")
    at = drawing.x(some), drawing.y(at_once[1] / 1e9)
    drawing.circle(*at, 4.5, "blue")
    drawing.text(at[0] - 9, at[1] - 6, f"{TOKENS} tokens: {at_once[1] / 1e9:.3g}", "blue", 12, "end", bold=True)
    return drawing


@picture("ladder")
def of_the_chapter():
    from bench.ladder import read_report

    return ladder(*read_report((CHAPTERS / "11-the-kernels.md").read_text(encoding="utf-8")))
