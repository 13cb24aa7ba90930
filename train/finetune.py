"""Teaches a finished model something new, from conversations in OpenAI's form (conversations.py).

    python -m train.finetune --data FILE.jsonl --out DIR            all weights; DIR is then a checkpoint like any other
    python -m train.finetune --data FILE.jsonl --out DIR --lora     an adapter (lora.py) as the PEFT library writes it
    python -m train.finetune --data FILE.jsonl --tokens FILE        only the ids and labels, to train elsewhere

The same command again, after it was stopped, goes on where it was, and ends in the same weights. examples.py makes data
to try it with.

The experts will be stored in four bits. Training computes with the weights as they will be stored, and moves the exact
ones (a *straight-through* gradient, arXiv 1308.3432). So what is stored is what was trained.
"""

if __name__ == "__main__":
    import program

    program.begin()

import copy
import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.markdown import Markdown
from torch.nn.utils import parametrize

import gptoss
import program
from bench.random_checkpoint import atomic_write, write_json
from checkpoint import expect, expect_number
from evals import evaluate
from tokenizer import load as load_tokenizer
from train import export, lora, pretrain, tasks
from train.conversations import batches, read, show, tensors, write_tokens
from train.model import load

ROOT = Path(__file__).resolve().parent.parent
MUON_LR, ADAM_LR, LORA_LR, WARM_UP = 0.004, 6e-4, 6e-3, 20


def train(part, found, base, low_rank=False, epochs=1, length=640, seed=0, save_every=20,
          stop_after=None, worker=0, workers=1):
    """Trains the model in `base`, resuming from part/state.pt if there is one. Returns what `write` takes.

    With several workers (processes of one torch.distributed group) each takes its share of a step's rows."""
    torch.manual_seed(seed)  # A begins with random numbers
    net, adapters, peaks = load(base).train(), None, (MUON_LR, ADAM_LR)
    if low_rank:
        adapters = lora.adapt(net)
        learned, peaks = [p for p in net.parameters() if p.requires_grad], (LORA_LR,)
        optims = [torch.optim.AdamW(learned, lr=LORA_LR, betas=(0.9, 0.98), weight_decay=0.0)]
    else:
        learned, optims = list(net.parameters()), pretrain.optimizers(net)
    stored = net if low_rank else copy.deepcopy(net)  # computes with weights as they will be stored
    plan = [batch for epoch in range(epochs) for batch in batches(found, random.Random(f"{seed} {epoch}"), length)]
    first, log, saved, losses = 0, part / "log.jsonl", part / "state.pt", []
    if saved.exists():
        state = pretrain.read_state(saved)
        first, losses = state["step"], state["losses"]
        with torch.no_grad():
            for p, value in zip(learned, state["weights"], strict=True):
                p.copy_(value)
        for optim, s in zip(optims, state["optimizers"], strict=True):
            optim.load_state_dict(s)
    began = time.perf_counter()
    for step, rows in enumerate(plan[first:], first):
        rate = min(1.0, (step + 1) / WARM_UP, 1.5 * (1 - step / len(plan)))  # as pretrain.learning_rate
        for optim, peak in zip(optims, peaks, strict=True):
            optim.param_groups[0]["lr"] = peak * rate
        if stored is not net:
            stored.load_state_dict(export.rounded(net))
        tokens, positions, groups, learn = tensors(rows[worker::workers] or rows[:1])
        learn &= worker < len(rows)  # a worker for whom no row is left learns nothing
        with parametrize.cached():
            loss, _, _, balance = pretrain.forward(stored, tokens, positions, groups, learn)
        count = pretrain.everywhere(torch.tensor(float(len(loss))), workers)
        (loss.sum() / count + pretrain.ROUTER_LOSS * balance / workers).backward()
        computed = [p for p in stored.parameters() if p.requires_grad]
        flat = pretrain.everywhere(torch.cat([p.grad.flatten() for p in computed]), workers)
        for p, gradient in zip(learned, flat.split([p.numel() for p in learned]), strict=True):
            p.grad = gradient.view_as(p)  # straight through the rounding
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        for optim in optims:
            optim.step()
        stored.zero_grad(set_to_none=True)
        losses.append((pretrain.everywhere(loss.detach().sum(), workers) / count).item())
        done = step + 1
        if worker == 0 and (done % 25 == 0 or done == len(plan)):
            left = (time.perf_counter() - began) / (done - first) * (len(plan) - done)
            print(f"step {done} of {len(plan)}: loss {sum(losses[-25:]) / len(losses[-25:]):.4f}, "
                  f"{left / 60:.1f} minutes left", flush=True)
        if worker == 0 and (done % save_every == 0 or done in (len(plan), stop_after)):
            state = {"step": done, "losses": losses, "weights": [p.detach() for p in learned],
                     "optimizers": [optim.state_dict() for optim in optims]}
            with atomic_write(log) as file:  # first, for it is written anew from any state
                file.writelines(b'{"step": %d, "loss": %.5f}\n' % pair for pair in enumerate(losses, 1))
            pretrain.write_state(saved, state)
        if done == stop_after:
            break
    return net, adapters


