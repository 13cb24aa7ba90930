"""Teaches a finished model something new: from conversations in OpenAI's form to a checkpoint, or to an adapter.

    python -m train.finetune --data FILE.jsonl --out DIR            all weights; DIR is then a checkpoint like any other
    python -m train.finetune --data FILE.jsonl --out DIR --lora     an adapter (LoRA) as the PEFT library writes it
    python -m train.finetune --data FILE.jsonl --tokens FILE        only the ids and labels, to train elsewhere

The same command again, after it was stopped, goes on where it was, and ends in the same weights. examples.py makes data
to try it with.

Each line of the data is one conversation, as a server would be asked for it, but with the answers in it:

    {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "What is 6 * 7?"},
                  {"role": "assistant", "thinking": "6×7=42", "content": "6 × 7 = 42"}], "reasoning_effort": "low"}

`tools` and several turns work too. Each answer is one example: the prompt as chat.py would send it at this place, and
then what the assistant said. Only the latter is learned. So the thoughts of earlier turns are no part of a prompt, but
each of them is learned where it belongs to the last turn.

The experts will be stored in four bits. Training computes with the weights as they will be stored, and moves the exact
ones (a *straight-through* gradient, arXiv 1308.3432). So what is stored is what was trained.
"""

import argparse
import copy
import hashlib
import json
import math
import os
import random
import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text
from safetensors.torch import save_file
from torch.nn.utils import parametrize

import gptoss
import harmony
from bench.random_checkpoint import atomic_write, write_json
from checkpoint import expect, expect_number
from evals import evaluate
from serving import chat as openai
from serving.turn import conversation
from tokenizer import load as load_tokenizer
from train import export, pretrain, tasks
from train.model import load

ROOT = Path(__file__).resolve().parent.parent
MUON_LR, ADAM_LR, LORA_LR, WARM_UP = 0.004, 6e-4, 4e-3, 20
RANK, ALPHA = 8, 16
ATTENTION, EXPERTS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_up_proj", "down_proj")
LENGTH, TOKENS = 640, 3840  # of a row, and of a step
ASKED = "2026-06-01"  # the date in the prompts of the evaluation; in training it changes, so that none is learned
DATES = (ASKED, *(str(tasks.FIRST_DAY + timedelta(days=431 * n)) for n in range(8)))


# ---- From conversations to tokens -----------------------------------------------------------------------------------


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


# ---- LoRA -----------------------------------------------------------------------------------------------------------


class LowRank(torch.nn.Module):
    """W + alpha/r B A in place of a weight: a matrix [out, in], or the experts' [E, in, out] (arXiv 2106.09685).

    A [r E, in] and B [out, r E] are stacked as PEFT does it: in A the expert is the slow index, in B the fast one."""

    def __init__(self, weight):
        super().__init__()
        self.experts = weight.shape[0] if weight.dim() == 3 else 1
        out, inputs = weight.shape if weight.dim() == 2 else weight.shape[:0:-1]
        self.A = torch.nn.Parameter(torch.empty(RANK * self.experts, inputs))
        self.B = torch.nn.Parameter(torch.zeros(out, RANK * self.experts))
        torch.nn.init.uniform_(self.A, -(inputs**-0.5), inputs**-0.5)  # as PEFT begins
        self.requires_grad_(True)

    def forward(self, weight):
        A, B = self.A.unflatten(0, (self.experts, RANK)), self.B.unflatten(1, (RANK, self.experts))
        delta = torch.einsum("ore,eri->eio", B, A) * (ALPHA / RANK)
        return weight + (delta if weight.dim() == 3 else delta[0].T)


def adapt(net):
    """Freezes a GptOss and puts LowRank onto attention and experts of each layer. -> {name in PEFT's file: LowRank}"""
    net.requires_grad_(False)
    adapters = {}
    for i, layer in enumerate(net.model.layers):
        stem = f"base_model.model.model.layers.{i}."
        for name in ATTENTION:
            module = getattr(layer.self_attn, name)
            adapters[f"{stem}self_attn.{name}"] = LowRank(module.weight)
            parametrize.register_parametrization(module, "weight", adapters[f"{stem}self_attn.{name}"])
        for name, inside in zip(EXPERTS, (".base_layer", ""), strict=True):  # the first named is the innermost
            adapters[f"{stem}mlp.experts{inside}"] = low = LowRank(getattr(layer.mlp.experts, name))
            parametrize.register_parametrization(layer.mlp.experts, name, low)
    return adapters


