"""The picture of chapter 18: where two heads look while the small model checks a product by its digits."""

from runs import attention_weights, conversation, name
from style import Drawing, picture

HEADS = ((0, 3, "violet", "layer 0, head 3: the remainder before"),
         (2, 1, "blue", "layer 2, head 1: the digit to be added"))


@picture("check-mod-9")
def check_mod_9():
    prompt, reply = conversation("What is 23 * 41?", "high")
    ids = prompt + reply
    words = [name(id) for id in ids]
    end = next(n for n in range(len(ids) - 1, 0, -1) if words[n] == "7" and words[n + 1] == ".")  # of 943 is 0 4 7.
    first = end - 10
    shown = range(first, end + 1)
    drawing = Drawing(264, "Where two heads look during the check 943 is 0 4 7",
                      "The tokens 9 4 3 is 0 4 7 in a row. From the place before each new remainder, an arrow of "
                      "layer 0, head 3 goes to the remainder before, and one of layer 2, head 1 to the digit that is "
                      "added next.")
    weights, step = attention_weights(ids), 38
    drawing.text(16, 26, "The end of a check: 9, 4 and 3 added up, without nines", bold=True)
    def x_of(n):
        return 32 + step * (n - first)
    for n in shown:
        drawing.rect(x_of(n) - 15, 120, 30, 24, "line", opacity=0.4, radius=4)
        drawing.text(x_of(n), 137, words[n], anchor="middle", mono=True)
    # After these, a remainder comes next.
    asking = [n for n in shown if words[n] == "␣" and words[n - 1].isdigit() and n > first + 4]
    for up, (layer, head, color, caption) in zip((True, False), HEADS, strict=True):
        drawing.text(16, 52 if up else 226, caption, color, bold=True)
        for k, n in enumerate(asking):
            look = int(weights[layer][head, n, :-1].argmax())
            y, bend = (116, 88) if up else (148, 168 + 20 * k)
            drawing.line([(x_of(n), y), (x_of(n), bend), (x_of(look), bend), (x_of(look), y)], color, 2, arrow=True)
            share = f"{weights[layer][head, n, look]:.0%}"
            drawing.text((x_of(n) + x_of(look)) / 2, bend - 5, share, color, 12, "middle", bold=True)
    drawing.text(16, 250, "An arrow begins at the token that asks; the model writes the next one.", "dim", 12)
    return drawing
