"""The picture of the whole model, in the order in which the code runs, with the shapes of gpt-oss-20b."""

from style import WIDTH, Drawing, picture

from bench.random_checkpoint import SHAPES

SMALL, BIG = SHAPES["20b"], SHAPES["120b"]
STREAM = 44  # where the residual stream runs down
LEFT, RIGHT = 84, WIDTH - 24  # what a layer computes stands between these


def box(drawing, left, top, right, bottom, color, *lines):
    """A box with lines of text in its middle: the first is its name, the others are small print."""
    drawing.rect(left, top, right - left, bottom - top, color, color, 0.14, 5, 1.2)
    y = (top + bottom) / 2 + 4.5 - 8 * (len(lines) - 1)
    for n, words in enumerate(lines):
        drawing.text((left + right) / 2, y + 16 * n, words, "dim" if n else "ink", 11.5 if n else 13, "middle")


def plus(drawing, y, x=STREAM):
    drawing.circle(x, y, 11, "paper", "orange", 2)
    drawing.line([(x - 6, y), (x + 6, y)], "orange", 2)
    drawing.line([(x, y - 6), (x, y + 6)], "orange", 2)


def flow(drawing, *points, dashed=False, stroke="dim"):
    drawing.line(points, stroke, 1.4, dashed, arrow=True)


def attention_half(drawing, top):
    """From the norm at `top` to the plus; returns where that is."""
    c = SMALL
    q, k, v = (208, 278), (288, 358), (368, RIGHT)
    heads, kv_heads = f"{c.num_attention_heads} × {c.head_dim}", f"{c.num_key_value_heads} × {c.head_dim}"
    flow(drawing, (STREAM, top + 19), (LEFT, top + 19))
    box(drawing, LEFT, top, 168, top + 38, "line", "RMSNorm")
    flow(drawing, (168, top + 19), (q[0], top + 19))
    for (left, right), name, shape in ((q, "q", heads), (k, "k", kv_heads), (v, "v", kv_heads)):
        box(drawing, left, top, right, top + 38, "blue", name, shape)
    flow(drawing, (243, top + 38), (243, top + 58))
    flow(drawing, (323, top + 38), (323, top + 58))
    box(drawing, q[0], top + 58, k[1], top + 84, "blue", "RoPE, by position")
    flow(drawing, (323, top + 84), (323, top + 104))
    flow(drawing, (402, top + 38), (402, top + 104))
    box(drawing, k[0], top + 104, v[1], top + 144, "blue", "KV cache", "all tokens so far")
    flow(drawing, (243, top + 84), (243, top + 164))
    flow(drawing, (323, top + 144), (323, top + 164))
    flow(drawing, (402, top + 144), (402, top + 164))
    box(drawing, LEFT, top + 176, 156, top + 216, "violet", "sink", "one a head")
    flow(drawing, (156, top + 196), (174, top + 196))
    box(drawing, 174, top + 164, RIGHT, top + 230, "blue", "softmax of q · k and sink, times v",
        f"layers 0, 2, 4, ...: the last {c.sliding_window} keys", "layers 1, 3, 5, ...: all keys")
    flow(drawing, (305, top + 230), (305, top + 250))
    box(drawing, 174, top + 250, RIGHT, top + 278, "blue", f"linear, back to {c.hidden_size:,} numbers")
    flow(drawing, (174, top + 264), (STREAM + 11, top + 264))
    return top + 264


