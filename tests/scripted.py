"""For tests: an engine that says what it is told to, and a reply as a dictionary."""

import re
from contextlib import closing


class Scripted:
    """An engine that says what it is told to, reply by reply, and keeps the prompts and what it was asked for.

    "[channel]" stands for <|channel|>, and so on; "^C" for an interrupt; "~" for a byte that no text has."""
    context = 4096

    def __init__(self, tokenizer, *replies):
        self.tokenizer, self.replies, self.prompts, self.asked = tokenizer, list(replies), [], []

    def generate(self, tokens, *, max_tokens=None, **sampling):
        self.prompts.append(tokens)
        return self.speak(max_tokens)

    def speak(self, max_tokens):
        for n, id in enumerate(self.ids(self.replies.pop(0))):
            if n == max_tokens:
                return
            if id is KeyboardInterrupt:
                raise KeyboardInterrupt
            self.asked.append(id)
            yield id
            if id in (self.tokenizer.special_tokens[name] for name in ("<|return|>", "<|call|>", "<|endoftext|>")):
                return

    def ids(self, reply):
        for piece in re.split(r"(\[\w+\]|\^C|~)", reply):
            if piece == "^C":
                yield KeyboardInterrupt
            elif piece == "~":
                yield next(id for id in range(300) if self.tokenizer.decode_bytes([id]) == b"\xff")
            elif re.fullmatch(r"\[\w+\]", piece):
                yield self.tokenizer.special_tokens[f"<|{piece[1:-1]}|>"]
            else:
                yield from self.tokenizer.encode(piece)


def ask(conversation, text, **sampling):
    """The reply as {channel: text}."""
    said = {}
    with closing(conversation.ask(text, **sampling)) as pieces:
        for channel, piece in pieces:
            said[channel] = said.get(channel, "") + piece
    return said
