"""Pictures of chapter 3: the bits of a bf16, how the residual stream grows, and what it would say after each layer."""

import numpy as np
from runs import conversation, model, name
from style import WIDTH, Drawing, picture

import gptoss


class Watched(gptoss.Model):
    """Keeps the stream that each half of a layer found and what it added: a list of (x, added), both [T, N]."""

    def hidden(self, ids, cache):
        self.halves = []
        return super().hidden(ids, cache)

    def attend(self, i, x, cos, sin, cache):
        return self.keep(x, super().attend(i, x, cos, sin, cache))

    def mlp(self, i, x):
        return self.keep(x, super().mlp(i, x))

    def keep(self, x, added):
        self.halves.append((x, added))
        return added


def halves():
    """(the watched model after reading the conversation, its ids, how many of them are the prompt's)."""
    prompt, reply = conversation()
    watched = model(kind=Watched)
    watched(prompt + reply)
    return watched, prompt + reply, len(prompt)


def rms(x):
    return float(np.sqrt(np.mean(x * x)))


@picture("stream-growth")
def growth():
    watched, _, first = halves()
    drawing = Drawing(316, "The size of the residual stream after each half of a layer, and of what was added",
                      "Bars: the root mean square of the stream, over the tokens of the reply. It begins close to "
                      "zero, grows with each addition through layers 0, 1 and 2, becomes smaller when the attention "
                      "of layer 3 is added, and ends as large as before. Beside each bar a narrow one shows the size "
                      "of what was added.")
    base, left, step, scale = 236, 36, 46.5, 3.3
    drawing.text(16, 26, "Root mean square of the stream (wide)", bold=True)
    drawing.text(16, 44, "and of what was just added to it (narrow)", bold=True)
    for value in (0, 20, 40):
        y = base - scale * value
        drawing.line([(left - 8, y), (WIDTH - 10, y)], "line")
        drawing.text(left - 12, y + 4, value, "dim", 11, "end")
    start, steps = watched.halves[0][0][first:], [(x[first:], added[first:]) for x, added in watched.halves]
    bars = [(rms(start), None, None)] + [(rms(x + added), rms(added), "green" if n % 2 else "blue")
                                         for n, (x, added) in enumerate(steps)]
    for n, (size, added, color) in enumerate(bars):
        x = left + step * n
        drawing.rect(x, base - scale * size, 24, scale * size, "orange")
        if added:
            drawing.rect(x + 26, base - scale * added, 10, scale * added, color)
        label = f"{size:.1f}" if size > 1 else f"{size:.2f}"
        drawing.text(x + 12, base - scale * size - 5, label, size=11, anchor="middle")
        below = "embedding" if not n else ("experts" if n % 2 == 0 else "attention")
        drawing.text(x + 21, base + 12, below, color or "dim", 11, "end", turn=-40)
    for layer in range(4):
        x = left + step * (2 * layer + 1)
        drawing.line([(x, 288), (x + 2 * step - 12, 288)], "dim", 1.2)
        drawing.text(x + step - 6, 304, f"layer {layer}", "dim", 12, "middle")
    return drawing


@picture("logit-lens")
def lens():
    watched, ids, first = halves()
    place = first + 13
    streams = [x[place] for x, _ in watched.halves[::2]] + [sum(part[place] for part in watched.halves[-1])]
    drawing = Drawing(304, "The digit after 12+30: 2+0= as the stream would give it after each layer",
                      "Five columns of bars, from the embedding to layer 3. At first a word that makes no sense is "
                      "the best. After layer 0 the digit 2 leads with other digits close behind, its share grows "
                      "with each layer, and after layer 3 it is certain.")
    drawing.text(16, 26, "What comes after 12+30: 2+0= ?", bold=True)
    drawing.text(16, 44, "The five best ids, if the model stopped there", "dim", 12)
    width, right = 78, name(ids[place + 1])
    for n, x in enumerate(streams):
        left = 16 + (width + 9.5) * n
        normed = gptoss.rms_norm(x[None], watched.norm, watched.config.rms_norm_eps)
        p = gptoss.softmax(gptoss.linear(normed, watched.unembedding)[0])
        for row, what in enumerate(("embedding" if n == 0 else "after", "only" if n == 0 else f"layer {n - 1}")):
            drawing.text(left, 72 + 15 * row, what, "dim", 12)
        for row, id in enumerate(np.argsort(-p, kind="stable")[:5]):
            y, color = 98 + 38 * row, "orange" if name(id) == right else "line"
            drawing.rect(left, y + 18, width, 8, "line", opacity=0.3)
            drawing.rect(left, y + 18, max(1, width * float(p[id])), 8, color, opacity=0.95)
            label = name(id) if len(name(id)) < 8 else name(id)[:7] + "…"
            drawing.text(left, y + 13, label, size=12, mono=True, bold=label == right)
            drawing.text(left + width, y + 13, f"{p[id]:.0%}", "dim", 11, "end")
    return drawing


@picture("bf16")
def bits():
    drawing = Drawing(196, "The 32 bits of 0.1 as float32, of which bf16 keeps the upper half",
                      "A row of 32 boxes: one bit of sign, eight of exponent, 23 of fraction. The first 16 are kept "
                      "by bf16: the sign, the exponent and seven bits of fraction. The lower 16 are dropped, and the "
                      "number is rounded.")
    value = np.float32(0.1)
    pattern, kept = int(value.view(np.uint32)), int(gptoss.float32_to_bf16(value[None])[0])
    rounded = float(gptoss.bf16_to_float32(np.uint16([kept]))[0])
    cell, left = 13.2, 18
    for top, title, digits in ((36, f"float32: {float(value):.10f}", f"{pattern:032b}"),
                               (122, f"bf16, the upper half: {rounded:.10f}", f"{kept:016b}")):
        drawing.text(left, top - 12, title, bold=True)
        for n, digit in enumerate(digits):
            color = "violet" if n == 0 else "blue" if n < 9 else "orange" if n < 16 else "line"
            drawing.rect(left + cell * n, top, cell - 1.5, 20, color, opacity=0.3)
            x = left + cell * (n + 0.5) - 0.7
            drawing.text(x, top + 14.5, digit, "ink" if n < 16 else "dim", 12, "middle", mono=True)
    drawing.text(left, 72, "sign", "violet", 12)
    drawing.text(left + cell * 5, 72, "exponent", "blue", 12, "middle")
    drawing.text(left + cell * 9.3, 72, "fraction", "orange", 12)
    drawing.text(left + cell * 24, 72, "what bf16 drops", "dim", 12, "middle")
    drawing.text(left, 164, "The lower half began with 1, so the upper half was rounded up:", "dim", 12)
    drawing.text(left, 182, "its last bit was 0 and became 1.", "dim", 12)
    return drawing