def experts_half(drawing, top):
    """The same for the experts."""
    c, cell = SMALL, 10.6
    E, K = c.num_local_experts, c.num_experts_per_tok
    chosen = (3, 9, 16, 22)
    middle = [LEFT + cell * (e + 0.5) for e in chosen]
    strip, end, side = top + 82, top + 174, LEFT + cell * E + 8
    flow(drawing, (STREAM, top + 20), (LEFT, top + 20))
    box(drawing, LEFT, top, 168, top + 40, "line", "RMSNorm")
    flow(drawing, (168, top + 20), (208, top + 20))
    box(drawing, 208, top, RIGHT, top + 40, "green", f"router: {E} logits, the best {K}",
        f"and a softmax over these {K}")
    bus = top + 62
    drawing.line([(126, top + 40), (126, bus)], "dim", 1.4)
    drawing.line([(middle[0], bus), (middle[-1], bus)], "dim", 1.4)
    for e in range(E):
        drawing.rect(LEFT + cell * e + 1, strip, cell - 2, 34, "green", None, 0.85 if e in chosen else 0.18, 1.5)
    for n, x in enumerate(middle):
        flow(drawing, (x, bus), (x, strip))
        flow(drawing, (x, strip + 34), (x, end))
        drawing.text(x + 5, strip + 64, f"× w{'₁₂₃₄'[n]}", size=12)
    flow(drawing, (LEFT + cell * 29.5, top + 40), (LEFT + cell * 29.5, strip), dashed=True, stroke="green")
    drawing.text(LEFT + cell * 29.5 - 5, top + 56, "choice", "green", 11.5, "end")
    box(drawing, LEFT, end, side - 20, end + 28, "green", "sum, weighted by the router")
    flow(drawing, (side + 2, top + 40), (side + 2, end + 14), (side - 20, end + 14), dashed=True, stroke="green")
    drawing.text(side - 4, strip + 64, "weights", "green", 11.5, "end")
    flow(drawing, (LEFT, end + 14), (STREAM + 11, end + 14))
    N, F = c.hidden_size, c.intermediate_size
    drawing.text(LEFT, end + 48, f"One of {E} experts ({BIG.num_local_experts} in 120b):", "dim", 11.5)
    drawing.text(LEFT, end + 64, f"linear to 2 × {F:,}, SwiGLU, linear back to {N:,}; in MXFP4", "dim", 11.5)
    return end + 14


@picture("architecture")
def architecture():
    c = SMALL
    N, V = f"{c.hidden_size:,}", f"{c.vocab_size:,}"
    drawing = Drawing(862, "gpt-oss: embedding, layers of attention and experts on a residual stream, unembedding",
                      "From the top down. Token ids pick rows of the embedding; these begin the residual stream, a "
                      "line that runs down the left side. In each layer attention reads the stream through an "
                      "RMSNorm, makes queries, keys and values, rotates queries and keys by their position, keeps "
                      "keys and values in the KV cache, and adds its result to the stream. Then a router reads the "
                      "normed stream and chooses four experts; these get the normed stream, not the router's output, "
                      "and the router's weights weigh their sum, which is added to the stream. After the last layer "
                      "come a norm and the unembedding, which gives a logit for each id.")
    drawing.text(16, 26, "Read it from the top down. The numbers are those of gpt-oss-20b.", "dim", 12)
    drawing.text(STREAM, 54, "T ids", anchor="middle")
    flow(drawing, (STREAM, 59), (STREAM, 74))
    box(drawing, 14, 74, 244, 104, "orange", "embedding: a row for each id")
    drawing.text(252, 94, f"{V} rows of {N}", "dim", 11.5)
    layer, last = 138, 772
    drawing.line([(STREAM, 104), (STREAM, last)], "orange", 5)
    drawing.text(STREAM + 12, 125, f"residual stream: {N} numbers for each token", "orange", 12)
    drawing.rect(10, layer, WIDTH - 20, 602, "none", "dim", None, 8)
    layers = f"one layer of {c.num_hidden_layers} ({BIG.num_hidden_layers} in 120b)"
    drawing.text(STREAM + 12, layer + 20, layers, bold=True)
    added = attention_half(drawing, layer + 34)
    plus(drawing, added)
    added = experts_half(drawing, added + 46)
    plus(drawing, added)
    drawing.text(STREAM + 12, last - 10, "and so on, layer after layer", "orange", 12)
    box(drawing, 14, last, 244, last + 30, "orange", "RMSNorm, then unembedding")
    drawing.text(252, last + 20, f"{V} rows of {N}", "dim", 11.5)
    flow(drawing, (STREAM, last + 30), (STREAM, last + 50))
    drawing.text(16, last + 68, f"T × {V} logits: after each token, one for every id")
    return drawing
