r"""What is asked, and what counts as right.

    task     problems                         question                   right is
    sum ...  held out, from train/tasks.py    as it is                   the final message, word for word
    aime     AIME 2025, one file or two       asks for \boxed{}          the integer in the last box
    gpqa     gpqa_diamond.csv                 with options A to D        the letter of the right option
    jsonl    any JSON lines                   as it is                   the final message, word for word; where the
                                                                         answer is a number, the last number in it

The questions of aime and gpqa, and the rules by which an answer is found in a reply, are those of OpenAI's harness
(gpt_oss.evals at 7b58334), so that scores compare. That includes its oddities: a line that begins with "Because"
chooses B.
"""

import csv
import json
import math
import random
import re
from contextlib import suppress
from decimal import Decimal
from typing import NamedTuple

from checkpoint import expect
from evals import evaluate
from harmony import Message
from transcript import from_openai

BOXED = "\n{}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n"
OPTIONS = ("{}\n\n(A) {}\n(B) {}\n(C) {}\n(D) {}\n\nExpress your final answer as the corresponding option 'A', 'B', "
           "'C', or 'D'.")
COLUMNS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


class Problem(NamedTuple):
    """One question, as it is asked once. rule: a name in RULES. instructions: of a developer, or None."""
    where: str  # FILE:LINE, for messages
    number: int  # of the problem in its set: repeats have the same
    repeat: int
    history: list  # of harmony.Message, the question last
    answer: object  # what the rule finds in a right reply
    rule: str
    instructions: str | None = None

    def right(self, final):
        """Whether a final message answers it."""
        return RULES[self.rule](final) == self.answer


def asked(text):
    return [Message("user", text)]


# ---- Where the answer is in a final message -------------------------------------------------------------------------

EMPHASIS, APART, ASIDE = r"(?:\*{1,2}|_{1,2})", r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
ANSWER = r"(?i)\bAnswers?\b\s*[:\-–]?\s*"
LETTER = [re.compile(pattern) for pattern in (  # the first that is found anywhere decides
    rf"(?i){EMPHASIS}Answers?\s*[:\-–]?{EMPHASIS}\s*([A-D])\b",  # **Answer:** B
    rf"(?im)^\s*{EMPHASIS}?Answer:?{EMPHASIS}?\s*:?\s*{EMPHASIS}?([A-D])",  # Answer: **B**
    rf"{ANSWER}\(\s*([A-D])\s*\)",  # the answer (B)
    rf"{ANSWER}([A-D])\b",  # the answer: B
    r"(?i)\b(?:Option|Choice)\b\s*[:\-–]?\s*([A-D])\b",  # option B
    r"\\boxed\{[^}]*?([A-D])[^}]*\}",  # \boxed{\text{B}}
    rf"{APART}[(\[]\s*([A-D])\s*[)\]]{ASIDE}",  # (B)
    rf"{APART}{EMPHASIS}([A-D]){EMPHASIS}{ASIDE}",  # **B**
    r"\\textbf\{[^}]*?([A-D])[^}]*\}",  # \textbf{B}
    rf"{APART}{EMPHASIS}\s*([A-D])\)[^*_\n]+?{EMPHASIS}{ASIDE}",  # **B) the second**
    rf"(?m)^\s*{EMPHASIS}?([A-D])",  # B. The second
)]
NUMBER = re.compile(r"(?<!\d)-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", re.ASCII)


def letter(text):
    """A, B, C or D; or None."""
    found = next(filter(None, (pattern.search(text) for pattern in LETTER)), None)
    return found and found[1].upper()


def boxed(text):
    """The integer in the last box that is not empty, there after the last comma. Without a box the last digits."""
    boxes = [inside for inside in re.findall(r"(?:boxed|framebox)\{(.*?)\}", text, re.DOTALL) if inside]
    found = boxes[-1].split(",")[-1] if boxes else (re.findall(r"\d+", text) or [""])[-1]
    with suppress(ValueError):
        return int(found)


