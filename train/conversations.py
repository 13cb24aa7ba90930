"""From conversations in OpenAI's form to examples, and from examples to rows of tokens, of which some are learned.

Each line of a file is one conversation, as a server would be asked for it, but with the answers in it:

    {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "What is 6 * 7?"},
                  {"role": "assistant", "thinking": "6×7=42", "content": "6 × 7 = 42"}], "reasoning_effort": "low"}

`tools` and several turns work too. Each answer is one example: the prompt as chat.py would send it at this place, and
then what the assistant said. Only the latter is learned. So a thought is learned where its turn is the last one, and
later turns do not see it, as in a chat.
"""

import json
from datetime import timedelta
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from rich.text import Text

import harmony
from bench.random_checkpoint import atomic_write
from checkpoint import expect
from serving import chat as openai
from serving.turn import conversation
from train import tasks

TOKENS = 3840  # of a step
ASKED = "2026-06-01"  # the date in the prompts of an evaluation; in training it changes, so that none is learned
DATES = (ASKED, *(str(tasks.FIRST_DAY + timedelta(days=431 * n)) for n in range(8)))


class Example(NamedTuple):
    """An answer and all that stands before it. Tokens are ids."""

    openings: tuple  # system and developer message, a list of tokens for each of DATES
    tokens: list  # all that follows
    learn: list  # for each of these whether the loss counts it
    effort: str
    thought: str
    answer: str | None  # None: the turn calls a tool, and so it can't be evaluated by one reply


def read(path, tokenizer):
    """The conversations of a file: a list of Examples for each. Raises ValueError with the line, or OSError."""
    conversations, cache = [], {}
    for n, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        where = f"{path}, line {n}"
        try:
            body = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: expected JSON, found {str(error)[:200]}") from None
        if body is not None:
            expect(isinstance(body, dict), ValueError, where, "an object with messages", body)
            try:
                conversations.append(examples(openai.read(body), tokenizer, cache))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
    expect(conversations, ValueError, path, "at least one conversation", "none")
    return conversations


def examples(request, tokenizer, cache):
    """One for each turn of a conversation in which the assistant says something. Raises ValueError if it never does."""
    chat = conversation(request, SimpleNamespace(processes_logits=True), tokenizer)
    header = harmony.render([], tokenizer, next_role="assistant")
    history, chat.history, chat.date, found = request.history, [], ASKED, []
    key = tuple(chat.prompt(None))
    if key not in cache:
        cache[key] = []
        for chat.date in DATES:
            cache[key].append(chat.prompt(None)[: -len(header)])
    openings, chat.date = tuple(cache[key]), ASKED
    asked = [n for n, message in enumerate(history) if message.role == "user"]
    for start, end in pairwise([*asked, len(history)]):
        turn = history[start + 1 : end]
        while turn and turn[-1].role != "assistant":
            turn.pop()
        if not turn:
            continue
        chat.history = history[: start + 1]
        tokens = chat.prompt(None)[len(openings[0]) : -len(header)]
        learn = [False] * len(tokens)
        for before, message in zip(history[start:], turn, strict=False):
            ids = harmony.render([message], tokenizer, next_role=None, drop_analysis=False,
                                 training=message is turn[-1])
            given = len(header) if before.role != "assistant" else 0  # with this the prompt ends
            tokens += ids
            learn += [message.role == "assistant" and i >= given for i in range(len(ids))]
        said = {message.channel: message.content for message in turn if message.role == "assistant"}
        called = any(message.recipient for message in turn)
        found.append(Example(openings, tokens, learn, request.effort, said.get("analysis", ""),
                             None if called else said.get("final")))
    expect(found, ValueError, "messages", "a user's and then an assistant's message", "none")
    return found


def show(console, example, tokenizer):
    """Prints an example. What is learned stands out in colour, or where there is none between « and »."""
    console.print("The first example. What is learned is marked:\n")
    flags = [False] * len(example.openings[0]) + example.learn
    marked, text = zip([*example.openings[0], *example.tokens], flags, strict=True), Text()
    for learned, run in groupby(marked, lambda pair: pair[1]):
        piece = tokenizer.decode([id for id, _ in run])
        piece = piece if console.is_terminal or not learned else f"«{piece}»"
        text.append(piece, "bold green" if learned else "dim")
    console.print(text, "\n", highlight=False)


def write_tokens(path, found):
    """A line for each example: "input_ids", and "labels", which are the same where a token is learned, else -100."""
    with atomic_write(path) as file:
        for example in found:
            ids = [*example.openings[0], *example.tokens]
            learn = [False] * len(example.openings[0]) + example.learn
            labels = [id if learned else -100 for id, learned in zip(ids, learn, strict=True)]
            file.write(json.dumps({"input_ids": ids, "labels": labels}).encode() + b"\n")


# ---- From examples to rows ------------------------------------------------------------------------------------------


def batches(found, rng, length):
    """The batches of one epoch: lists of rows, and a row is (which of DATES, Examples that have the same opening).

    As in the first training, examples in a row share their opening, and none sees another. Rows of similar length come
    into one batch, so that there is little padding."""
    open_rows, rows = {}, []
    for example in rng.sample(found, len(found)):
        key = id(example.openings[0])
        row, size = open_rows.get(key, (None, length))
        if row is None or size + len(example.tokens) > length:
            row, size = (rng.randrange(1, len(DATES)), []), len(example.openings[0])
            rows.append(row)
        row[1].append(example)
        open_rows[key] = row, size + len(example.tokens)
    rows.sort(key=row_length)
    n = max(1, round(sum(map(row_length, rows)) / TOKENS))
    out = [rows[i * len(rows) // n : (i + 1) * len(rows) // n] for i in range(n)]
    rng.shuffle(out)
    return out


def row_length(row):
    date, members = row
    return len(members[0].openings[date]) + sum(len(example.tokens) for example in members)


def tensors(rows):
    """tokens, positions, groups and learn [rows, longest], as pretrain.forward takes them."""
    longest, columns = max(map(row_length, rows)), ([], [], [], [])
    for date, members in rows:
        shared = members[0].openings[date]
        tokens, n = [*shared], len(shared)
        positions, groups, learn = list(range(n)), [0] * n, [False] * n
        for group, example in enumerate(members, 1):
            tokens += example.tokens
            positions += range(n, n + len(example.tokens))
            groups += [group] * len(example.tokens)
            learn += example.learn
        rest = longest - len(tokens)
        for column, values in zip(columns, (tokens + [0] * rest, positions + list(range(rest)), groups + [-1] * rest,
                                            learn + [False] * rest), strict=True):
            column.append(values)
    return [torch.tensor(column) for column in columns]
