"""Three things that the small model can be taught, as data for finetune.py.

    python -m train.examples binary --out FILE.jsonl     a new task: "What is 45 in binary?", with a worked thought
    python -m train.examples german --out FILE.jsonl     a line makes it think in German, and answer as before
    python -m train.examples short --out FILE.jsonl      at low effort it now thinks a little before it calculates

Beside FILE.jsonl it writes FILE.test.jsonl, with held-out problems only (a hash decides, as in tasks.py). Each line is
one conversation in the form of OpenAI's Chat Completions. Who learns only new things forgets old ones. So for each new
conversation there is an old one, of the kind that the small model was trained on (*rehearsal*). --old 0 leaves them
out, to see what is forgotten. Thoughts with planted slips are not among them, because this form of data can't say which
words are not to be learned.
"""

import argparse
import json
import math
import random
import re
from pathlib import Path

import harmony
from bench.random_checkpoint import atomic_write
from checkpoint import expect_number
from train import rows, tasks
from transcript import to_openai

# ---- A new task -----------------------------------------------------------------------------------------------------

ASK = ("What is {} in binary?", "what is {} in binary", "Write {} in binary.", "Convert {} to binary.", "{} in binary",
       "What is the binary form of {}?", "write {} as a binary number", "How do you write {} in binary?")


class Binary(tasks.Problem):
    """45÷2=22 r1 22÷2=11 r0 11÷2=5 r1 5÷2=2 r1 2÷2=1 r0 1÷2=0 r1 so 101101: the remainders, from the last to the first.

    At high effort the way back is the check: 0×2+1=1 1×2+0=2 2×2+1=5 5×2+1=11 11×2+0=22 22×2+1=45.
    """

    def __init__(self, n):
        self.n, self.value, self.key = n, f"{n:b}", f"binary {n}"
        self.answer = f"{n} in binary is {n:b}."

    @classmethod
    def draw(cls, rng):
        return cls(rng.randint(2, 999))

    def ask(self, rng):
        return rng.choice(ASK).format(self.n)

    def medium(self):
        halves = [self.n >> i for i in range(self.n.bit_length())]
        return " ".join(f"{n}÷2={n // 2} r{n % 2}" for n in halves) + f" so {self.value}"

    def high(self, slip):
        n, steps = 0, []
        for bit in self.value:
            steps.append(f"{n}×2+{bit}={2 * n + int(bit)}")
            n = 2 * n + int(bit)
        return f"{self.medium()}\nCheck: {' '.join(steps)}. {tasks.verdict(n, self.n)}"


def binary(rng, split):
    problem = draw(rng, split)
    effort = rng.choice(("medium", "high"))
    return conversation(effort, [tasks.Turn(problem.ask(rng), tasks.think(problem, effort), problem.answer)])


def draw(rng, split):
    while True:
        problem = Binary(rng.randint(2, 999))
        if tasks.held_out(problem.key) == (split == "test"):
            return problem


# ---- A new language of thought --------------------------------------------------------------------------------------

LINE = "Reasoning language: German"
LEARNED = ("sum", "difference", "quotient", "weekday")  # and stories are not: does it think in German there?
ONES = ("null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
        "siebzehn achtzehn neunzehn").split()
TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
DAYS = "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag".split()
WORDS = {"+": "plus", "-": "minus", "×": "mal", "÷": "durch", "=": "ist", "<": "kleiner als", ">": "größer als",
         "so": "also", "r": "Rest", "left": "Rest", "and": "und", "yes": "ja", "no": "nein", "Check": "Probe",
         "Again": "Noch einmal", "is": "ist", "less": "kleiner", "than": "als", "after": "nach", "before": "vor",
         "back": "zurück", "from": "von", **dict(zip(tasks.DAYS, DAYS, strict=True))}


