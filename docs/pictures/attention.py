"""Pictures of chapter 4: where two heads look, who sees whom, and how queries share keys."""

from runs import attention_weights, conversation, model, name
from style import WIDTH, Drawing, picture

CELL = 15


def head_map(drawing, ids, layer, head, rows, columns, top, caption):
    """What a head looks at: a row for each token of `rows`, a column for each of `columns`, and the sink."""
    weights, left = attention_weights(ids)[layer][head], 70
    drawing.text(16, top, caption, bold=True)
    top, sink_at = top + 74, left + CELL * len(columns) + 8
    for n, s in enumerate(columns):
        drawing.text(left + CELL * n + 11, top - 6, name(ids[s]), "dim", 11, mono=True, turn=-60)
    drawing.text(sink_at + 11, top - 6, "sink", "violet", 12, turn=-60, bold=True)
    for t in rows:
        y = top + CELL * (t - rows[0])
        drawing.text(left - 6, y + 12, name(ids[t]), size=12, anchor="end", mono=True)
        for x, p, color in [(left + CELL * n, weights[t, s], "blue") for n, s in enumerate(columns) if s <= t] + [
                (sink_at, weights[t, -1], "violet")]:
            drawing.rect(x, y, CELL - 1, CELL - 1, "line", opacity=0.35)
            if p > 0.01:
                drawing.rect(x, y, CELL - 1, CELL - 1, color, opacity=float(p))
    return top + CELL * len(rows)


@picture("attention")
def attention_maps():
    drawing = Drawing(634, "Where two heads look while the model writes 12+30: 2+0=2 1+3",
                      "Two maps of attention. Each row is a token that asks, each column a token that is looked at, "
                      "and the last column is the sink. The first head, in layer 2, looks at a token just before, or "
                      "gives all its weight to the sink: at 1, 3, 2 and 2. The second head, in layer 3, looks back at "
                      "the question while the model copies it, each time at the token that has to be written next.")
    prompt, reply = conversation()
    ids, n = prompt + reply, len(prompt)
    thought = range(n + 3, n + 19)  # 12+30: 2+0=2 1+3
    end = head_map(drawing, ids, 2, 2, thought, thought, 28, "Layer 2, head 2: a token just before, or the sink")
    end = head_map(drawing, ids, 3, 2, thought[:5], range(n - 12, n + 8), end + 44,
                   "Layer 3, head 2: what comes next in the question")
    drawing.text(16, end + 30, "A row is a token that asks; its weights sum to 1.", "dim")
    drawing.text(16, end + 48, "Empty places are the future, which nobody sees.", "dim")
    return drawing


@picture("mask")
def masks():
    c, T = model().config, 8
    drawing = Drawing(252, "Who sees whom: on a full layer, and on a sliding layer with a window of three",
                      "Two triangles of eight queries by eight keys. On a full layer each query sees itself and all "
                      "keys before. On a sliding layer with a window of three it sees itself and two keys before. "
                      "Both have the sink.")
    for left, caption, window in ((40, "full layer", T), (252, "sliding layer, W = 3", 3)):
        drawing.text(left, 26, caption, bold=True)
        for s in range(T):
            drawing.text(left + 18 * s + 8, 48, s, "dim", 11, "middle")
        drawing.text(left + 18 * T + 14, 48, "sink", "violet", 11, "middle", bold=True)
        for t in range(T):
            drawing.text(left - 8, 66 + 18 * t, t, "dim", 11, "end")
            for s in range(T):
                seen = s <= t and s > t - window
                color, opacity = ("blue", 0.85) if seen else ("line", 0.25)
                drawing.rect(left + 18 * s, 54 + 18 * t, 16, 16, color, opacity=opacity)
            drawing.rect(left + 18 * T + 6, 54 + 18 * t, 16, 16, "violet", opacity=0.85)
    drawing.text(40, 222, "Rows are queries, columns are keys.", "dim")
    drawing.text(40, 240, f"The small model has W = {c.sliding_window}, gpt-oss has W = 128.", "dim")
    return drawing


@picture("grouped-queries")
def grouped_queries():
    c = model().config
    H, G = c.num_attention_heads, c.num_key_value_heads
    drawing = Drawing(186, f"{H} query heads share {G} heads of keys and values",
                      f"{H} boxes for query heads above {G} boxes for key and value heads. Query heads 0 and 1 use "
                      "the first, 2 and 3 the second. Only keys and values are kept in the cache.")
    step = (WIDTH - 40) / H
    drawing.text(20, 26, "query heads: computed anew for each token", "dim")
    for h in range(H):
        x = 20 + step * h
        drawing.rect(x + 4, 38, step - 8, 34, "orange", opacity=0.2, radius=5)
        drawing.text(x + step / 2, 60, f"q, head {h}", anchor="middle")
        g = h // (H // G)
        drawing.line([(x + step / 2, 74), (20 + step * (H // G) * (g + 0.5), 108)], "dim", 1.5, arrow=True)
    for g in range(G):
        width = step * (H // G)
        drawing.rect(20 + width * g + 4, 112, width - 8, 34, "blue", opacity=0.2, radius=5)
        drawing.text(20 + width * (g + 0.5), 134, f"k and v, head {g}", anchor="middle")
    drawing.text(20, 170, "key/value heads: kept in the cache for every token", "dim")
    return drawing
