"""See a model think: `python xray.py "What is 23 * 41?"` asks a question and shows what went on inside at each token.

    question -> Recorder, a gptoss.Model that watches itself -> trace -> the terminal, a JSON file, or a page to look at

The prompt and the reply are those of chat.py at temperature 0. Nothing in gptoss.py knows of this file: the Recorder
takes whatever operations the model runs with, and stands between the model and two of them. What it keeps of a token:

    size      how large the residual stream is (its root mean square) before and after each layer
    experts   which experts each layer chose, with their weights
    heads     how much of its attention each head gave to which earlier token, and how much to its sink
    lens      which tokens would come next if the model ended after this layer. This is the logit lens: the last norm
              and the unembedding, applied to the stream as it is there
    best      which tokens come next, as the model sees it at its end

A small model runs in NumPy, exactly as gptoss.py has it, and a large one with the kernels. Letters as in gptoss.py.
"""

if __name__ == "__main__":
    import program

    program.begin()

import base64
import json
import math
import os
import re
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.columns import Columns
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

import compiled
import gptoss
import models
import program
import tokenizer as tokenizers
import transcript
from checkpoint import bf16_to_float32, expect, expect_number, read_config, read_json
from conversation import CHANNEL, STOPS, Conversation, LocalEngine
from harmony import EFFORTS, ROLES
from terminal import clean

BEST = 3  # tokens of each prediction that are kept
ROWS = 32  # streams that go through the unembedding at once: of a large vocabulary, 512 would take 400 MB
LEAST, HEADS = 3, 4  # shown in detail: so many of the least sure tokens, and of a layer so many heads
LARGEST = 2_500_000  # bytes of a checkpoint that goes into a page
PAGE = Path(__file__).resolve().parent / "page"
STREAM, ATTENTION, EXPERTS, SINK = "dark_orange", "dodger_blue1", "green", "magenta"  # as in the course's pictures


# ---- Watching -------------------------------------------------------------------------------------------------------