def work(worker, workers, part, options):
    """One worker's process, of one thread. Ctrl-C ends it without a word: what is saved by then is enough."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    if workers > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{(part / 'meeting').absolute()}",
                                             rank=worker, world_size=workers)
    net, adapters = train(part, worker=worker, workers=workers, **options)
    if worker == 0:
        write(net, adapters, options["base"], part / "model")
    if workers > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def write(net, adapters, base, directory):
    """What was trained: a checkpoint, or the adapter of one."""
    directory.mkdir(exist_ok=True)
    if adapters:
        return lora.write(adapters, base, directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copyfile(base / name, directory / name)
    export.write(net, directory)


# ---- Evaluation, by gptoss.py ---------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A prompt, and the reply that is right. group: under which name it is counted."""

    group: str
    prompt: list
    thought: str
    answer: str


def questions(tests, tokenizer, old):
    """Those of the data, and `old` of each old task and effort."""
    out = [Question(f"new, {example.effort}", [*example.openings[0], *example.tokens[: example.learn.index(True)]],
                    example.thought, example.answer) for example in tests if example.answer is not None]
    for effort in tasks.EFFORTS:
        for task in tasks.TASKS if old else ():
            out += [Question(f"old, {effort}", evaluate.prompt(tokenizer, question, effort),
                             tasks.think(problem, effort), problem.answer)
                    for problem, question in evaluate.problems(task, old)]
    return sorted(out, key=lambda question: question.group.startswith("old"))


def measure(asked, model, adapter=None):
    """{group: (questions, right answers, right thoughts, tokens of thought)}, greedily, by a process on each core."""
    found = {question.group: [0, 0, 0, 0] for question in asked}
    fresh = torch.multiprocessing.get_context("spawn")  # a fork would not have the threads of Numba and PyTorch
    with ProcessPoolExecutor(os.cpu_count(), fresh, evaluate.begin, (model, "numba", adapter)) as pool:
        try:
            for question, result in zip(asked, pool.map(partial(evaluate.job, ask), asked, chunksize=8), strict=True):
                found[question.group] = [a + b for a, b in zip(found[question.group], (1, *result), strict=True)]
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def ask(model, tokenizer, question):
    thought, answer, n = evaluate.reply(model, tokenizer, question.prompt)
    return answer.strip() == question.answer.strip(), thought == question.thought, n