def number(text):
    """The last number of a text: -3, 1,234 or 0.5, whatever zeros it has at its end. Or None."""
    found = NUMBER.findall(text.replace("−", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


RULES = {"words": str.strip, "number": number, "boxed": boxed, "letter": letter}


# ---- Files ----------------------------------------------------------------------------------------------------------

def read(task, files, repeats):
    """The problems of "aime", "gpqa" or "jsonl" in files, all of them `repeats` times. Raises ValueError, a sentence
    with file and line, or OSError."""
    reader = READERS[task]
    once = [(where, row) for file in files for where, row in (csv_rows if task == "gpqa" else json_rows)(file)]
    expect(once, ValueError, ", ".join(map(str, files)), "a problem", "none")
    rng = random.Random(0)  # of the harness, which draws an order of the options for each repeat of each problem
    return [reader(where, row, n, repeat, rng.sample(range(4), 4))
            for repeat in range(repeats) for n, (where, row) in enumerate(once)]


def json_rows(file):
    """(FILE:LINE, object) of each line that is not empty."""
    with open(file, "rb") as lines:
        for n, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}:{n}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = line.decode(errors="replace").strip()
                expect(isinstance(row, dict), ValueError, where, "a JSON object", row)
                yield where, row


def csv_rows(file):
    """(FILE:LINE, {column: text}) of each row, which may take several lines."""
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows, where = csv.DictReader(lines), f"{file}:1"
        try:
            names = ", ".join(rows.fieldnames or ())
            for name in COLUMNS:
                expect(name in (rows.fieldnames or ()), ValueError, where, f"a column {name}", names or "none")
            while True:
                where = f"{file}:{rows.line_num + 1}"
                if (row := next(rows, None)) is None:
                    return
                yield where, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{where}: expected rows of CSV in UTF-8, found others ({error})") from None


def text_of(row, name, where):
    expect(isinstance(row.get(name), str) and row[name].strip(), ValueError, f"{where}: {name}", "a text",
           repr(row.get(name)))
    return row[name]


def aime(where, row, n, repeat, _):
    """{"question": text, "answer": "70"}, as opencompass/AIME2025 has it. An answer may have a unit after it."""
    question, answer = text_of(row, "question", where), row.get("answer")
    digits = re.match(r"\d+", str(answer), re.ASCII)
    right = digits and (isinstance(answer, str) or type(answer) is int)
    expect(right, ValueError, f"{where}: answer", "an integer", repr(answer))
    return Problem(where, n, repeat, asked(BOXED.format(question)), int(digits[0]), "boxed")


def gpqa(where, row, n, repeat, order):
    """A row of gpqa_diamond.csv: the right answer and three wrong ones. order: of these four."""
    question, *options = (text_of(row, name, where) for name in COLUMNS)
    shown = [options[i] for i in order]
    return Problem(where, n, repeat, asked(OPTIONS.format(question, *shown)), "ABCD"[shown.index(options[0])], "letter")


def jsonl(where, row, n, repeat, _):
    """{"question": text, "answer": text or number}; or {"messages": [...]} in OpenAI's form, where the last message,
    by the assistant, is the answer, and what was thought before it is not shown."""
    if "messages" in row:
        expect(not row.get("tools"), ValueError, f"{where}: tools", "none, because none can be called here",
               repr(row.get("tools")))
        instructions, history = from_openai(row["messages"], f"{where}: messages")
        last = max((k for k, message in enumerate(history) if message.role == "user"), default=-1)
        reply = [message for message in history[last + 1 :] if message.channel != "analysis"]
        right = last >= 0 and len(reply) == 1 and reply[0].channel == "final"
        expect(right, ValueError, f"{where}: messages", "a question by the user and an answer by the assistant at the "
               "end", " ".join(message.role for message in history) or "none")
        answer = reply[0].content
        history = [message for message in history[: last + 1] if message.channel != "analysis"]
    else:
        instructions, history, answer = None, asked(text_of(row, "question", where)), row.get("answer")
    if type(answer) in (int, float) and math.isfinite(answer):
        answer = format(Decimal(str(answer)), "f")
    expect(isinstance(answer, str) and answer.strip(), ValueError, f"{where}: answer", "a text or a number",
           repr(answer))
    rule = "number" if NUMBER.fullmatch(answer.strip().replace("−", "-")) else "words"
    return Problem(where, n, repeat, history, RULES[rule](answer), rule, instructions)


READERS = {"aime": aime, "gpqa": gpqa, "jsonl": jsonl}


# ---- What is tried --------------------------------------------------------------------------------------------------

class Trial(NamedTuple):
    """A problem, asked once. key: task, effort, and the problem's two numbers. ids: the prompt."""
    key: tuple
    problem: Problem
    ids: list
    sampling: dict


def problems(task, files, each=None, repeats=None):
    """The Problems of a task: all of them, then all once more for each repeat. files: of aime, gpqa or jsonl. each: at
    most so many, the first (None: all of a file, 100 of the others, which go on for ever)."""
    repeats = repeats or defaults(task)[1]
    if task in READERS:
        return [problem for problem in read(task, files, repeats) if problem.number < (each or math.inf)]
    return [Problem(f"{task} {n}", n, repeat, asked(question), problem.answer, "words") for repeat in range(repeats)
            for n, (problem, question) in enumerate(evaluate.problems(task, each or 100))]


def defaults(task):
    """(temperature, repeats): for aime and gpqa those of the harness; else the likeliest tokens, once."""
    return (1.0, 8) if task in ("aime", "gpqa") else (0.0, 1)


def trial(task, effort, problem, tokenizer, context, temperature=None, max_tokens=None):
    """Raises ValueError if the question does not fit into the context."""
    key, ids = (task, effort, problem.number, problem.repeat), evaluate.asked(tokenizer, problem, effort)
    expect(len(ids) < context, ValueError, problem.where, f"a question that fits into {context:,} tokens of context",
           f"{len(ids):,} tokens")
    return Trial(key, problem, ids, {
        "temperature": defaults(task)[0] if temperature is None else temperature,
        "max_tokens": max_tokens,
        "seed": random.Random(repr(key)).getrandbits(31)})  # a repeat draws other tokens, a rerun the same
