"""Pictures of chapter 8: five logits through the filters, and the cache that grows and is rewound."""

from os.path import commonprefix

import numpy as np
from runs import DATE, conversation, model, name, tokenizer
from style import WIDTH, Drawing, picture

import gptoss
import harmony

LOGITS, LETTERS = np.array([3.0, 2.0, 1.0, 0.0, -1.0]), "abcde"
PANELS = (
    ("temperature 1", {}), ("top-k: k = 3", {"top_k": 3}),
    ("temperature 0.5", {"temperature": 0.5}), ("top-p: p = 0.8", {"top_p": 0.8}),
    ("temperature 2", {"temperature": 2.0}), ("min-p: 0.04", {"min_p": 0.04}),
)


@picture("sampling")
def sampling():
    drawing = Drawing(470, "Five logits through six settings: the probabilities from which an id is drawn",
                      "Six small bar charts of the same five ids, a to e, whose logits are 3, 2, 1, 0 and -1. A "
                      "temperature of 0.5 makes the tallest bar taller, a temperature of 2 makes all bars more alike. "
                      "Top-k with k = 3 removes d and e, top-p with p = 0.8 removes c, d and e, and min-p of 0.04 "
                      "removes e. What remains grows to sum to 1.")
    before, column, row = gptoss.softmax(LOGITS), WIDTH / 2, 146
    for n, (title, settings) in enumerate(PANELS):
        left, bottom = 22 + column * (n % 2), 134 + row * (n // 2)
        drawing.text(left, bottom - 104, title, bold=True)
        drawing.line([(left, bottom), (left + 190, bottom)], "dim")
        for i, p in enumerate(gptoss.softmax(gptoss.filter_logits(LOGITS, **settings))):
            x = left + 4 + 38 * i
            if p:
                drawing.rect(x, bottom - 90 * p, 30, 90 * p, "orange", opacity=0.85)
                drawing.text(x + 15, bottom - 90 * p - 4, f"{p:.2f}", size=11, anchor="middle")
            else:
                drawing.rect(x, bottom - 90 * before[i], 30, 90 * before[i], stroke="dim")
                drawing.text(x + 15, bottom - 90 * before[i] - 4, "out", "dim", 11, "middle")
            drawing.text(x + 15, bottom + 15, LETTERS[i], "dim", anchor="middle", mono=True)
    drawing.text(22, 460, "Logits 3, 2, 1, 0, −1. Outlines: the ids that are ruled out.", "dim")
    return drawing


@picture("cache")
def cache_rewound():
    prompt, reply = conversation()
    cache = model().new_cache()
    list(gptoss.generate(model(), prompt, temperature=0, cache=cache))
    room, read, held = cache.layers[0].shape[2], cache.length, prompt + reply
    said = [harmony.Message("system", [harmony.SystemContent(reasoning_effort="medium", conversation_start_date=DATE)]),
            harmony.Message("user", "What is 12 + 30?"), *harmony.parse(reply, tokenizer(), role="assistant"),
            harmony.Message("user", "What is 23 + 45?")]
    second = harmony.render(said, tokenizer())
    known = len(commonprefix([held, second]))
    drawing = Drawing(386, "The cache while a reply is written, and when the next question comes",
                      f"Four strips with room for {room} tokens. First {len(prompt)} slots are filled by the prompt. "
                      f"Then {read} are in use, because the reply was added token by token. For the next question the "
                      f"cache is rewound to {known} tokens, the part that both prompts share. Then the rest is read, "
                      f"up to {len(second)} tokens.")
    left, unit = 20, (WIDTH - 40) / room
    states = (
        (f"1. The prompt is read at once: {len(prompt)} tokens.", [(len(prompt), 0.85)], 0),
        (f"2. The reply is added one by one, up to {read} tokens.", [(len(prompt), 0.85), (read, 0.4)], 0),
        (f"3. The next prompt is the same for {known} tokens: rewind.", [(known, 0.85)], read),
        (f"4. The rest of it is read, up to {len(second)} tokens.", [(known, 0.85), (len(second), 0.4)], 0),
    )
    for n, (caption, parts, stale) in enumerate(states):
        y, start = 40 + 84 * n, 0
        drawing.text(left, y - 10, caption, bold=True)
        drawing.rect(left, y, unit * room, 26, stroke="dim")
        for end, opacity in parts:
            drawing.rect(left + unit * start, y, unit * (end - start), 26, "blue", opacity=opacity)
            start = end
        for t in range(parts[0][0], start):  # what came in the last step, token by token in the reply
            if n == 1:
                drawing.line([(left + unit * t, y), (left + unit * t, y + 26)], "paper", 0.7)
        if stale:
            drawing.rect(left + unit * start, y, unit * (stale - start), 26, "line", opacity=0.5)
            difference = f"held: {name(held[known])}   asked: {name(second[known])}"
            drawing.text(left + unit * start + 4, y + 42, difference, "dim", 12)
        elif n == 0:
            drawing.text(left + unit * room, y + 42, f"room for {room}", "dim", 12, "end")
        if n == 2:
            drawing.text(left + unit * (start + stale) / 2, y + 17, "dropped", size=12, anchor="middle")
    drawing.text(left, 356, "A slot holds a key and a value for every layer.", "dim")
    drawing.text(left, 374, "After the reply, its thoughts are no longer part of the prompt.", "dim")
    return drawing
