"""python -m evals: how often a model is right, by task and effort, and how long it thinks.

    python -m evals                             100 held-out problems for each task and effort, greedy
    python -m evals product --model DIR         of one task, by another checkpoint with the same vocabulary
    python -m evals --each 300 --picture FILE   more problems, and the picture of the model card

These print the figures of nano/README.md, in Markdown. With a set of problems in a file, or with one of the options
--server, --effort, --repeats, --temperature, --max-tokens and --json, every answer is a trial of its own:

    python -m evals aime --data aime2025-I.jsonl aime2025-II.jsonl --model DIR --json aime.json
    python -m evals gpqa --data gpqa_diamond.csv --server http://localhost:8000 --parallel 64 --json gpqa.json
    python -m evals jsonl sum --data FILE --adapter DIR     questions and answers of your own, and a task from here

The table that these print says how large its errors are. --json FILE writes the same as JSON, and all answers, as they
come, into a log beside it (aime.answers.jsonl). The same command goes on where that ends.
"""

if __name__ == "__main__":
    import program

    program.begin()

import copy
import hashlib
import json
import math
import os
import queue
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path

import gptoss
import program
import tokenizer as tokenizers
import transcript
from checkpoint import expect, expect_number
from conversation import LocalEngine, RemoteEngine
from engine import fingerprint
from evals import evaluate, report, sets
from remote import EngineError
from train import tasks

ROOT = Path(__file__).resolve().parent.parent
KEY = "GPTOSS_API_KEY"  # the environment variable with the key of --server
SMALL = 512  # hidden_size up to which a process for each core is faster than all cores on one answer
SINGLE = ("server", "effort", "repeats", "temperature", "max_tokens", "json")  # options that ask for single trials


def parse_arguments():
    parser = program.parser("python -m evals", "Right answers by task and effort.")
    add = parser.add_argument
    add("tasks", nargs="*", metavar="TASK", default=list(tasks.TASKS),
        help=f"of {', '.join(tasks.TASKS)} (default: all); aime, gpqa, jsonl: problems of --data")
    add("--data", metavar="FILE", type=Path, nargs="+", default=[], help="AIME 2025 as JSON lines (one file or two), "
        'gpqa_diamond.csv, or JSON lines of {"question", "answer"} or of OpenAI\'s {"messages"}')
    add("--model", metavar="DIR", type=Path, help="(default: the small model); with --server: where its vocabulary is "
        "(default: that of gpt-oss)")
    add("--adapter", metavar="DIR", type=Path, help="a LoRA adapter for the model")
    add("--server", metavar="URL", help=f"a server that takes token ids: vLLM, llama.cpp, serve.py (its key: ${KEY})")
    add("--server-model", metavar="NAME", help="which of the server's models (default: its first)")
    add("--parallel", metavar="N", type=int, default=4, help="requests that a server gets at once (default: 4)")
    add("--effort", metavar="low,medium,high", help="(default: all three)")
    add("--each", metavar="N", type=int, help="problems for each task and effort (default: 100 of a task of this "
        "project, held out; all of a file, else the first N)")
    add("--repeats", metavar="N", type=int, help="times each problem is asked (default: 8 for aime and gpqa, else 1)")
    add("--temperature", type=float, help="(default: 1 for aime and gpqa, else 0)")
    add("--max-tokens", metavar="N", type=int, help="longest answer (default: what the context has room for)")
    add("--backend", default="numba", choices=("numba", "numpy"))
    add("--json", metavar="FILE", type=Path, help="write the figures there, and all answers into a log beside it")
    add("--picture", metavar="FILE", help="draw right answers over tokens")
    args = parser.parse_args()
    args.model = args.model or (None if args.server else ROOT / "nano")
    return parser, args


@program.ends("python -m evals")
def main():
    parser, args = parse_arguments()
    known = [*tasks.TASKS, *sets.READERS]
    for task in args.tasks:
        if task not in known:
            parser.error(f"TASK: expected one of {', '.join(known)}, found {task}")
    names = list(dict.fromkeys(args.tasks))
    from_files = [task for task in names if task in sets.READERS]
    try:
        expect(len(from_files) == bool(args.data), ValueError, "--data", "a FILE for one TASK of "
               f"{', '.join(sets.READERS)}", f"{len(args.data)} for {', '.join(from_files) or 'none'}")
        for name, kind, low in (("each", int, 1), ("repeats", int, 1), ("parallel", int, 1), ("max_tokens", int, 1),
                                ("temperature", float, 0)):
            if getattr(args, name) is not None:
                expect_number(getattr(args, name), kind, low, math.inf, ValueError, f"--{name.replace('_', '-')}")
        if args.picture:
            report.check_picture(args.picture)
        if from_files or any(getattr(args, name) is not None for name in SINGLE):
            return trials(names, args)
        gptoss.load(args.model, backend="numpy", adapter=args.adapter)  # what is wrong with them is said here, once
        tokenizers.load(args.model)
        results = card(names, args, args.each or 100)
        if args.picture:
            evaluate.picture(results, args.each or 100, args.picture)
    except BrokenProcessPool:
        raise ValueError("a measuring process ended before its time (out of memory?)") from None


# ---- The card of the small model ------------------------------------------------------------------------------------