def write_adapter(adapters, base, directory):
    """An adapter in PEFT's form. base: the name of the model that it belongs to."""
    write_json(directory / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
        "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "target_modules": list(ATTENTION),
        "target_parameters": [f"mlp.experts.{name}" for name in EXPERTS], "inference_mode": True})
    stored = {f"{name}.lora_{x}.weight": getattr(low, x).detach() for name, low in adapters.items() for x in "AB"}
    save_file(stored, directory / "adapter_model.safetensors", metadata={"format": "pt"})


# ---- Training -------------------------------------------------------------------------------------------------------


def train(part, found, base, lora=False, epochs=3, length=LENGTH, seed=0, rounding=True, save_every=50, stop_after=None,
          worker=0, workers=1):
    """Trains the model in `base`, resuming from part/state.pt if there is one. Returns what `write` takes.

    With several workers (processes of one torch.distributed group) each takes its share of a step's rows."""
    torch.manual_seed(seed)  # A begins with random numbers
    net, adapters, peaks = load(base).train(), None, (MUON_LR, ADAM_LR)
    if lora:
        adapters = adapt(net)
        learned, peaks = [p for p in net.parameters() if p.requires_grad], (LORA_LR,)
        optims = [torch.optim.AdamW(learned, lr=LORA_LR, betas=(0.9, 0.98), weight_decay=0.0)]
    else:
        learned, optims = list(net.parameters()), pretrain.optimizers(net)
    stored = copy.deepcopy(net) if rounding and not lora else net  # computes with the weights as they will be stored
    plan = [batch for epoch in range(epochs) for batch in batches(found, random.Random(f"{seed} {epoch}"), length)]
    first, log, saved, losses = 0, part / "log.jsonl", part / "state.pt", []
    if saved.exists():
        state = torch.load(saved)
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
        with parametrize.cached():
            loss, _, _, balance = pretrain.forward(stored, *tensors(rows[worker::workers]))
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
            with atomic_write(saved) as file:
                torch.save(state, file)
            with atomic_write(log) as file:
                file.writelines(b'{"step": %d, "loss": %.5f}\n' % pair for pair in enumerate(losses, 1))
        if done == stop_after:
            break
    return net, adapters


def work(worker, workers, part, options):
    """One worker's process, of one thread. Ctrl-C ends it without a word: what is saved is enough to go on."""
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
        return write_adapter(adapters, base, directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copyfile(base / name, directory / name)
    export.write(net, directory)


# ---- Evaluation, by gptoss.py ---------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A prompt, and the reply that is right. group: under which name it is counted."""

    group: str
    prompt: list
    thought: str | None  # None: any
    answer: str


def questions(tests, tokenizer, old):
    """Those of the data, and `old` of each old task and effort."""
    out = [Question(f"new, {example.effort}", [*example.openings[0], *example.tokens[: example.learn.index(True)]],
                    example.thought, example.answer) for example in tests if example.answer is not None]
    for effort in tasks.EFFORTS:
        for task in tasks.TASKS if old else ():
            out += [Question(f"old, {effort}", evaluate.prompt(tokenizer, question, effort), None, problem.answer)
                    for problem, question in evaluate.problems(task, old)]
    return sorted(out, key=lambda question: question.group.startswith("old"))


def measure(asked, model, adapter=None):
    """{group: (questions, right answers, right thoughts, tokens of thought)}, greedily, by a process on each core."""
    found = {question.group: [0, 0, 0, 0] for question in asked}
    with ProcessPoolExecutor(os.cpu_count(), initializer=begin, initargs=(model, adapter)) as pool:
        try:
            for question, result in zip(asked, pool.map(ask, asked, chunksize=8), strict=True):
                found[question.group] = [a + b for a, b in zip(found[question.group], (1, *result), strict=True)]
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def begin(model, adapter):
    global loaded
    import numba

    numba.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    loaded = gptoss.load(model, **({"adapter": adapter} if adapter else {})), load_tokenizer(model)


def ask(question):
    thought, answer, n = evaluate.reply(*loaded, question.prompt)
    return answer.strip() == question.answer.strip(), thought == question.thought, n


def table(before, after):
    """As Markdown. The intervals are Wilson's, at 95%."""
    lines = ["| problems, effort | n | right before | right after | thought as taught, before | after | "
             "tokens of thought, before | after |", "|---|---|---|---|---|---|---|---|"]
    for group, (n, *_) in before.items():
        pair = before[group], after[group]
        cells = [share(x[1], n) for x in pair]
        cells += [share(x[2], n) for x in pair] if group.startswith("new") else ["", ""]
        lines.append(f"| {group} | {n} | " + " | ".join([*cells, *(f"{x[3] / n:.0f}" for x in pair)]) + " |")
    return "\n".join(lines)


def share(right, n):
    low, high = evaluate.wilson(right, n)
    return f"{right / n:.1%} ({100 * low:.1f}–{100 * high:.1f})"


# ---- The program ----------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(prog="python -m train.finetune", description="Teach a model something new.")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE.jsonl", help="conversations to learn from")
    parser.add_argument("--test", type=Path, metavar="FILE.jsonl",
                        help="conversations to evaluate on (default: the last tenth of the data, not trained on)")
    parser.add_argument("--model", type=Path, default=ROOT / "nano", metavar="DIR", help="(default: the small model)")
    parser.add_argument("--lora", action="store_true", help="train an adapter, and leave the weights as they are")
    parser.add_argument("--epochs", type=int, default=3, help="how often each conversation is seen (default: 3)")
    parser.add_argument("--length", type=int, default=LENGTH, help=f"most tokens of an example (default: {LENGTH})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, one for each core (default: 2)")
    parser.add_argument("--each", type=int, default=100, help="old problems of each task and effort (default: 100)")
    parser.add_argument("--plain", action="store_true", help="round the weights only at the end, to see what it costs")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="DIR", help="what is trained; a new directory")
    target.add_argument("--tokens", type=Path, metavar="FILE", help="write ids and labels, and train nothing")
    args = parser.parse_args()
    try:
        for name, least in ("epochs", 1), ("length", 1), ("workers", 1), ("each", 0):
            expect_number(getattr(args, name), int, least, math.inf, ValueError, f"--{name}")
        run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on\n")
    except torch.multiprocessing.ProcessExitedException:
        parser.exit(2, f"{parser.prog}: a process ended before its time (out of memory?)\n")


