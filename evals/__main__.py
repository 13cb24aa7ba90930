"""python -m evals: how often a model is right, by task and effort, and how long it thinks.

    python -m evals                             100 held-out problems for each task and effort, greedy
    python -m evals product --model DIR         of one task, by another checkpoint with the same vocabulary
    python -m evals --each 300 --picture FILE   more problems, and the picture of the model card

Prints Markdown: the figures of nano/README.md.
"""

import argparse
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

import gptoss
import tokenizer
from checkpoint import expect_number
from evals.evaluate import begin, call, follow, job, measure, picture, recover, summary, table
from train import tasks

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(prog="python -m evals", description="Right answers by task and effort.")
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=list(tasks.TASKS),
                        help=f"of {', '.join(tasks.TASKS)} (default: all)")
    parser.add_argument("--model", metavar="DIR", type=Path, default=ROOT / "nano", help="(default: the bundled one)")
    parser.add_argument("--each", type=int, default=100, help="held-out problems for each task and effort")
    parser.add_argument("--backend", default="numba", choices=("numba", "numpy"))
    parser.add_argument("--picture", metavar="FILE", help="draw right answers over tokens of thought")
    args = parser.parse_args()
    for task in args.tasks:
        if task not in tasks.TASKS:
            parser.error(f"TASK: expected one of {', '.join(tasks.TASKS)}, found {task}")
    names = list(dict.fromkeys(args.tasks))
    try:
        expect_number(args.each, int, 1, math.inf, ValueError, "--each")
        gptoss.load(args.model, backend="numpy")  # what is wrong with either is said here, once
        tokenizer.load(args.model)
        results = run(names, args.model, args.backend, args.each)
        if args.picture:
            picture(results, args.each, args.picture)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenProcessPool:
        parser.exit(2, f"{parser.prog}: a measuring process ended before its time (out of memory?)\n")


def run(names, model, backend, each):
    """Measures and prints; the table's Scores. A fifth of the problems is tried with the calculator."""
    fifth = max(1, each // 5)
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(os.cpu_count(), initializer=begin, initargs=(model, backend)))
        stack.callback(pool.shutdown, cancel_futures=True)  # at Ctrl-C what waits is not begun
        results = {(task, effort): pool.submit(job, measure, task, effort, each)
                   for task in names for effort in tasks.EFFORTS}
        slips = [pool.submit(job, recover, task, each) for task in names if task != "chat"]
        followed = {effort: pool.submit(job, follow, effort, each) for effort in tasks.EFFORTS}
        calls = [pool.submit(job, call, task, effort, fifth) for effort in tasks.EFFORTS
                 for task in tasks.CALCULATED if task in names]
        for key, future in results.items():
            results[key] = future.result()
            print(*key, *results[key], file=sys.stderr, flush=True)
        print(table(results, each))
        followed = {effort: future.result() for effort, future in followed.items()}
        slips, calls = [future.result() for future in slips], [future.result() for future in calls]
        print(*("\n" + line for line in summary(results, slips, followed, calls, each, fifth)), sep="\n")
    return results


if __name__ == "__main__":
    main()
