"""Three things that the small model can be taught, as data for finetune.py.

    python -m train.examples roman --out FILE.jsonl      a new task: "What is 247 in Roman numerals?", with a thought
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

ASK = ("What is {} in Roman numerals?", "what is {} in Roman numerals", "Write {} in Roman numerals.",
       "Write {} as a Roman numeral.", "{} in Roman numerals", "How do you write {} in Roman numerals?",
       "Convert {} to Roman numerals.", "What is the Roman numeral for {}?")
PATTERNS = ("", "0", "00", "000", "01", "1", "10", "100", "1000", "02")  # the digits 0 to 9: which letters are written
LETTERS = ("IVX", "XLC", "CDM", "M")  # of ones, tens, hundreds and thousands


class Roman(tasks.Problem):
    """200=CC 40=XL 7=VII so CCXLVII: the places one after the other. At high effort the way back is the check."""

    def __init__(self, n):
        self.n, self.key = n, f"roman {n}"
        places = [(digit * 10**i, "".join(LETTERS[i][int(k)] for k in PATTERNS[digit]))
                  for i, digit in enumerate(tasks.digits(n)) if digit]
        self.places, self.value = places[::-1], "".join(letters for _, letters in reversed(places))
        self.answer = f"{n} in Roman numerals is {self.value}."

    def ask(self, rng):
        return rng.choice(ASK).format(self.n)

    def medium(self):
        return " ".join(f"{part}={letters}" for part, letters in self.places) + f" so {self.value}"

    def high(self, slip):
        back = " ".join(f"{letters}={part}" for part, letters in self.places)
        return f"{self.medium()}\nCheck: {back} so {self.n}. {tasks.verdict(self.n, self.n)}"


def roman(rng, split):
    while True:
        problem, effort = Roman(rng.randint(1, 3999)), rng.choice(tasks.EFFORTS)
        if tasks.held_out(problem.key) == (split == "test"):
            return conversation(effort, [tasks.Turn(problem.ask(rng), tasks.think(problem, effort), problem.answer)])


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

EXAMPLES = {"roman": roman, "german": german, "short": short}


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
        undone = new is roman and "Roman" in turns[0].question or new is short and setting.effort == "low"
        if not undone:
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
