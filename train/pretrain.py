"""Trains the small model from nothing: endless problems, Harmony messages, two optimizers, one loop.

    python -m train.pretrain --out DIR                 48 million tokens: an hour or two on two cores
    python -m train.pretrain --out DIR                 again after it was stopped: goes on, with the same curve
    python -m train.pretrain --out DIR --export TO     writes the trained model in the published format

What a row of the batch is, and which of its tokens are learned, says rows.py. The problems are those of tasks.py.
"""

if __name__ == "__main__":
    import program

    program.begin()

import hashlib
import io
import json
import math
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import program
from bench.random_checkpoint import atomic_write
from checkpoint import expect, expect_number
from tokenizer import load as load_tokenizer
from train import export, tasks, vocabulary
from train.model import GptOss, fused_attention
from train.rows import row

SHAPE = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 128, "sliding_window": 64,
    "max_position_embeddings": 4096, "initial_context_length": 1024, "rms_norm_eps": 1e-5, "swiglu_limit": 7.0,
    "rope_theta": 10000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                                            "original_max_position_embeddings": 1024, "truncate": False},
}
MUON_LR, ADAM_LR, WARM_UP = 0.02, 3e-3, 100
ROUTER_LOSS = 0.01
TOKENS = 48_000_000


def new_model(vocab_size, seed, **shape):
    """A model with small random weights."""
    shape = SHAPE | shape
    layer_types = [("sliding_attention", "full_attention")[i % 2] for i in range(shape["num_hidden_layers"])]
    torch.manual_seed(seed)
    model = GptOss(SimpleNamespace(vocab_size=vocab_size, layer_types=layer_types, **shape))
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            fan_in = weight.shape[1]                # [out, in], and [E, in, out] of the experts
            torch.nn.init.normal_(weight, std=0.02 if "embed" in name or "lm_head" in name else 0.5 / math.sqrt(fan_in))
        elif name.endswith("_proj.bias"):
            torch.nn.init.zeros_(weight)
    return model


# --- batches ---------------------------------------------------------------------------------------------------------


def batch(seed, step, tokenizer, rows, length):
    """These rows of a step, the same at every call: what makes a resumed run the same run."""
    made = [row(random.Random(f"{seed} {step} {i}"), tokenizer, length) for i in rows]
    tokens, positions, groups, learn = (torch.tensor(column) for column in zip(*made, strict=True))
    return tokens, positions, groups, learn


def by_conversation(groups):
    """An `attention` for rows made by `row`: each conversation is computed by itself, with the row's system message.

    The same numbers as the plain function with its mask, without the three quarters of the scores that are masked
    anyway.
    """
    runs = [torch.unique_consecutive(g, return_counts=True)[1].tolist() for g in groups]
    lengths = [n for counts in runs for n in counts]

    def attend(q, k, v, sinks, mask):
        B, H, T, D = q.shape
        q, k, v = (x.transpose(0, 1).reshape(1, H, B * T, D).split(lengths, 2) for x in (q, k, v))
        out, i = [], 0
        for b, counts in enumerate(runs):
            system, start = i, 0
            for n in counts:
                seen = mask[b, 0, start:start + n]                                      # [n, T]
                if start == 0:
                    keys, values, seen = k[i], v[i], seen[:, :n]
                else:
                    keys, values = torch.cat((k[system], k[i]), 2), torch.cat((v[system], v[i]), 2)
                    seen = torch.cat((seen[:, :counts[0]], seen[:, start:start + n]), 1)
                out.append(fused_attention(q[i], keys, values, sinks, seen[None, None]))
                start, i = start + n, i + 1
        return torch.cat(out, 2).view(H, B, T, D).transpose(0, 1)
    return attend


