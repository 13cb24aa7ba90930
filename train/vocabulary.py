"""The vocabulary of the small model: a byte-level BPE whose words grow from their first letter.

    python -m train.vocabulary DIR     writes DIR/tokenizer.json

An ordinary BPE hides letters: it would read "strawberry" as " st" + "raw" + "berry", and counting the r's would first
mean to know by heart how each piece is spelled. Here merges only lengthen the beginning of a piece (" t", " th", "
the"), one letter at a time, for the words of the tasks' own phrases; any other word falls apart into a short
beginning and single letters. The text is cut as o200k cuts it, except that every digit stands alone. All 256 bytes
are there, so any text has tokens.
"""

if __name__ == "__main__":
    import program

    program.begin()

import json
import random
import sys
from collections import Counter
from pathlib import Path

import regex

import program
from bench.random_checkpoint import atomic_write
from train import tasks, words

SIZE = 983                          # tokens, without the special ones
SPECIALS = ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
            "<|message|>", "<|call|>")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join((rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}",
                    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
                    r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"))
# Words without a space before them would put their first letters together inside any other word. Two are worth it;
# they grow from a pair of letters that is rare elsewhere, to both sides.
HEADER_WORDS = {"assistant": 7, "analysis": 4, "final": 0}


def pieces(conversations=30_000):
    """How often each piece of text occurs in the training conversations, words to be spelled left out."""
    rng, count = random.Random(0), Counter()
    for _ in range(conversations):
        setting, problem = tasks.setting(rng), tasks.draw(rng)
        turn = tasks.turn(rng, problem, setting)
        texts = [turn.question, turn.answer]
        if not isinstance(problem, tasks.Letters):
            texts.append(tasks.plain(turn.thought))
        if turn.call:
            texts += [' to=functions.calculator', json.dumps({"expression": turn.call})]
        for text in texts:
            count.update(regex.findall(PATTERN, text))
    system = ("You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
              "Current date: 2025-01-01\n\nReasoning: medium low high\n\n"
              "# Valid channels: analysis, commentary, final. Channel must be included for every message.")
    for piece in regex.findall(PATTERN, system + " # Instructions\n\n"):
        count[piece] += 3000
    return Counter({piece: n for piece,
                    n in count.items() if n >= 60 and piece.strip(" '\"").lower() not in words.WORDS})


def grow(count):
    """The tokens in the order of their ids: 256 bytes, then beginnings of the pieces that save the most."""
    tokens = [bytes([b]) for b in range(256)]
    for word, start in HEADER_WORDS.items():
        raw, end = word.encode(), start + 2
        while True:
            tokens.append(raw[start:end])
            if end < len(raw):
                end += 1
            elif start > 0:
                start -= 1
            else:
                break
    known = set(tokens)
    for piece, _ in sorted(count.items(), key=lambda item: (-item[1] * (len(item[0].encode()) - 1), item[0])):
        raw = piece.encode()
        new = [raw[:n] for n in range(2, len(raw) + 1) if raw[:n] not in known]
        inner = raw[:1].isalpha() and raw[:1].islower()         # see HEADER_WORDS
        plural = len(piece.strip()) == 3 and piece.endswith("'s")
        if not inner and not plural and len(tokens) + len(new) <= SIZE:
            tokens += new
            known.update(new)
    return tokens


def byte_characters():
    """GPT-2's table of printable characters that stand for bytes in tokenizer.json."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(other)}


def tokenizer_json(tokens):
    """The same in the Hugging Face form. All pairs that make a token are listed, so that every BPE agrees on the
    merges."""
    table = byte_characters()
    names = ["".join(table[b] for b in token) for token in tokens]
    known = set(names)
    merges = [[name[:i], name[i:]] for name in names for i in range(1, len(name))
              if name[:i] in known and name[i:] in known]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    added = [{"id": len(names) + i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, name in enumerate(SPECIALS)]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {name: i for i, name in enumerate(names)}, "merges": merges}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}, "post_processor": None,
            "decoder": byte_level | {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}, "model": model}


def write(directory):
    Path(directory).mkdir(parents=True, exist_ok=True)
    text = json.dumps(tokenizer_json(grow(pieces())), ensure_ascii=False, indent=0)
    with atomic_write(Path(directory) / "tokenizer.json") as out:
        out.write(text.encode())


@program.ends("python -m train.vocabulary")
def main():
    parser = program.parser("python -m train.vocabulary", "Write DIR/tokenizer.json.")
    parser.add_argument("directory", metavar="DIR")
    write(parser.parse_args().directory)


if __name__ == "__main__":
    sys.exit(main())