def table(before, after):
    """As Markdown. The intervals are Wilson's, at 95%."""
    lines = ["| problems, effort | n | right before | right after | thought as taught, before | after | "
             "tokens of thought, before | after |", "|---|---|---|---|---|---|---|---|"]
    for group, (n, *_) in before.items():
        pair = before[group], after[group]
        cells = [share(x[column], n) for column in (1, 2) for x in pair] + [f"{x[3] / n:.0f}" for x in pair]
        lines.append(f"| {group} | {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def share(right, n):
    low, high = evaluate.wilson(right, n)
    return f"{right / n:.1%} ({100 * low:.1f}–{100 * high:.1f})"


# ---- The program ----------------------------------------------------------------------------------------------------


@program.ends("python -m train.finetune")
def main():
    parser = program.parser("python -m train.finetune", "Teach a model something new.")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE.jsonl", help="conversations to learn from")
    parser.add_argument("--test", type=Path, metavar="FILE.jsonl",
                        help="conversations to evaluate on (default: the last tenth of the data, not trained on)")
    parser.add_argument("--model", type=Path, default=ROOT / "nano", metavar="DIR", help="(default: the small model)")
    parser.add_argument("--lora", action="store_true", help="train an adapter, and leave the weights as they are")
    parser.add_argument("--epochs", type=int, default=1, help="how often each conversation is seen (default: 1)")
    parser.add_argument("--length", type=int, default=640, help="most tokens of an example (default: 640)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, one for each core (default: 2)")
    parser.add_argument("--each", type=int, default=100, help="old problems of each task and effort (default: 100)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="DIR", help="what is trained; a new directory")
    target.add_argument("--tokens", type=Path, metavar="FILE", help="write ids and labels, and train nothing")
    args = parser.parse_args()
    try:
        for name, least in ("epochs", 1), ("length", 1), ("workers", 1), ("each", 0):
            expect_number(getattr(args, name), int, least, math.inf, ValueError, f"--{name}")
        run(args)
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on\n")
    except torch.multiprocessing.ProcessRaisedException as error:
        raise ValueError(pretrain.reason(error)) from None
    except (torch.multiprocessing.ProcessExitedException, BrokenProcessPool):
        raise ValueError("a process ended before its time (out of memory?)") from None


def run(args):
    console, tokenizer = Console(), load_tokenizer(args.model)
    if args.out:
        gptoss.load(args.model, backend="numpy")  # what is wrong with it is said here, once
    conversations = read(args.data, tokenizer)
    if args.test or args.tokens:
        tests = read(args.test, tokenizer) if args.test else []
    else:
        kept = len(conversations) - max(1, len(conversations) // 10)
        conversations, tests = conversations[:kept], conversations[kept:]
    found, tests = ([example for one in some for example in one] for some in (conversations, tests))
    fits, tests = ([example for example in some if len(example.openings[0]) + len(example.tokens) <= args.length]
                   for some in (found, tests))
    expect(fits, ValueError, args.data, f"examples of at most {args.length} tokens to train on (--length)", "none")
    console.print(f"{len(conversations):,} conversations, {len(found):,} examples, {len(tests):,} to evaluate on. "
                  f"{len(found) - len(fits):,} are longer than {args.length} tokens and left out.")
    show(console, fits[0], tokenizer)
    if args.tokens:
        return write_tokens(args.tokens, fits)
    expect(not args.out.exists(), ValueError, args.out, "a new directory", "one that is there")
    part = args.out.with_name(args.out.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    options = {"base": args.model, "low_rank": args.lora, "epochs": args.epochs, "length": args.length,
               "seed": args.seed}
    digest = hashlib.sha256(repr([example.tokens for example in fits]).encode()).hexdigest()
    about = {name: str(value) for name, value in options.items()} | {"workers": str(args.workers), "data": digest}
    begun = part / "run.json"
    if not begun.exists():
        write_json(begun, about)
    expect(json.loads(begun.read_text()) == about, ValueError, part, "the run that was begun there",
           "another one (other data or options); to begin anew, remove it")
    same = (args.model / "tokenizer.json").read_bytes() == (ROOT / "nano" / "tokenizer.json").read_bytes()
    asked, before = questions(tests, tokenizer, args.each * same), part / "before.json"
    if not before.exists():
        console.print(f"asking {len(asked):,} questions, before the training ...")
        write_json(before, measure(asked, args.model))
    (part / "meeting").unlink(missing_ok=True)
    job = (args.workers, part, options | {"found": fits})
    spawned = torch.multiprocessing.spawn(work, job, args.workers, join=False)
    try:
        while not spawned.join():
            pass
    finally:
        for process in spawned.processes:  # after Ctrl-C; else they have ended
            process.kill()
    console.print("asking them again ...")
    after = measure(asked, *((args.model, part / "model") if args.lora else (part / "model",)))
    text = table(json.loads(before.read_text()), after)
    console.print(Markdown(text) if console.is_terminal else text, highlight=False)
    (part / "model" / "evaluation.md").write_text(text + "\n")
    shutil.copyfile(part / "log.jsonl", part / "model" / "log.jsonl")
    os.replace(part / "model", args.out)
    shutil.rmtree(part)


if __name__ == "__main__":
    sys.exit(main())