def forward(model, tokens, positions, groups, learn):
    """-> the loss of each learned token [n], whether it was the likeliest, its place in the batch (flat), the router
    loss."""
    visible = (groups[:, :, None] == groups[:, None, :]) | (groups[:, None, :] == 0)
    h, routing = model.hidden(tokens, positions, visible, by_conversation(groups))
    target = learn[:, 1:].flatten().nonzero().flatten()                                 # learned tokens, as targets
    logits = model.lm_head(h[:, :-1].flatten(0, 1)[target])
    labels = tokens[:, 1:].flatten()[target]
    loss = F.cross_entropy(logits, labels, reduction="none")
    balance = 0.0
    for scores, chosen in routing:                  # Switch Transformer's (2021): 1 if the experts are used evenly
        E = scores.shape[1]
        used = torch.bincount(chosen.flatten(), minlength=E) / chosen.numel()
        balance = balance + E * (used * torch.softmax(scores, -1).mean(0)).sum() / len(routing)
    return loss, logits.argmax(-1) == labels, target, balance


# --- optimizers -----------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024), for matrices [out, in] and stacks of them."""

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(m, group["momentum"]))                  # Nesterov
                rows, columns = p.shape[-2:]
                p.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(g):
    """The orthogonal matrix near g [..., rows, columns], roughly: five Newton-Schulz steps push all singular values
    to 1."""
    wide = g.shape[-2] <= g.shape[-1]
    x = g if wide else g.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide else x.transpose(-1, -2)


def optimizers(model):
    matrices = [p for n, p in model.named_parameters() if p.dim() > 1 and "_proj" in n and not n.endswith("bias")]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [Muon(matrices, lr=MUON_LR), torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)]


def learning_rate(step, steps):
    """Warm-up, level for a third, then straight down to zero: most is learned on the way down."""
    return min(1.0, (step + 1) / WARM_UP, 1.5 * (1 - step / steps))


# --- evaluation while training --------------------------------------------------------------------------------------


def held_out_rows(tokenizer, length, each):
    """Rows of held-out problems: [(task, effort, row), ...], `each` rows for each task and effort."""
    out = []
    for task in tasks.TASKS:
        for effort in tasks.EFFORTS:
            def converse(rng, setting, task=task):
                return [tasks.turn(rng, tasks.draw(rng, task, "test"), setting, slips=False)]
            for i in range(each):
                rng = random.Random(f"held out {task} {effort} {i}")
                setting = tasks.Setting(effort, "2026-01-01")
                out.append((task, effort, row(rng, tokenizer, length, converse, setting)))
    return out


@torch.no_grad()
def evaluate(model, rows):
    """{"task effort": (loss, share of conversations in which every token was the likeliest)}.

    A thought without slips follows from its problem, so that share is what greedy decoding would get right word for
    word; at high effort that is a lower bound, because a check can still save a wrong step.
    """
    model.eval()
    sums = {}
    for start in range(0, len(rows), 16):
        part = rows[start:start + 16]
        columns = [torch.tensor(column) for column in zip(*(r for _, _, r in part), strict=True)]
        loss, right, target, _ = forward(model, *columns)
        groups, width = columns[2][:, 1:], columns[2].shape[1] - 1
        for i, (task, effort, _) in enumerate(part):
            mine = target // width == i
            group = groups[i][target[mine] % width]
            entry = sums.setdefault(f"{task} {effort}", [0.0, 0, 0, 0])
            entry[0] += loss[mine].sum().item()
            entry[1] += int(mine.sum())
            entry[2] += sum(bool(right[mine][group == g].all()) for g in group.unique())
            entry[3] += len(group.unique())
    model.train()
    return {name: (round(loss / n, 4), round(exact / total, 3)) for name, (loss, n, exact, total) in sums.items()}


