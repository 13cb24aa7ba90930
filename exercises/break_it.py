"""python exercises/break_it.py [NAME ...]: what a mistake does to the small model.

    python exercises/break_it.py                 all mistakes that can be made in the model, and a table
    python exercises/break_it.py "no sink"       one, or a few
    python exercises/break_it.py --list          what they are: the lines that change

Each mistake is an edit of gptoss.py or checkpoint.py (mistakes.py); the model is built from the edited source. Loss,
logits and best tokens are taken over the true replies to 10 held-out problems, read at once and without a cache. Right
answers are those of the model's own replies to 30 held-out problems, each token the best one.
"""

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, Python looks for modules in exercises/ only

if __name__ == "__main__":
    import program

    program.begin()

import numpy as np  # noqa: E402

import gptoss  # noqa: E402
import harmony  # noqa: E402
import program  # noqa: E402
import tokenizer as tokenizers  # noqa: E402
from evals import evaluate  # noqa: E402
from exercises import mistakes  # noqa: E402
from train import tasks  # noqa: E402

NANO = ROOT / "nano"
TASKS = [task for task in tasks.TASKS if task != "chat"]  # greetings are not held out
LONGEST = 128  # tokens of a reply; the longest true one of these problems has 76 + 13. What goes on is not right.
NAMES = (
    "nibbles swapped", "scale exponent off by one",
    "no norm weight", "mean subtracted", "no eps", "no last norm",
    "query heads shared as h % G", "no sqrt(D)", "no sink", "future seen",
    "no window", "window one too long", "window one too short",
    "RoPE on neighbours", "keys turned, queries not", "no YaRN", "no cos/sin factor", "positions from 1",
    "positions restart",
    "softmax before the choice", "best expert only", "gate and up as halves", "gate clamped from below too", "no clamp",
    "no +1", "1 instead of 1.702", "experts beside attention",
)


def named(name):
    return next(mistake for mistake in (*mistakes.MODEL, *mistakes.MISTAKES) if mistake.name == name)


# ---- The model ------------------------------------------------------------------------------------------------------

def build(mistake=None):
    """The small model with a mistake in it. Operations that the mistake does not touch are Numba's, which are faster
    and otherwise the same. With one thread: so small a model has no work for a second one."""
    import numba

    import kernels
    numba.set_num_threads(1)
    if mistake is None:
        return gptoss.load(NANO)
    engine, touched = mistakes.broken(mistake), mistakes.touched(mistake)
    engine.dequantize = remembered(engine.dequantize)
    operations = {name: getattr(engine if name in touched else kernels, name) for name in gptoss.OPERATIONS}
    return engine.load(NANO, backend=SimpleNamespace(**operations))


def remembered(dequantize):
    """Unpacks each expert once: its weights do not change, and NumPy would spend most of the time on them."""
    unpacked = {}

    def call(weight):
        where = weight.blocks.ctypes.data
        if where not in unpacked:
            unpacked[where] = dequantize(weight)
        return unpacked[where]
    return call


@cache
def problems(each):
    """Held-out problems of every task: [(prompt, the true reply, the right answer)], prompt and reply as ids."""
    tokenizer, out = tokenizers.load(NANO), []
    for task in TASKS:
        for problem, question in evaluate.problems(task, each):
            prompt = evaluate.prompt(tokenizer, question, "medium")
            messages = [harmony.Message("user", question),
                        harmony.Message("assistant", tasks.think(problem, "medium"), channel="analysis"),
                        harmony.Message("assistant", problem.answer, channel="final")]
            whole = harmony.render([*evaluate.opening("medium"), *messages], tokenizer, next_role=None, training=True,
                                   drop_analysis=False)
            out.append((prompt, whole[len(prompt):], problem.answer))
    return out


# ---- Measuring ------------------------------------------------------------------------------------------------------

class Score(NamedTuple):
    loss: float  # mean negative log-likelihood of the true replies' tokens, in nats
    distance: float  # root mean square of what the logits differ, over that of the intact model's logits
    same: float  # share of positions whose best token is the intact model's
    right: int  # answers, of 30


def logits_of(model):
    """The logits [tokens of all true replies, V] from which these tokens would be drawn, and the tokens."""
    rows = [(model([*prompt, *reply])[len(prompt) - 1 : -1], reply) for prompt, reply, _ in problems(1)]
    return np.concatenate([logits for logits, _ in rows]).astype(np.float64), np.concatenate([ids for _, ids in rows])


@cache
def intact():
    return logits_of(build())[0]


def right_answers(model, each=3):
    tokenizer, right = tokenizers.load(NANO), 0
    for prompt, _, answer in problems(each):
        ids = list(gptoss.generate(model, prompt, temperature=0, max_tokens=LONGEST))
        try:
            messages = harmony.parse(ids, tokenizer, role="assistant")
        except harmony.HarmonyError:
            continue
        right += any(message.channel == "final" and message.content.strip() == answer for message in messages)
    return right


def compared(model):
    """Loss, distance and share of same best tokens."""
    (logits, ids), whole = logits_of(model), intact()
    peak = logits.max(axis=1, keepdims=True)
    likelihood = logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    loss = -likelihood[np.arange(len(ids)), ids].mean()
    distance = np.sqrt(np.mean((logits - whole) ** 2) / np.mean(whole**2))
    return float(loss), float(distance), float(np.mean(logits.argmax(1) == whole.argmax(1)))


def measure(name):
    """The Score of a mistake; of the intact model for None."""
    model = build(named(name) if name else None)
    with np.errstate(all="ignore"):
        return Score(*compared(model), right_answers(model))


# ---- The table ------------------------------------------------------------------------------------------------------

def table(scores):
    """{name: Score} as text, the worst first."""
    width = max(map(len, scores))
    lines = [f"{'mistake':{width}}   loss  logits off  same best  right of 30"]
    for name, s in sorted(scores.items(), key=lambda item: (item[1].right, -item[1].distance)):
        lines.append(f"{name:{width}} {s.loss:6.3f} {100 * s.distance:10.2f}% {100 * s.same:9.1f}% {s.right:12}")
    return "\n".join(lines)


@program.ends("break_it.py", unread=1)
def main():
    parser = program.parser("break_it.py", "What a mistake does to the small model.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="as --list shows them (default: all)")
    parser.add_argument("--list", action="store_true", help="show the mistakes as edits of the source and stop")
    args = parser.parse_args()
    for name in args.names:
        if name not in NAMES:
            parser.exit(2, f"{parser.prog}: NAME: expected one that --list shows, found {name}\n")
    names = list(dict.fromkeys(args.names or NAMES))
    if args.list:
        print("\n\n".join(f"{name} ({named(name).function})\n{mistakes.diff(named(name))}" for name in names))
        return
    began, scores = time.perf_counter(), {}
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(names) + 1)) as pool, ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)  # at Ctrl-C what waits is not begun
        jobs = {name or "none": pool.submit(measure, name) for name in (None, *names)}
        for name, job in jobs.items():
            scores[name] = job.result()
            print(f"{name}", file=sys.stderr, flush=True)
    print(table(scores))
    if args.names:
        print("", *(f"{name}: {mistakes.sentence(named(name))}" for name in names), sep="\n")
    print(f"{time.perf_counter() - began:.0f} seconds", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
