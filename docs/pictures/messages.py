"""Pictures of chapter 2: a conversation as its tokens, the thoughts that the model sees again, and the parser."""

from runs import conversation, name, tokenizer
from style import WIDTH, Drawing, picture

import harmony
from harmony import Message

LETTER, LINE = 7.3, 25
KINDS = {"special": ("ink", 1), "header": ("orange", 0.2), "content": ("blue", 0.15)}


def kinds(ids):
    """(id, kind) of each token: a special one, a word of a header, or content."""
    special, kind = tokenizer().special_tokens, "content"
    for id in ids:
        if id == special["<|start|>"]:
            kind = "header"
        yield id, "special" if id in special.values() else kind
        if id == special["<|message|>"]:
            kind = "content"


def boxes(drawing, tokens, top, left=14):
    """Tokens as boxes, in lines; where the next line would begin. None stands for tokens that are left out."""
    x = left
    for id, kind in tokens:
        words = name(id) if id is not None else kind
        width = (LETTER if id is not None else 5.6) * len(words) + 8
        if x + width > WIDTH - 14:
            x, top = left, top + LINE
        if id is None:
            drawing.text(x + 4, top + 15, words, "dim", 12)
        else:
            fill, opacity = KINDS[kind]
            drawing.rect(x, top, width, 21, fill, opacity=opacity, radius=4)
            color = "paper" if kind == "special" else "ink"
            drawing.text(x + width / 2, top + 15, words, color, 12, "middle", mono=True)
        x += width + 2
    return top + LINE


@picture("conversation")
def whole_conversation():
    prompt, reply = conversation()
    special, ids = tokenizer().special_tokens, list(kinds(prompt + reply))
    starts = [n for n, (id, _) in enumerate(ids) if id == special["<|start|>"]]
    messages = [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    first = messages[0]
    line = next(n for n, (id, _) in enumerate(first) if tokenizer().decode([id]) == "Reasoning")
    messages[0] = [*first[:11], (None, f"... {line - 11} more tokens ..."), *first[line : line + 3],
                   (None, f"... {len(first) - line - 4} more ..."), first[-1]]
    captions = ["The program: system message", "The user: question", "The model: thought", "The model: answer"]
    drawing = Drawing(420, "A whole conversation as tokens",
                      "Four messages as rows of boxes, one box for each token of the small model. Each message begins "
                      "with the special token start and a role, has the special token message before its content, and "
                      "ends with end, or, as the last, with return. The system message holds the line "
                      "Reasoning: medium. "
                      f"After the first start assistant the model wrote: {tokenizer().decode(reply)}")
    y = 26
    for caption, message in zip(captions, messages, strict=True):
        drawing.text(14, y, caption, bold=True)
        y = boxes(drawing, message, y + 8) + 22
    for x, words, kind in ((14, "special token", "special"), (134, "word of a header", "header"),
                           (272, "content", "content")):
        fill, opacity = KINDS[kind]
        drawing.rect(x, y - 14, 14, 14, fill, opacity=opacity, radius=3)
        drawing.text(x + 20, y - 2, words, "dim", 12)
    drawing.text(14, y + 20, "The prompt ends with the first start assistant;", "dim", 12)
    drawing.text(14, y + 36, "all that follows was written by the model.", "dim", 12)
    drawing.height = int(y + 50)
    return drawing


@picture("seen-again")
def seen_again():
    turns = [Message("user", "Q1"), Message("assistant", "T1", channel="analysis"),
             Message("assistant", "A1", channel="final"),
             Message("user", "Q2"), Message("assistant", "T2", channel="analysis"),
             Message("assistant", "A2", channel="final"), Message("user", "Q3")]
    library = harmony.parse(harmony.render(turns, tokenizer(), next_role=None), tokenizer())
    guide = [message for message in turns if message.channel != "analysis"]
    drawing = Drawing(240, "Which thoughts the model sees again",
                      "Three rows of seven messages: question, thought, answer, question, thought, answer, question. "
                      "All were written. The library leaves out the thought before the first answer only. The guide "
                      "leaves out both thoughts.")
    step = (WIDTH - 28) / len(turns)
    rows = (("what was said", turns), ("what the library's rule shows again", library),
            ("what the guide's rule shows again", guide))
    for n, (caption, messages) in enumerate(rows):
        y, kept = 24 + 66 * n, [message.content for message in messages]
        drawing.text(14, y, caption, bold=True)
        for m, message in enumerate(turns):
            x, shown = 14 + step * m, message.content in kept
            color = {"analysis": "violet", "final": "blue"}.get(message.channel, "orange")
            drawing.rect(x + 2, y + 9, step - 4, 28, color if shown else "none", color if shown else "line", 0.15, 4)
            drawing.text(x + step / 2, y + 28, message.content if shown else "-", "ink" if shown else "dim",
                         anchor="middle")
    drawing.text(14, 226, "Q question of the user, T thought (analysis), A answer (final)", "dim", 12)
    return drawing


@picture("parser")
def parser_states():
    drawing = Drawing(196, "The three states of the parser",
                      "Three boxes: ExpectStart, Header and Content. The token start leads from ExpectStart to Header, "
                      "the token message from Header to Content. In Header and in Content any other token is "
                      "collected. A stop, which is end, return or call, leads from Content back to ExpectStart and "
                      "completes the message. If the parser is lenient, a stop leads from Header back to "
                      "ExpectStart as well.")
    y, height = 58, 44
    places = {"ExpectStart": (12, 106), "Header": (190, 90), "Content": (352, 96)}
    for state, (x, width) in places.items():
        drawing.rect(x, y, width, height, "blue", "blue", 0.12, 8)
        drawing.text(x + width / 2, y + 27, state, anchor="middle", bold=True)
    for left, right, words in (("ExpectStart", "Header", "start"), ("Header", "Content", "message")):
        a, b = places[left][0] + places[left][1] + 3, places[right][0] - 3
        drawing.line([(a, y + 22), (b, y + 22)], "dim", 1.5, arrow=True)
        drawing.text((a + b) / 2 - 2, y + 14, words, size=12, anchor="middle", mono=True)
    for state, words in (("Header", "any other: into the header"), ("Content", "any other: text")):
        x = places[state][0] + places[state][1] / 2
        drawing.line([(x - 18, y - 2), (x - 18, y - 26), (x + 18, y - 26), (x + 18, y - 4)], "dim", 1.5, arrow=True)
        drawing.text(x, y - 34, words, "dim", 12, "middle")
    x0, x1, x2 = (x + width / 2 for x, width in places.values())
    drawing.line([(x2, y + 47), (x2, y + 104), (x0 - 14, y + 104), (x0 - 14, y + 48)], "dim", 1.5, arrow=True)
    drawing.text((x0 + x2) / 2, y + 98, "stop: end, return, call", size=12, anchor="middle", mono=True)
    drawing.text((x0 + x2) / 2, y + 122, "a message is complete", "dim", 12, "middle")
    drawing.line([(x1, y + 47), (x1, y + 70), (x0 + 14, y + 70), (x0 + 14, y + 48)], "dim", 1.5, True, True)
    drawing.text((x0 + x1) / 2 + 6, y + 64, "stop, if lenient", size=12, anchor="middle")
    return drawing
