"""The runs that pictures are drawn from: one conversation with the small model, and what its heads look at."""

from functools import cache

import gptoss
import harmony
import tokenizer as tokenizers
import xray

DATE = "2026-11-24"


@cache
def tokenizer():
    return tokenizers.load("nano")


@cache
def model(kind=gptoss.Model):
    return gptoss.load("nano", backend="numpy", model=kind)


@cache
def conversation(question="What is 12 + 30?", effort="medium"):
    """(ids of the prompt, ids of the greedy reply)."""
    system = harmony.SystemContent(reasoning_effort=effort, conversation_start_date=DATE)
    messages = [harmony.Message("system", [system]), harmony.Message("user", question)]
    prompt = harmony.render(messages, tokenizer())
    return prompt, list(gptoss.generate(model(), prompt, temperature=0))


def name(id):
    """A token as it is shown in pictures: special ones without their bars, spaces and line ends visible."""
    text = tokenizer().decode([id])
    if id in tokenizer().special_tokens.values():
        return text.strip("<|>")
    return text.replace(" ", "␣").replace("\n", "⏎")


def attention_weights(ids):
    """What each head looks at while `ids` are read: for each layer a float32 [H, T, T + 1], the sink last."""
    seen = []

    class Watching:
        @staticmethod
        def attention(q, k, v, sinks, window):
            seen.append(xray.attention_weights(q, k, sinks, window))
            return gptoss.attention(q, k, v, sinks, window)

    gptoss.load("nano", backend=Watching)(ids)
    return seen
