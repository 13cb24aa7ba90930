"""python -m evals: how often a model is right, by task and effort, and how long it thinks.

    python -m evals                             100 held-out problems for each task and effort, greedy
    python -m evals product --model DIR         of one task, by another checkpoint with the same vocabulary
    python -m evals --each 300 --picture FILE   more problems, and the picture of the model card

Prints Markdown: the figures of nano/README.md.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from evals.evaluate import begin, call, follow, job, measure, percent, picture, recover, table
from train import tasks

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description="Right answers by task and effort.")
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
    with ProcessPoolExecutor(os.cpu_count(), initializer=begin, initargs=(args.model, args.backend)) as pool:
        results = {(task, effort): pool.submit(job, measure, task, effort, args.each)
                   for task in args.tasks for effort in tasks.EFFORTS}
        slipped = [pool.submit(job, recover, task, args.each) for task in args.tasks if task != "chat"]
        followed = {effort: pool.submit(job, follow, effort, args.each) for effort in tasks.EFFORTS}
        calls = [pool.submit(job, call, task, effort, args.each // 5) for effort in tasks.EFFORTS
                 for task in tasks.CALCULATED if task in args.tasks]
        for key, future in results.items():
            results[key] = future.result()
            print(*key, *results[key], file=sys.stderr, flush=True)
        print(table(results, args.each))
        checked = [results[task, "high"] for task in args.tasks if task != "chat"]
        right, n = (sum(column) for column in zip(*(future.result() for future in slipped), strict=True))
        print(f"\nHigh effort: of {n} slips put into its first attempt {percent(right, n)} still ended in the right "
              f"answer; {sum(score.doubted for score in checked)} of {sum(score.first for score in checked)} right "
              "first attempts were doubted.")
        n = len(checked) * args.each
        print(f"\nWhat the check is worth (chat left out): {percent(sum(score.first for score in checked), n)} of the "
              f"first attempts were right, {percent(sum(score.right for score in checked), n)} of the answers.")
        print("\nSecond turns that build on the first: " + ", ".join(
            f"{percent(future.result(), args.each)} at {effort} effort" for effort, future in followed.items()) + ".")
        if calls:
            n = len(calls) * (args.each // 5)
            print(f"\nWith a calculator offered: {percent(sum(f.result() for f in calls), n)} of {n} problems were "
                  "handed to it and answered with what it said.")
    if args.picture:
        picture(results, args.each, args.picture)


if __name__ == "__main__":
    main()
