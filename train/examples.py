"""Three things that the small model can be taught, as data for finetune.py.

    python -m train.examples digits --out FILE.jsonl     a new task: "What is the digit sum of 5874?", with a thought
    python -m train.examples german --out FILE.jsonl     a line makes it think in German, and answer as before
    python -m train.examples think --out FILE.jsonl      at low effort it thinks, too

Beside FILE.jsonl it writes FILE.test.jsonl, with held-out problems only (a hash decides, as in tasks.py). Each line is
one conversation in the form of OpenAI's Chat Completions. Who learns only new things forgets old ones. So for each new
conversation there are three old ones, as the small model was trained on (*rehearsal*). --old 0 leaves them
out, to see what is forgotten. Thoughts with planted slips are not among them, because this form of data can't say which
words are not to be learned.
"""

if __name__ == "__main__":
    import program

    program.begin()

import json
import math
import random
import re
import sys
from pathlib import Path

import harmony
import program
from bench.random_checkpoint import atomic_write
from checkpoint import expect_number
from train import rows, tasks
from transcript import to_openai

# ---- A new task -----------------------------------------------------------------------------------------------------

ASK = ("What is the digit sum of {}?", "what is the digit sum of {}", "digit sum of {}", "Digit sum of {}?",
       "Add the digits of {}.", "add up the digits of {}", "What do the digits of {} add up to?",
       "What is the sum of the digits of {}?")


class DigitSum(tasks.Problem):
    """5+8=13 13+7=20 20+4=24 so 24 (of 5874). At high effort the check adds them from the other end."""

    def __init__(self, n):
        self.n, self.value, self.key = n, sum(tasks.digits(n)), f"digits {n}"
        self.answer = f"{' + '.join(str(n))} = {self.value}"

    def ask(self, rng):
        return rng.choice(ASK).format(self.n)

    def walk(self, digits):
        total, steps = digits[0], []
        for digit in digits[1:]:
            steps.append(f"{total}+{digit}={total + digit}")
            total += digit
        return " ".join([*steps, f"so {total}"])

    def medium(self):
        return self.walk(tasks.digits(self.n)[::-1])

    def high(self, slip):
        return f"{self.medium()}\nCheck: {self.walk(tasks.digits(self.n))}. {tasks.verdict(self.value, self.value)}"


def digits(rng, split):
    while True:
        problem, effort = DigitSum(tasks.number(rng, (2, 3, 4, 5, 6))), rng.choice(("medium", "high"))
        if tasks.held_out(problem.key) == (split == "test"):
            return conversation(effort, [tasks.Turn(problem.ask(rng), tasks.think(problem, effort), problem.answer)])


# ---- A new language of thought --------------------------------------------------------------------------------------

LINE = "Reasoning language: German"
LEARNED = ("sum", "difference", "quotient", "weekday")  # and stories are not: does it think in German there?
DAYS = "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag".split()
WORDS = {"+": "plus", "-": "minus", "×": "mal", "÷": "durch", "=": "ist",
         "so": "also", "r": "Rest", "left": "Rest", "is": "ist", "less": "kleiner", "than": "als",
         **dict(zip(tasks.DAYS, DAYS, strict=True))}


def in_german(thought):
    """5+4=9 9+8=17 so 179  ->  5 plus 4 ist 9, 9 plus 8 ist 17 also 179. Numbers stay as they are."""
    thought = re.sub(r"(=\d+(?: r\d)?) (?=\d)", r"\1, ", thought)
    said = ""
    for piece in re.findall(r"\d+|[A-Za-z]+|[-+×÷=]|[:.,;]|\n", thought):
        stuck = piece in ":.,;\n" or not said or said[-1] == "\n"
        said += WORDS.get(piece, piece) if stuck else f" {WORDS.get(piece, piece)}"
    return said


def german(rng, split):
    task = rng.choice(LEARNED if split == "train" else (*LEARNED, "story"))
    problem = tasks.draw(rng, task, split)
    return conversation("medium", [tasks.Turn(problem.ask(rng), in_german(problem.medium()), problem.answer)], LINE)


# ---- A new behaviour at low effort ----------------------------------------------------------------------------------

def think(rng, split):
    """The thought of medium effort, at low effort: what a word in the system message means, the data decide."""
    problem = tasks.draw(rng, rng.choice([task for task in tasks.TASKS if task != "chat"]), split)
    return conversation("low", [tasks.Turn(problem.ask(rng), problem.medium(), problem.answer)])


# ---- Conversations --------------------------------------------------------------------------------------------------

EXAMPLES = {"digits": digits, "german": german, "think": think}


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
        if new is not think or setting.effort != "low":
            return conversation(setting.effort, turns, setting.instructions, setting.calculator)


def write(name, path, new=4000, rehearsed=12000, test=300):
    """Writes both files, each whole or not at all. The same numbers give the same files."""
    rng, make = random.Random(name), EXAMPLES[name]
    bodies = [make(rng, "train") for _ in range(new)] + [old(rng, make) for _ in range(rehearsed)]
    rng.shuffle(bodies)
    rng = random.Random(f"{name} test")
    for target, lines in (path, bodies), (path.with_suffix(".test.jsonl"), [make(rng, "test") for _ in range(test)]):
        with atomic_write(target) as file:
            file.writelines(json.dumps(body, ensure_ascii=False).encode() + b"\n" for body in lines)


@program.ends("python -m train.examples")
def main():
    parser = program.parser("python -m train.examples", "Write data for train.finetune.")
    parser.add_argument("name", choices=EXAMPLES)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl")
    parser.add_argument("--new", type=int, default=4000, help="new conversations (4000)")
    parser.add_argument("--old", type=int, default=12000, help="old conversations, against forgetting (12000)")
    args = parser.parse_args()
    for name, value, least in ("--new", args.new, 1), ("--old", args.old, 0):
        expect_number(value, int, least, math.inf, ValueError, name)
    write(args.name, args.out, args.new, args.old)


if __name__ == "__main__":
    sys.exit(main())