def number_word(n):
    """0 to 99 in German: 45 is "fünfundvierzig"."""
    if n < 20:
        return ONES[n]
    one = {0: "", 1: "einund"}.get(n % 10, f"{ONES[n % 10]}und")
    return one + TENS[n // 10 - 2]


def in_german(thought):
    """5+4=9 9+8=17 so 179  ->  fünf plus vier ist neun, neun plus acht ist siebzehn also 179"""
    thought = re.sub(r"(=\d+(?: r\d)?) (?=\d)", r"\1, ", thought)
    said = ""
    for piece in re.findall(r"\d+|[A-Za-z]+|[-+×÷=<>]|[:.,;]|\n", thought):
        if piece in ":.,;\n":
            said += piece
            continue
        word = WORDS.get(piece, piece)
        if piece.isdecimal() and int(piece) < 100:
            word = number_word(int(piece))
        said += word if not said or said[-1] == "\n" else f" {word}"
    return said


def german(rng, split):
    task = rng.choice(LEARNED if split == "train" else (*LEARNED, "story"))
    problem, effort = tasks.draw(rng, task, split), rng.choice(("medium", "high"))
    turn = tasks.Turn(problem.ask(rng), in_german(tasks.think(problem, effort)), problem.answer)
    return conversation(effort, [turn], LINE)


# ---- A new behaviour at low effort ----------------------------------------------------------------------------------

CALCULATED = ("sum", "difference", "product", "quotient", "story")


def short(rng, split):
    """Of a thought at medium effort only the results: 5+4=9 9+8=17 6+6+1=13 is 9 17 13."""
    problem = tasks.draw(rng, rng.choice(CALCULATED), split)
    results = re.findall(r"=(\d+(?: r\d)?)", problem.medium())
    return conversation("low", [tasks.Turn(problem.ask(rng), " ".join(results), problem.answer)])


# ---- Conversations --------------------------------------------------------------------------------------------------

EXAMPLES = {"binary": binary, "german": german, "short": short}


def conversation(effort, turns, instructions=None, calculator=False):
    """Turns (tasks.Turn) as the body of a request: what a line of the file has."""
    history = []
    for turn in turns:
        history.append(harmony.Message("user", turn.question))
        if turn.thought:
            history.append(harmony.Message("assistant", turn.thought, channel="analysis"))
        history += [*rows.call_of(turn), harmony.Message("assistant", turn.answer, channel="final")]
    body = {"reasoning_effort": effort, "messages": to_openai(history)}
    if instructions:
        body["messages"].insert(0, {"role": "developer", "content": instructions})
    if calculator:
        [function] = rows.CALCULATOR.functions
        body["tools"] = [{"type": "function", "function": vars(function)}]
    return body


def old(rng, new):
    """A conversation as in the first training. What the new ones teach to do otherwise is left out."""
    while True:
        setting = tasks.setting(rng)
        turns = tasks.conversation(rng, setting, slips=False)
        if new is not short or setting.effort != "low":
            return conversation(setting.effort, turns, setting.instructions, setting.calculator)


def write(name, path, new=4000, rehearsed=4000, test=300):
    """Writes both files, each whole or not at all. The same numbers give the same files."""
    rng, make = random.Random(name), EXAMPLES[name]
    bodies = [make(rng, "train") for _ in range(new)] + [old(rng, make) for _ in range(rehearsed)]
    rng.shuffle(bodies)
    rng = random.Random(f"{name} test")
    for target, lines in (path, bodies), (path.with_suffix(".test.jsonl"), [make(rng, "test") for _ in range(test)]):
        with atomic_write(target) as file:
            file.writelines(json.dumps(body, ensure_ascii=False).encode() + b"\n" for body in lines)


def main():
    parser = argparse.ArgumentParser(prog="python -m train.examples", description="Write data for train.finetune.")
    parser.add_argument("name", choices=EXAMPLES)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl")
    parser.add_argument("--new", type=int, default=4000, help="new conversations (default: 4000)")
    parser.add_argument("--old", type=int, default=4000, help="old conversations, so that nothing is forgotten")
    args = parser.parse_args()
    try:
        for name, value, least in ("--new", args.new, 1), ("--old", args.old, 0):
            expect_number(value, int, least, math.inf, ValueError, name)
        write(args.name, args.out, args.new, args.old)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
