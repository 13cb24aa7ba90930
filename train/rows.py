"""From problems to rows of tokens: what the small model reads in training, and which of it is learned.

A row is one system message (a date, an effort) followed by as many conversations as fit. All of them see the system
message and none sees another: so the message, as long as a short conversation, is computed once for all of them. The
loss is taken on what the assistant says, except on planted slips (tasks.py). No PyTorch here: evals/ uses it too.
"""

import json

import harmony
from train import tasks

CALCULATOR = harmony.Namespace("functions", functions=(harmony.Function(
    "calculator", "Computes an expression.",
    {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}),))


def opening(setting):
    """The messages before the first question: system, as every gpt-oss gets it, and perhaps developer."""
    system = harmony.SystemContent(reasoning_effort=setting.effort, conversation_start_date=setting.day)
    developer = harmony.DeveloperContent(setting.instructions, (CALCULATOR,) if setting.calculator else ())
    messages = [harmony.Message("system", [system])]
    if setting.instructions or setting.calculator:
        messages.append(harmony.Message("developer", [developer]))
    return messages


def call_of(turn):
    """A turn's call of the calculator and what it says: two messages, or none."""
    if turn.call is None:
        return []
    name, channel = "functions.calculator", "commentary"
    return [harmony.Message("assistant", json.dumps({"expression": turn.call}), channel=channel, recipient=name,
                            content_type="<|constrain|>json"),
            harmony.Message("tool", turn.result, name=name, channel=channel, recipient="assistant")]


def conversation_tokens(tokenizer, turns):
    """Turns (tasks.Turn) -> token ids and, for each, whether the loss counts it.

    As in a chat, only the last turn still has its thought and its call. An earlier answer is learned only if it was
    given without them.
    """
    tokens, learn = [], []
    header = len(harmony.render([], tokenizer, next_role="assistant"))
    for i, turn in enumerate(turns):
        last = i == len(turns) - 1
        messages = [harmony.Message("user", turn.question)]
        if turn.thought and last:
            messages.append(harmony.Message("assistant", tasks.plain(turn.thought), channel="analysis"))
        messages += call_of(turn) if last else []
        messages.append(harmony.Message("assistant", turn.answer, channel="final"))
        for before, message in zip([None, *messages], messages, strict=False):
            ids = harmony.render([message], tokenizer, next_role=None, training=last, drop_analysis=False)
            learns = [message.role == "assistant" and (last or not (turn.thought or turn.call))] * len(ids)
            if before and before.role != "assistant":       # the prompt ends with <|start|>assistant: given
                learns[:header] = [False] * header
            if message.channel == "analysis" and tasks.SLIP in turn.thought:
                body = ids.index(tokenizer.special_tokens["<|message|>"]) + 1
                for k, planted in enumerate(slips(tokenizer, ids[body:-1], turn.thought)):
                    learns[body + k] &= not planted
            tokens += ids
            learn += learns
    return tokens, learn


def slips(tokenizer, ids, thought):
    """Whether each token of a thought has planted characters in it."""
    planted, inside = [], False
    for c in thought:
        if c in (tasks.SLIP, tasks.END):
            inside = c == tasks.SLIP
        else:
            planted += [inside and c != " "] * len(c.encode())
    out, at = [], 0
    for id in ids:
        size = len(tokenizer.decode_bytes([id]))
        out.append(any(planted[at:at + size]))
        at += size
    return out


def row(rng, tokenizer, length, converse=tasks.conversation, setting=None):
    """One row: (tokens, positions, groups, learn), lists of `length`. Group 0 is what all share, -1 is padding."""
    setting = setting or tasks.setting(rng)
    tokens = harmony.render(opening(setting), tokenizer, next_role=None)
    shared = len(tokens)
    positions, groups, learn, group, misses = list(range(shared)), [0] * shared, [False] * shared, 0, 0
    while misses < 4:                               # what does not fit is dropped, four times
        ids, learns = conversation_tokens(tokenizer, converse(rng, setting))
        if len(tokens) + len(ids) > length:
            misses += 1
            continue
        group += 1
        tokens += ids
        learn += learns
        positions += range(shared, shared + len(ids))
        groups += [group] * len(ids)
    rest = length - len(tokens)
    return tokens + [0] * rest, positions + list(range(rest)), groups + [-1] * rest, learn + [False] * rest