def card(names, args, each):
    """Measures and prints; the table's Scores. A fifth of the problems is tried with the calculator."""
    fifth = max(1, each // 5)
    with processes(args) as pool:
        results = {(task, effort): pool.submit(evaluate.job, evaluate.measure, task, effort, each)
                   for task in names for effort in tasks.EFFORTS}
        slips = [pool.submit(evaluate.job, evaluate.recover, task, each) for task in names if task != "chat"]
        followed = {effort: pool.submit(evaluate.job, evaluate.follow, effort, each) for effort in tasks.EFFORTS}
        calls = [pool.submit(evaluate.job, evaluate.call, task, effort, fifth) for effort in tasks.EFFORTS
                 for task in tasks.CALCULATED if task in names]
        for key, future in results.items():
            results[key] = future.result()
            print(*key, *results[key], file=sys.stderr, flush=True)
        print(evaluate.table(results, each))
        followed = {effort: future.result() for effort, future in followed.items()}
        slips, calls = [future.result() for future in slips], [future.result() for future in calls]
        print(*("\n" + line for line in evaluate.summary(results, slips, followed, calls, each, fifth)), sep="\n")
    return results


@contextmanager
def processes(args):
    """A pool with one for each core. What waits when this is left, as at Ctrl-C, is not begun."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=evaluate.begin,
                             initargs=(args.model, args.backend, args.adapter)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


# ---- Single trials --------------------------------------------------------------------------------------------------

def trials(names, args):
    """Asks what is not in the log yet, prints the table, and writes figures and picture."""
    engine, tokenizer, model = open_engine(args)
    efforts = list(tasks.EFFORTS) if args.effort is None else list(dict.fromkeys(args.effort.split(",")))
    expect(set(efforts) <= {*tasks.EFFORTS}, ValueError, "--effort", f"some of {','.join(tasks.EFFORTS)}", args.effort)
    todo = [sets.trial(task, effort, problem, tokenizer, engine.context, args.temperature, args.max_tokens)
            for task in names for effort in efforts
            for problem in sets.problems(task, args.data, args.each, args.repeats)]
    asked = hashlib.sha256(repr([(trial.ids, trial.problem.answer) for trial in todo]).encode()).hexdigest()
    settings = {"model": model, "tasks": names, "effort": efforts, "context": engine.context, "problems": asked[:16],
                "sampling": {trial.key[0]: {**trial.sampling, "seed": None} for trial in todo}}
    expect(args.json is None or not args.json.is_dir(), ValueError, "--json", "a name for a file", f"{args.json}")
    if args.json is None:
        note("Without --json FILE the answers are not kept, and a run that is interrupted begins anew.")
    log = report.Log(args.json and args.json.with_suffix(".answers.jsonl"), settings)
    waiting = [trial for trial in todo if trial.key not in log.answers]
    try:
        with closing(answers(waiting, engine, tokenizer, args)) as arriving:
            said = time.monotonic()
            for trial, found in arriving:
                right = trial.problem.right(found["final"])
                log.add(dict(zip(report.KEY, trial.key, strict=True)) | {"right": right} | found)
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    note(f"{len(log.answers)} of {len(todo)} answers, the last to {' '.join(map(str, trial.key))}: "
                         f"{'right' if right else 'wrong'}, {found['tokens']:,} tokens")
    finally:
        if log.path and len(log.answers) < len(todo):
            note(f"{log.path}: {len(log.answers)} of {len(todo)} answers; the same command goes on from there")
    rows = report.figures(log.answers[trial.key] for trial in todo)
    if args.json:
        transcript.write(args.json, json.dumps({**settings, "results": rows}, indent=2).encode() + b"\n")
    print(report.table(rows))
    if args.picture:
        report.picture(rows, args.picture)


def note(text):
    print(text, file=sys.stderr, flush=True)


def open_engine(args):
    """(engine, tokenizer, what it is known by)."""
    if not args.server:
        expect(args.server_model is None, ValueError, "--server-model", "--server with it", "none")
        model = gptoss.load(args.model, backend=args.backend, adapter=args.adapter)
        return LocalEngine(model), tokenizers.load(args.model), fingerprint(model)
    expect(args.adapter is None, ValueError, "--adapter", "a model on this machine", "--server")
    tokenizer = tokenizers.load(args.model)
    stop = {tokenizer.special_tokens[name] for name in ("<|return|>", "<|call|>", "<|endoftext|>")}
    engine = RemoteEngine(args.server, args.server_model, api_key=os.environ.get(KEY, "").strip() or None, stop=stop)
    return engine, tokenizer, engine.model


def answers(waiting, engine, tokenizer, args):
    """Yields (trial, answer) as they come: from a server several at once, from a small model here one for each core,
    from a large one one after the other."""
    def arriving(submit):
        futures = {submit(trial): trial for trial in waiting}
        yield from ((futures[future], future.result()) for future in as_completed(futures))

    if args.server:
        with requests(engine, tokenizer, args.parallel) as submit:
            yield from arriving(submit)
    elif engine.model.config.hidden_size <= SMALL:
        with processes(args) as pool:
            yield from arriving(lambda trial: pool.submit(evaluate.job, evaluate.answer_here, trial.ids,
                                                          trial.sampling))
    else:
        yield from ((trial, evaluate.answer(engine, tokenizer, trial.ids, trial.sampling)) for trial in waiting)


@contextmanager
def requests(engine, tokenizer, parallel):
    """A function that begins a trial at a server, so many at once. When this is left, those under way are ended."""
    left, free, engines = threading.Event(), queue.SimpleQueue(), [copy.copy(engine) for _ in range(parallel)]

    def go_on():
        if left.is_set():
            raise EngineError("the run has ended")

    def ask(trial):
        one = free.get()
        try:
            return evaluate.answer(one, tokenizer, trial.ids, trial.sampling)
        finally:
            free.put(one)

    for one in engines:
        one.progress = go_on
        free.put(one)
    with ThreadPoolExecutor(parallel) as pool:
        try:
            yield lambda trial: pool.submit(ask, trial)
        finally:
            left.set()
            for one in engines:
                one.abort()
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