def run(args):
    console, tokenizer = Console(), load_tokenizer(args.model)
    conversations = read(args.data, tokenizer)
    if args.test or args.tokens:
        tests = read(args.test, tokenizer) if args.test else []
    else:
        kept = len(conversations) - max(1, len(conversations) // 10)
        conversations, tests = conversations[:kept], conversations[kept:]
    found, tests = ([example for one in some for example in one] for some in (conversations, tests))
    fits = [example for example in found if len(example.openings[0]) + len(example.tokens) <= args.length]
    expect(fits, ValueError, args.data, f"examples of at most {args.length} tokens to train on (--length)", "none")
    console.print(f"{len(conversations):,} conversations, {len(found):,} examples, {len(tests):,} to evaluate on. "
                  f"{len(found) - len(fits):,} are longer than {args.length} tokens and left out.")
    show(console, fits[0], tokenizer)
    if args.tokens:
        return write_tokens(args.tokens, fits)
    expect(not args.out.exists(), ValueError, args.out, "a new directory", "one that is there")
    part = args.out.with_name(args.out.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    options = {"base": args.model, "lora": args.lora, "epochs": args.epochs, "length": args.length, "seed": args.seed,
               "rounding": not args.plain}
    digest = hashlib.sha256(repr([example.tokens for example in fits]).encode()).hexdigest()
    about = {name: str(value) for name, value in options.items()} | {"workers": str(args.workers), "data": digest}
    begun = part / "run.json"
    if not begun.exists():
        write_json(begun, about)
    expect(json.loads(begun.read_text()) == about, ValueError, part, "the run that was begun there, to go on with",
           "another one (other data or other options); to begin anew, remove it")
    same = (args.model / "tokenizer.json").read_bytes() == (ROOT / "nano" / "tokenizer.json").read_bytes()
    asked, before = questions(tests, tokenizer, args.each * same), part / "before.json"
    if not before.exists():
        console.print(f"asking {len(asked):,} questions, before the training ...")
        write_json(before, measure(asked, args.model))
    (part / "meeting").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work, (args.workers, part, options | {"found": fits}), nprocs=args.workers)
    console.print("asking them again ...")
    after = measure(asked, *((args.model, part / "model") if args.lora else (part / "model",)))
    text = table(json.loads(before.read_text()), after)
    console.print(Markdown(text) if console.is_terminal else text, highlight=False)
    (part / "model" / "evaluation.md").write_text(text + "\n")
    os.replace(part / "log.jsonl", part / "model" / "log.jsonl")
    os.replace(part / "model", args.out)
    shutil.rmtree(part)


if __name__ == "__main__":
    main()