def picture(log, path):
    """Training loss, and held-out accuracy by effort, over tokens."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    steps = [x for x in lines if "loss" in x]
    left.plot([x["tokens"] / 1e6 for x in steps], [x["loss"] for x in steps], lw=1)
    left.set(yscale="log", xlabel="million tokens", ylabel="loss of assistant tokens", title="training")
    evals = [x for x in lines if "held_out" in x]
    for effort in tasks.EFFORTS:
        mean = [sum(v[1] for k, v in x["held_out"].items() if k.endswith(effort)) / len(tasks.TASKS) for x in evals]
        right.plot([x["tokens"] / 1e6 for x in evals], mean, label=effort)
    right.set(xlabel="million tokens", ylabel="word for word right", ylim=(0, 1),
              title="held-out problems, mean over tasks")
    right.legend()
    fig.tight_layout()
    with atomic_write(path) as file:
        fig.savefig(file, format="png", dpi=90)


# --- the loop -------------------------------------------------------------------------------------------------------


def train(out, tokens=TOKENS, rows=12, length=640, seed=0, save_every=150, eval_every=500, shape=None, stop_after=None,
          worker=0, workers=1):
    """Trains until `tokens` are seen, resuming from out/checkpoint.pt if there is one. Returns the model.

    With several workers (processes of one torch.distributed group) each takes its share of a step's rows, and the
    gradients are summed: the step of one worker, but that the router loss is a mean over workers, not over all rows.
    """
    out = Path(out)
    tokenizer = load_tokenizer(out)
    model = new_model(tokenizer.vocab_size, seed, **(shape or {}))
    optims = optimizers(model)
    steps, first = tokens // (rows * length), 0
    log, saved = out / "log.jsonl", out / "checkpoint.pt"
    run = {"tokens": tokens, "rows": rows, "length": length, "seed": seed, "workers": workers, "shape": shape or {},
           "tokenizer.json": hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()}
    if saved.exists():
        state = read_state(saved)
        for name, value in state.get("run", {}).items():
            expect(run[name] == value, ValueError, saved, f"the state of a run with {name} {run[name]}", value)
        model.load_state_dict(state["model"])
        for optim, s in zip(optims, state["optimizers"], strict=True):
            optim.load_state_dict(s)
        first = state["step"]
    if worker == 0 and log.exists():
        with atomic_write(log) as file:
            file.writelines(line + b"\n" for line in log.read_bytes().splitlines() if 0 < step_of(line) <= first)
    test = held_out_rows(tokenizer, length, 3) if eval_every and worker == 0 else []
    began, losses = time.perf_counter(), []
    for step in range(first, steps):
        for optim, peak in zip(optims, (MUON_LR, ADAM_LR), strict=True):
            for group in optim.param_groups:
                group["lr"] = peak * learning_rate(step, steps)
        tokens, positions, groups, learn = batch(seed, step, tokenizer, range(worker, rows, workers), length)
        loss, _, _, balance = forward(model, tokens, positions, groups, learn)
        learned = everywhere(torch.tensor(float(len(loss))), workers)
        (loss.sum() / learned + ROUTER_LOSS * balance / workers).backward()
        if workers > 1:
            flat = everywhere(torch.cat([p.grad.flatten() for p in model.parameters()]), workers)
            for p, grad in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True):
                p.grad.copy_(grad.view_as(p))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
        model.zero_grad(set_to_none=True)
        losses.append((everywhere(loss.detach().sum(), workers) / learned).item())
        done = step + 1
        if worker > 0:
            if done == stop_after:
                break
            continue
        entry = {"step": done, "tokens": done * rows * length}
        if done % 10 == 0 or done == steps:
            speed = (done - first) * rows * length / (time.perf_counter() - began)
            write_log(log, entry | {"loss": round(sum(losses) / len(losses), 5), "balance": round(balance.item(), 3),
                                    "lr": round(learning_rate(step, steps), 4), "tokens_per_second": round(speed)})
            losses = []
        if eval_every and (done % eval_every == 0 or done == steps):
            write_log(log, entry | {"held_out": evaluate(model, test)})
            picture(log, out / "loss.png")
        if done % save_every == 0 or done in (steps, stop_after):
            write_state(saved, {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optims],
                                "step": done, "run": run})
        if done == stop_after:
            break
    return model


def everywhere(x, workers):
    """The sum of x over all workers."""
    if workers > 1:
        torch.distributed.all_reduce(x)
    return x


def work(worker, workers, out, options):
    """One worker's process: one core each, because two threads of one process are hardly faster than one. Ctrl-C ends
    it without a word: what is saved by then is enough."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{(out / 'meeting').absolute()}", rank=worker,
                                         world_size=workers)
    train(out, worker=worker, workers=workers, **options)
    torch.distributed.barrier()                         # the first may still be writing, and the group needs all
    torch.distributed.destroy_process_group()           # or its threads may outlive the process, which then aborts


