"""Pictures of chapter 1: a text on its way to tokens, and one word's merges as a tree.

The tree is drawn from gpt-oss's own vocabulary, o200k, which tiktoken fetches once (README, "The official models")."""

import json

import regex
from runs import name, tokenizer
from style import Drawing, picture

import tokenizer as tokenizers
from checkpoint import expect

TEXT, CELL, LEFT = "Buy 4 plums × 12?", 25, 5
WORD = "strawberry"


@picture("tokens")
def text_to_tokens():
    with open("nano/tokenizer.json", encoding="utf-8") as file:
        pattern = json.load(file)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    pieces = regex.findall(pattern, TEXT)
    drawing = Drawing(252, "From a text to tokens",
                      f"The text {TEXT} in four rows. The first row has its characters. The second has the pieces into "
                      f"which the pattern cuts it: {', '.join(map(repr, pieces))}. The third has the bytes of UTF-8, "
                      "of which × takes two. The fourth has the tokens with their ids. Most pieces of this text are "
                      "one token; Buy and plums fall into three.")
    rows = {"characters": 38, "pieces: the pattern has cut": 92, "bytes, in hexadecimal": 146,
            "tokens and their ids": 200}
    for words, y in rows.items():
        drawing.text(LEFT, y - 8, words, "dim", 12)
    top = {words.split(":")[0].split(",")[0].split(" and")[0]: y for words, y in rows.items()}
    x = LEFT
    for character in TEXT:
        width = CELL * len(character.encode())
        drawing.text(x + width / 2, top["characters"] + 17, character.replace(" ", "␣"), anchor="middle", mono=True)
        x += width
    x = LEFT
    for piece in pieces:
        width = CELL * len(piece.encode())
        drawing.rect(x + 1, top["pieces"], width - 2, 24, "orange", "orange", opacity=0.15, radius=4)
        drawing.text(x + width / 2, top["pieces"] + 17, piece.replace(" ", "␣"), anchor="middle", mono=True)
        for byte in piece.encode():
            drawing.text(x + CELL / 2, top["bytes"] + 16, f"{byte:02x}", anchor="middle", size=12, mono=True)
            x += CELL
    x = LEFT
    for id in tokenizer().encode(TEXT):
        width = CELL * len(tokenizer().decode_bytes([id]))
        drawing.rect(x + 1, top["tokens"], width - 2, 38, "blue", "blue", opacity=0.15, radius=4)
        drawing.text(x + width / 2, top["tokens"] + 15, name(id), anchor="middle", mono=True)
        drawing.text(x + width / 2, top["tokens"] + 31, id, "dim", 11, "middle")
        x += width
    return drawing


def merges(word, ranks):
    """The merges of byte-pair encoding in their order: (rank, first byte, byte after the last) of each."""
    ends = list(range(len(word) + 1))  # where the parts begin, and the end of the last
    while True:
        pairs = [(ranks[word[a:c]], a, c) for a, c in zip(ends, ends[2:], strict=False) if word[a:c] in ranks]
        if not pairs:
            return
        rank, a, c = min(pairs)
        ends = [end for end in ends if not a < end < c]
        yield rank, a, c


@picture("merges")
def merge_tree():
    try:
        o200k = tokenizers.load()
    except tokenizers.TokenizerError as error:
        raise SystemExit(f"docs/pictures: merges: {error}") from None
    ranks = {o200k.decode_bytes([id]): id for id in range(tokenizers.O200K_RANKS)}
    word, step, row, left = WORD.encode(), 37, 32, 66
    done = list(merges(word, ranks))
    tokens = [o200k.decode([id]) for id in o200k.encode(WORD)]
    bottom = 44 + row * len(done)
    drawing = Drawing(bottom + 72, f"How gpt-oss's vocabulary merges {WORD}",
                      f"A tree over the letters of {WORD}. From the bottom up, "
                      + ", ".join(f"{word[a:c].decode()} with id {rank}" for rank, a, c in done)
                      + f" are merged. What is left are the tokens {', '.join(tokens)}.")
    drawing.text(14, 24, "merge", "dim", 12)
    at = {(n, n + 1): (left + step * (n + 0.5), bottom + 6) for n in range(len(word))}  # the top of each node
    for n, letter in enumerate(WORD):
        drawing.rect(left + step * n + 3, bottom + 6, step - 6, 24, "line", opacity=0.4, radius=4)
        drawing.text(left + step * (n + 0.5), bottom + 23, letter, anchor="middle", mono=True)
    outer = [part for part in {(a, c) for _, a, c in done} if not any(a <= part[0] and part[1] <= c and (a, c) != part
                                                                      for _, a, c in done)]
    middle = {}
    for number, (_, a, c) in enumerate(done, 1):
        halves = sorted(part for part in at if a <= part[0] and part[1] <= c)
        x, y = sum(at[half][0] for half in halves) / len(halves), bottom - row * number
        for half in halves:
            drawing.line([(x, y + 12), at[half]], "dim", 1.2)
            at.pop(half)
        at[a, c] = middle[a, c] = x, y - 12
    for number, (rank, a, c) in enumerate(done, 1):
        (x, y), words = middle[a, c], f"{word[a:c].decode()} {rank}"
        width, color = 8 * len(words) + 6, "blue" if (a, c) in outer else "orange"
        drawing.rect(x - width / 2, y, width, 24, "paper", radius=4)
        drawing.rect(x - width / 2, y, width, 24, color, color, opacity=0.15, radius=4)
        drawing.text(x, y + 16, words, anchor="middle", size=12, mono=True)
        drawing.text(14, y + 16, f"{number}.", "dim", 12)
    drawing.text(14, bottom + 23, "bytes", "dim", 12)
    drawing.text(14, bottom + 56, "Blue: the tokens that are left, as no two neighbours are a token.", "dim", 12)
    expect([word[a:c].decode() for a, c in sorted(outer)] == tokens, ValueError, "merges", tokens, outer)
    return drawing