def attention_weights(q, k, sinks, window):
    """The weights by which gptoss.attention multiplies the values, by its formula: q [T, H, D], k [G, S, D] ->
    [H, T, S + 1], with the sink's at the end."""
    (T, H, D), (G, S, _) = q.shape, k.shape
    position, key = np.arange(S - T, S)[:, None], np.arange(S)
    visible = (key <= position) & (key > position - window)  # [T, S]
    q = q.reshape(T, G, H // G, D).transpose(1, 2, 0, 3)  # [G, H/G, T, D]
    scores = q @ bf16_to_float32(k).swapaxes(1, 2)[:, None] / math.sqrt(D)  # [G, H/G, T, S]
    scores = np.where(visible, scores, -np.inf)
    sink = np.broadcast_to(bf16_to_float32(sinks).reshape(G, H // G, 1, 1), (G, H // G, T, 1))
    return gptoss.softmax(np.concatenate([scores, sink], axis=-1)).reshape(H, T, S + 1)


class Recorder(gptoss.Model):
    """A Model that keeps what goes on in it. `read`: a record of each token that it has read, in order. `surprises`: of
    each, -ln of the probability that it had before it came, None for the first. Of one cache, which is not rewound."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.watched = self.operations
        between = {"attention": self.watch_attention, "route": self.watch_route}
        self.operations = SimpleNamespace(**vars(self.watched) | between)
        self.read, self.surprises, self.next = [], [], None  # next: ln of the next token's probabilities [V]

    def attend(self, i, x, *others):
        self.streams.append(x)
        return super().attend(i, x, *others)

    def watch_attention(self, q, k, v, sinks, window):
        self.looks.append((attention_weights(q, k, sinks, window), window))
        return self.watched.attention(q, k, v, sinks, window)

    def watch_route(self, logits, K):
        self.routes.append(self.watched.route(logits, K))
        return self.routes[-1]

    def hidden(self, ids, cache):
        self.streams, self.looks, self.routes, start = [], [], [], cache.length  # of each layer one
        x = super().hidden(ids, cache)
        sizes = [np.sqrt(np.mean(stream * stream, axis=-1)) for stream in (*self.streams, x)]
        lenses = [[best for _, best in self.predictions(stream)] for stream in self.streams[1:]] + [[]]
        for id, (log_p, best) in zip(ids, self.predictions(x), strict=True):  # the last lens is what comes of it all
            self.surprises.append(None if self.next is None else -float(self.next[id]))
            self.next = log_p
            lenses[-1].append(best)
        for t in range(len(ids)):
            layers = [{"size_before": float(sizes[i][t]), "size": float(sizes[i + 1][t]),
                       "experts": list(zip(chosen[t].tolist(), weights[t].tolist(), strict=True)),
                       "heads": self.heads_of(i, t, start), "lens": lenses[i][t]}
                      for i, (chosen, weights) in enumerate(self.routes)]
            self.read.append({"best": lenses[-1][t], "layers": layers})
        return x

    def predictions(self, x):
        """What would come next, for each of the streams x [T, N] one after the other: ln of the probabilities [V] in
        float64, and the BEST likeliest ids with their probabilities."""
        for t in range(0, len(x), ROWS):
            rows = self.watched.rms_norm(x[t : t + ROWS], self.norm, self.config.rms_norm_eps)
            for log_p in self.watched.linear(rows, self.unembedding).astype(np.float64):
                log_p -= log_p.max()
                log_p -= math.log(np.exp(log_p).sum())
                best = np.argpartition(-log_p, BEST)[:BEST]
                best = best[np.argsort(-log_p[best], kind="stable")]
                yield log_p, [(int(id), math.exp(log_p[id])) for id in best]

    def heads_of(self, i, t, start):
        """Where the heads of layer i look from token t of this call, which is at position start + t."""
        weights, window = self.looks[i]  # [H, T, S + 1]; the call's last key is that of its last token
        here, first = start + t, max(0, start + t - window + 1)
        before = start + weights.shape[1] - (weights.shape[2] - 1)  # keys that are out of sight for the whole call
        return [{"sink": float(head[t, -1]), "first": first, "weights": head[t, first - before : here - before + 1]}
                for head in weights]


# ---- The trace ------------------------------------------------------------------------------------------------------

def run(model, tokenizer, question, *, name="", effort="medium", day=None, max_tokens=None, progress=int):
    """The trace of one question to a Recorder, which is asked and answers as in chat.py at temperature 0. `day`: that
    of the conversation, as "2025-08-05"; None: today. progress(n) is called when n tokens are there. Or ValueError."""
    engine, config = LocalEngine(model), model.config
    conversation = Conversation(engine, tokenizer, effort=effort, date=day)
    given = len(conversation.prompt(question))
    for _ in conversation.ask(question, temperature=0, max_tokens=max_tokens):
        progress(len(engine.held))
    about = {"name": name, "layers": config.num_hidden_layers, "heads": config.num_attention_heads,
             "kv_heads": config.num_key_value_heads, "experts": config.num_local_experts,
             "chosen": config.num_experts_per_tok, "window": config.sliding_window,
             "layer_types": list(config.layer_types), "vocab_size": config.vocab_size}
    return {"format": 1, "question": question, "effort": effort, "model": about, "changes": [],
            "tokens": tokens_of(model, tokenizer, engine.held, given)}


def tokens_of(model, tokenizer, ids, given):
    """What a trace says of ids, all but the last of which the Recorder has read. The first `given` are the prompt."""
    surprises = [*model.surprises, -float(model.next[ids[-1]])]
    read, specials = [*model.read, {"best": None, "layers": None}], set(tokenizer.special_tokens.values())

    def text(id):
        return tokenizer.decode([id]) if id < tokenizer.vocab_size else "\ufffd"  # a model may have rows to spare

    def named(best):
        return best and [[id, text(id), p] for id, p in best]

    return [{"id": int(id), "text": text(id), "special": id in specials, "given": n < given, **place,
             "probability": None if surprise is None else math.exp(-surprise), "surprise": surprise,
             "best": named(record["best"]),
             "layers": record["layers"] and [layer | {"lens": named(layer["lens"])} for layer in record["layers"]]}
            for n, (id, place, surprise, record) in enumerate(
                zip(ids, places([text(id) for id in ids]), surprises, read, strict=True))]


def places(texts):
    """Where each token stands: in which message, whose that is, on which channel, and in which part of it."""
    messages, part = [], "stop"
    for text in texts:
        if text == "<|start|>" or part == "stop":
            messages.append([])
            part = "header"
        part = "stop" if text in STOPS else part
        messages[-1].append((text, part))
        part = "content" if text == "<|message|>" else part
    for number, message in enumerate(messages):
        header = "".join(text for text, part in message if part == "header").removeprefix("<|start|>")
        role, channel = re.match(r"\w*", header)[0] or "assistant", re.search(CHANNEL, header)
        for _, part in message:
            yield {"message": number, "role": role if role in ROLES else "tool",
                   "channel": channel and channel[1], "part": part}


def decided(trace, n):
    """The first layer from which on the lens has token n at the top; None if it is not there in the end."""
    layers, id = trace["tokens"][n - 1]["layers"], trace["tokens"][n]["id"]
    leads = [layer["lens"][0][0] == id for layer in layers]
    return next((i for i in range(len(leads)) if all(leads[i:])), None)


# ---- On the screen --------------------------------------------------------------------------------------------------

def shown(text):
    """A token in quotes, with escapes for what cannot be printed; a special token stands for itself."""
    if re.fullmatch(r"<\|\w+\|>", text):
        return text
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'


def fit(text, width):
    """text in exactly so many cells of the terminal."""
    return set_cell_size(text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…", width)


def bar(share, width):
    """A bar that fills `width` cells for a share of 1, drawn in eighths of a cell."""
    full, rest = divmod(round(share * 8 * width), 8)
    return fit("█" * full + " ▏▎▍▌▋▊▉"[rest].strip(), width)


class View:
    """A trace on a console. The columns of a token's line are the methods cell_..., as many as there is room for; their
    docstrings are the legend."""

    def __init__(self, trace, tokenizer, console):
        self.trace, self.tokens, self.model = trace, trace["tokens"], trace["model"]
        self.tokenizer, self.console = tokenizer, console
        self.reply = [n for n, entry in enumerate(self.tokens) if not entry["given"]]
        L, self.digits = self.model["layers"], len(str(self.model["experts"] - 1))
        widths = {"token": 19, "sure": 11, "or": 15, "lens": max(4, L),
                  "experts": L * (self.digits + 1) * self.model["chosen"] - 1, "words": 9 * L - 1}
        window, types = str(self.model["window"]), self.model["layer_types"]
        self.sees = [window if kind == "sliding_attention" else "all" for kind in types]
        self.width = min(console.width, 120)
        self.columns, room = {}, self.width + 2
        for name, width in widths.items():
            if width + 2 <= room:
                self.columns[name], room = width, room - width - 2

    def line(self, *parts):
        """Prints parts, each a text or (text, style), as one line, which ends where the console does."""
        text = Text.assemble(*parts)
        text.rstrip()
        self.console.print(text, no_wrap=True, overflow="ellipsis")

    def heading(self, title):
        self.line()
        self.console.print(Rule(Text(title, "bold"), align="left", style="dim"), width=self.width)

    def show(self, token=None):
        """The messages, a line for each token of the reply and for each layer, and in detail how the tokens came about
        of which the model was least sure, or the one with the number `token`."""
        model, tokens, written = self.model, self.tokens, len(self.reply)
        self.line((model["name"], "bold"), f": {model['layers']} layers, {model['heads']} heads, {model['experts']} "
                  f"experts of which {model['chosen']} work on a token")
        self.line(f"effort {self.trace['effort']}, {len(tokens) - written} tokens read, {written} written")
        for message in range(tokens[-1]["message"] + 1):
            self.message([n for n, entry in enumerate(tokens) if entry["message"] == message])
        self.layers()
        least = sorted(self.reply, key=lambda n: -tokens[n]["surprise"])[:LEAST]
        self.heading("How the least sure tokens came about (any other: --token N)" if token is None else "One token")
        for n in sorted(least) if token is None else [token]:
            self.detail(n)

    def message(self, numbers):
        first = self.tokens[numbers[0]]
        content = [n for n in numbers if self.tokens[n]["part"] == "content"]
        written = [n for n in numbers if not self.tokens[n]["given"]]
        whose = " ".join(filter(None, [first["role"], first["channel"]]))
        self.heading(f"{whose}, tokens {numbers[0]} to {numbers[-1]}")
        if first["role"] == "user":  # its tokens one by one: the heads look at them, and they are named by number
            tokens = [Text.assemble((f"{n} ", "dim"), shown(self.tokens[n]["text"])) for n in content]
            self.console.print(Columns(tokens, padding=(0, 2)), width=self.width)
        else:
            ids = [self.tokens[n]["id"] for n in content]  # decoded together: a character may be in several tokens
            text = self.tokenizer.decode(id for id in ids if id < self.tokenizer.vocab_size)
            self.console.print(Text(clean(text)), width=self.width)
        if written:
            self.line()
        if self.reply[0] in written:
            for name in self.columns:
                self.line((f"{name:<9}", "bold"), (getattr(self, f"cell_{name}").__doc__, "dim"))
            self.line()
            self.line(("  ".join(fit(name, width) for name, width in self.columns.items()), "bold"))
        for n in written:
            self.line(*[part for name, width in self.columns.items()
                        for part in (*getattr(self, f"cell_{name}")(n, width), "  ")])

    def cell_token(self, n, width):
        """what the model wrote, after its number"""
        return (f"{n:>4} ", "dim"), fit(shown(self.tokens[n]["text"]), width - 5)

    def cell_sure(self, n, width):
        """the probability that it gave to this token"""
        p = self.tokens[n]["probability"]
        return (bar(p, width - 5), "" if p > 0.9 else "bold yellow"), f"{p:>5.0%}"

    def cell_or(self, n, width):
        """the next best, where that had 1% or more"""
        text, p = next((text, p) for id, text, p in self.tokens[n - 1]["best"] if id != self.tokens[n]["id"])
        return (fit(f"{fit(shown(text), width - 5).rstrip()} {p:.0%}" if p >= 0.01 else "", width),)

    def cell_lens(self, n, width):
        """how sure of it, had the model ended after layer 0, 1, ... (·: hardly)"""
        lenses = [{id: p for id, _, p in layer["lens"]} for layer in self.tokens[n - 1]["layers"]]
        shares = [lens.get(self.tokens[n]["id"], -1) for lens in lenses]  # -1: not among the three best
        return ((fit("".join("·▁▂▃▄▅▆▇█"[0 if p < 0 else min(int(8 * p), 7) + 1] for p in shares), width), STREAM),)

    def cell_experts(self, n, width):
        """those that worked on it in layer 0, 1, ..., the most important first"""
        return ((" ".join("+".join(f"{e:>{self.digits}}" for e, _ in layer["experts"])
                          for layer in self.tokens[n - 1]["layers"]), EXPERTS),)

    def cell_words(self, n, width):
        """what it would have written, had it ended after layer 0, 1, ..."""
        first = decided(self.trace, n)
        return [(fit(shown(layer["lens"][0][1]), 8) + " ", "bold" if first is not None and i >= first else "dim")
                for i, layer in enumerate(self.tokens[n - 1]["layers"])]

    def layers(self):
        """A line for each layer: what it did on average, when the tokens of the reply came about."""
        self.heading("The layers, on average over the reply")
        self.line(("layer  sees  to sinks  stream           decides     its busiest experts", "bold"))
        settled = [decided(self.trace, n) for n in self.reply]
        for i in range(self.model["layers"]):
            seen = [self.tokens[n - 1]["layers"][i] for n in self.reply]
            sink = np.mean([head["sink"] for layer in seen for head in layer["heads"]])
            before, after = (np.mean([layer[key] for layer in seen]) for key in ("size_before", "size"))
            work, share = np.zeros(self.model["experts"]), settled.count(i) / len(settled)
            for e, weight in (pair for layer in seen for pair in layer["experts"]):
                work[e] += weight / len(seen)
            busiest = "  ".join(f"e{e} {work[e]:.0%}" for e in np.argsort(-work, kind="stable")[:3])
            sizes = f"{before:>8.2f} → {after:<8.2f}"
            self.line(f"{i:>5}  {self.sees[i]:<4}", (f"{sink:>10.0%}", SINK), (sizes, STREAM),
                      f"{bar(share, 5)}{share:>5.0%}  ", (busiest, EXPERTS))
        self.line(("decides: this share of the tokens lead in the lens from this layer on", "dim"))

    def detail(self, n):
        """How token n came about: what each layer did while the token before it was read. Of many heads those that look
        most at one token, and of each the three tokens that it looks at most."""
        entry, before, first = self.tokens[n], self.tokens[n - 1], decided(self.trace, n)
        cells = (self.width - 22) // 3
        self.line()
        self.line((f"Token {n} {shown(entry['text'])}, {entry['probability']:.1%} sure", "bold"),
                  f", while token {n - 1} {shown(before['text'])} was read")
        for i, layer in enumerate(before["layers"]):
            self.line((f"layer {i:<2}", "bold"), f"  sees {self.sees[i]:<4}  ",
                      (f"stream {layer['size_before']:.2f} → {layer['size']:.2f}   ", STREAM),
                      ("  ".join(f"e{e} {weight:.0%}" for e, weight in layer["experts"]), EXPERTS))
            heads = layer["heads"]
            for h in sorted(sorted(range(len(heads)), key=lambda h: -max(heads[h]["weights"]))[:HEADS]):
                weights, looks = heads[h]["weights"], []
                for k in np.argsort(-np.asarray(weights), kind="stable")[:3]:
                    m = heads[h]["first"] + k
                    name = fit(shown(self.tokens[m]["text"]), cells - 10).rstrip()
                    looks.append((fit(f"{m} {name} {weights[k]:.0%}" if weights[k] >= 0.005 else "", cells), ATTENTION))
                self.line(f"  head {h:<3}", (f"sink{heads[h]['sink']:>5.0%}   ", SINK), *looks)
            lens = [(fit(f"{shown(text)} {p:.0%}", 16) + " ", STREAM) for _, text, p in layer["lens"]]
            self.line("  lens    ", *lens, "decided" if first == i else "")


# ---- Files ----------------------------------------------------------------------------------------------------------

def plain(value):
    """A trace as JSON holds it, its numbers rounded: to 5 digits, and the many weights of attention to 6 decimals."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [weight or 0 for weight in np.round(value.astype(np.float64), 6).tolist()]  # 0 is shorter than 0.0
    return float(f"{value:.5g}") if isinstance(value, float) else value


def in_json(value):
    """JSON in one line, which may also stand in a <script> of a page: there "</" and "<!--" would be markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("</", "<\\/").replace("<!--", "\\u003c!--")


def page(trace=None, checkpoint=None, source=PAGE):
    """The page of a run, or that in which a checkpoint runs: one file, which asks no server for anything."""
    html = (source / "index.html").read_text(encoding="utf-8")
    scripts = re.search(r"<!-- scripts: (.*?) -->", html)
    expect(scripts, ValueError, source / "index.html", "a comment <!-- scripts: ... -->", "none")
    parts = {"/*STYLE*/": (source / "style.css").read_text(encoding="utf-8"),
             "/*SCRIPTS*/": "\n".join((source / name).read_text(encoding="utf-8") for name in scripts[1].split())}
    for name, value in ("trace", plain(trace)), ("checkpoint", checkpoint):
        tag = f'<script type="application/json" id="{name}">'
        parts[f"{tag}null</script>"] = f"{tag}{in_json(value)}</script>"
    for part in parts:
        expect(html.count(part) == 1, ValueError, source / "index.html", f"{part} once", html.count(part))
    # All at once, because what is filled in may hold the name of another part.
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], html)


def checkpoint_of(directory):
    """What the page needs of a small checkpoint to run it."""
    read_config(directory)  # refuses what is no gpt-oss
    files, size = list(directory.glob("*.safetensors")), models.weight_bytes(directory)
    expect(len(files) == 1 and size < LARGEST, ValueError, directory, f"one .safetensors file of less than {LARGEST:,} "
           "bytes, which fits into a page", f"{len(files)} with {size:,} bytes")
    parts = {name: read_json(directory / f"{name}.json") for name in ("config", "generation_config", "tokenizer")}
    return {"name": directory.name, **parts, "weights": base64.b64encode(files[0].read_bytes()).decode()}


def writable(path):
    """path, if a file can come to be there. It is looked at before the model runs, which may take long."""
    path = Path(os.path.expanduser(path))
    expect(path.parent.is_dir(), ValueError, path, "a file in a directory that exists", "no such directory")
    expect(path.is_file() or not path.exists(), ValueError, path, "a name for a file", "a directory or a device")
    return path


def write(path, text):
    """Writes a file, whole or not at all."""
    transcript.write(path, text.encode(errors="replace"))


# ---- The command ----------------------------------------------------------------------------------------------------

def day(text):
    return date.fromisoformat(text).isoformat()


def parse_arguments(argv):
    parser = program.parser("xray.py", "See a gpt-oss model think: what went on inside it at each token of its reply.")
    add = parser.add_argument
    add("question", nargs="?", help="what to ask it")
    add("--model", metavar="NAME", default=os.fspath(models.NANO), help="a directory with a checkpoint, or a name on "
        "Hugging Face like openai/gpt-oss-20b (default: the small model in nano/)")
    add("--adapter", metavar="DIR", help="a LoRA adapter for the model, as PEFT saves it")
    add("--effort", choices=EFFORTS, default="medium", help="how hard to think (default: medium)")
    add("--max-tokens", type=int, metavar="N", help="longest reply")
    add("--date", type=day, help="the day that the model is told, as 2025-08-05 (default: today, as in chat.py)")
    add("--token", type=int, metavar="N", help="show in detail how token N came about")
    add("--json", metavar="FILE", help="write the trace, with all numbers")
    add("--html", metavar="FILE", help="write a page to look at the trace in a browser")
    add("--page", metavar="FILE", help="write a page in which the model itself runs; without a question")
    args = parser.parse_args(argv)
    if args.page is not None:
        for name in "question", "--adapter", "--json", "--html":
            if getattr(args, name.strip("-")) is not None:
                parser.error(f"--page: expected no {name}, found one; --html writes the page of a run")
    elif not (args.question or "").strip():
        parser.error('expected a question, as in: python xray.py "What is 23 * 41?", found none')
    return args


def load(name, note, adapter=None):
    """(a Recorder, its tokenizer, what to call it) of a model, by the names that chat.py has for them."""
    directory = models.find(name, note)
    large = models.weight_bytes(directory) > models.SMALL
    backend = "numba" if large else "numpy"
    model = gptoss.load(directory, backend=backend, adapter=models.at_home(adapter), model=Recorder)
    tokenizer = tokenizers.load(directory)
    if large and not compiled.all_compiled(*models.forms(model)):
        models.compile_kernels(lambda state: note(f"The first run compiles the kernels: {state}"), *models.forms(model))
    return model, tokenizer, models.label(name, directory, adapter)


def examine(args):
    """Does what the options ask for."""
    files = {kind: writable(path) for kind in ("json", "html", "page") if (path := getattr(args, kind)) is not None}
    if args.json is not None and args.html is not None:
        expect(files["json"].resolve() != files["html"].resolve(), ValueError, "--html", "another file than --json",
               f"{args.html}, the same")
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)

    def note(text):
        errors.print(Text(clean(text), "dim"))

    if args.page is not None:
        write(files["page"], page(checkpoint=checkpoint_of(models.find(args.model, note))))
        return
    model, tokenizer, name = load(args.model, note, args.adapter)
    with errors.status("reading") as status:  # (to a terminal only)
        trace = run(model, tokenizer, args.question, name=name, effort=args.effort, day=args.date,
                    max_tokens=args.max_tokens, progress=lambda tokens: status.update(f"{tokens:,} tokens"))
    if args.token is not None:
        expect_number(args.token, int, 1, len(trace["tokens"]) - 1, ValueError, "--token")
    if args.json is not None:
        write(files["json"], in_json(plain(trace)) + "\n")
    if args.html is not None:
        write(files["html"], page(trace))
    View(trace, tokenizer, console).show(args.token)


@program.ends("xray.py")
def main(argv=None):
    examine(parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