def write_state(path, state):
    """The state of a training, in a file that gets its name when all is written, or never."""
    stored = io.BytesIO()
    torch.save(state, stored)
    with atomic_write(path) as file:
        file.write(stored.getbuffer())


def read_state(path):
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # PyTorch has many for a file that is damaged
        raise ValueError(f"{path}: expected the state of a training, found a damaged file; to begin anew, remove it "
                         f"({type(error).__name__})") from None


def step_of(line):
    """The step of a line in the log, or 0 if that is not a whole line: a full disk or a kill may have cut it."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return 0


def reason(error):
    """The last line of what a process raised: its sentence, without the name of the class."""
    return str(error).strip().splitlines()[-1].partition(": ")[2]


def write_log(log, entry):
    with open(log, "a") as file:
        file.write(json.dumps(entry) + "\n")
    text = entry.get("held_out") and {e: {k.split()[0]: v[1] for k, v in entry["held_out"].items() if k.endswith(e)}
                                      for e in tasks.EFFORTS}
    print(text or " ".join(f"{k} {v}" for k, v in entry.items()), flush=True)


@program.ends("python -m train.pretrain")
def main():
    parser = program.parser("python -m train.pretrain", "Train the small model.")
    parser.add_argument("--out", required=True, type=Path,
                        help="directory for the tokenizer, checkpoints and log; resumes if it has them")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, one for each core")
    parser.add_argument("--export", metavar="DIR", help="only write the model of --out to DIR, in the published format")
    args = parser.parse_args()
    for name, value in ("--tokens", args.tokens), ("--workers", args.workers):
        expect_number(value, int, 1, math.inf, ValueError, name)
    if args.export:
        return export_run(args.out, Path(args.export))
    if not (args.out / "tokenizer.json").exists():
        vocabulary.write(args.out)
    (args.out / "meeting").unlink(missing_ok=True)
    options = {"tokens": args.tokens, "seed": args.seed}
    spawned = torch.multiprocessing.spawn(work, (args.workers, args.out, options), nprocs=args.workers, join=False)
    try:
        while not spawned.join():
            pass
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on\n")
    except torch.multiprocessing.ProcessRaisedException as error:
        raise ValueError(reason(error)) from None
    except torch.multiprocessing.ProcessExitedException:
        raise ValueError("a process ended before its time (out of memory?)") from None
    finally:
        for process in spawned.processes:  # after Ctrl-C; else they have ended
            process.kill()


def export_run(out, target):
    """The model of the last step in `out`, and its vocabulary, as a published checkpoint in `target`."""
    for name in ("tokenizer.json", "checkpoint.pt"):
        expect((out / name).is_file(), ValueError, out / name, "a file that training wrote", "none")
    target.mkdir(parents=True, exist_ok=True)
    with atomic_write(target / "tokenizer.json") as file:
        file.write((out / "tokenizer.json").read_bytes())
    model = new_model(load_tokenizer(target).vocab_size, seed=0)
    model.load_state_dict(read_state(out / "checkpoint.pt")["model"])
    export.write(model, target)


if __name__ == "__main__":
    sys.exit(main())
