"""A chat in the terminal: `python chat.py` talks to the small model in nano/, `--model DIR` to any gpt-oss checkpoint.

What is said, and to whom, is conversation.py's. This file is the screen and the keyboard: the thoughts of the model
(channel "analysis") are shown dim, its answer (channel "final") bright.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from rich.text import Text

import gptoss
import simd
import tokenizer as tokenizers
from checkpoint import expect_number
from conversation import Conversation, LocalEngine
from harmony import EFFORTS

HERE = Path(__file__).resolve().parent
SMALL = 50e6  # bytes of a checkpoint with which NumPy alone keeps up a conversation
HELP = """\
/effort low|medium|high   how long to think before answering (now: {effort})
/reset                    forget the conversation
/stats                    show or hide tokens and tokens per second
/help, /exit              this text; leave (also Ctrl-D)
Ctrl-C stops a reply and keeps the conversation."""


# ---- The model, at once ---------------------------------------------------------------------------------------------

class Changeover(gptoss.Model):
    """A model that is loaded for NumPy and computes with the kernels once those are compiled."""
    changed = False

    def __call__(self, *args, **kwargs):
        if not self.changed and simd.all_compiled():
            self.change_over()
        return super().__call__(*args, **kwargs)

    def change_over(self):
        self.operations, self.changed = gptoss.operations_of("numba"), True


def prepare(model, directory, screen):
    """Sees to it that the kernels are compiled, which takes half a minute once.

    A small model does not wait for that. It answers through NumPy while a process of its own compiles. The process goes
    on when this one ends, so that the next start finds all compiled."""
    if simd.all_compiled():
        return
    if sum(file.stat().st_size for file in directory.glob("*.safetensors")) > SMALL:
        compile_kernels(lambda state: screen.note(f"The first run compiles the kernels: {state}"))
        model.change_over()
    elif simd.DIRECTORY:
        compile_in_background(simd.DIRECTORY / "begun")


def compile_kernels(report):
    """Has the small model read and write a little, which compiles all. Calls report("1 of 7, rms_norm") and so on, as
    each operation returns for the first time."""
    kernels, done = gptoss.operations_of("numba"), []

    def reporting(name):
        def run(*args):
            result = getattr(kernels, name)(*args)
            if name not in done:
                done.append(name)
                report(f"{len(done)} of {len(gptoss.OPERATIONS)}, {name}")
            return result

        return run

    backend = SimpleNamespace(**{name: reporting(name) for name in gptoss.OPERATIONS})
    model = gptoss.load(HERE / "nano", backend=backend)
    list(gptoss.generate(model, range(40), max_tokens=2))  # many tokens at once, then one
    simd.mark_all_compiled()


def compile_in_background(begun):
    """Starts a process that compiles, unless a chat has just done so, which the file `begun` says. If that cannot be,
    NumPy goes on."""
    with suppress(OSError):
        if begun.exists() and time.time() - begun.stat().st_mtime < 120:
            return
        begun.touch()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process inherits it: Ctrl-C only stops a reply
        try:
            subprocess.Popen([sys.executable, "-c", "import chat; chat.compile_quietly()"], cwd=HERE,
                             env=os.environ | {"NUMBA_CACHE_DIR": str(simd.DIRECTORY.parent)},
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        finally:
            signal.signal(signal.SIGINT, handler)


def compile_quietly():
    if hasattr(os, "nice"):  # Windows has none
        os.nice(10)  # the reply comes first
    compile_kernels(lambda state: None)


class Measured:
    """An engine that counts what another one reads and generates, and how long that takes."""

    def __init__(self, engine):
        self.engine, self.context, self.stats = engine, engine.context, ""

    def generate(self, tokens, **sampling):
        ids = self.engine.generate(tokens, **sampling)
        return self.count(ids, len(tokens), self.engine.cache.length)

    def count(self, ids, length, known):
        began, read, count = time.perf_counter(), 0.0, 0
        try:
            for id in ids:
                read, count = read or time.perf_counter() - began, count + 1
                yield id
        finally:
            rate = (count - 1) / max(time.perf_counter() - began - read, 1e-9)  # the first comes with the prompt
            self.stats = (f"{length} tokens of prompt, {known} of them known, read in {read:.2f} s; "
                          f"{count} generated, {rate:.1f} tokens/s")


# ---- The screen -----------------------------------------------------------------------------------------------------

class Screen:
    """Prints a reply: to a terminal all of it, thoughts dim; to a pipe or a file the answer alone."""

    STYLES = {"analysis": "dim", "commentary": "cyan", "call": "magenta", "final": "bold", "note": "yellow"}

    def __init__(self):
        self.console = Console(highlight=False, soft_wrap=True)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.terminal = sys.stdout.isatty()

    def show(self, pieces):
        shown = None
        for channel, text in pieces:
            if not self.terminal:
                if channel == "note":
                    print(f"chat.py: {text}", file=sys.stderr)
                elif channel == "final":
                    print(text, end="", flush=True)
                    shown = channel
                continue
            if channel != shown:
                self.console.print("" if shown is None else "\n")
            shown = channel
            # control characters would move the cursor or worse: only line breaks and tabs go through
            text = "".join(c for c in text if c.isprintable() or c in "\n\t")
            self.console.print(Text(text), style=self.STYLES.get(channel, ""), end="")
        if shown is not None:
            self.console.print("\n" if self.terminal else "")

    def note(self, text):
        self.errors.print(Text(text), style="yellow" if self.terminal else "")


def converse(chat, screen, sampling, stats):
    """Ask what the user types, until the input ends. Without a terminal each line of the input is a question."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (line editing in input())

        screen.note("Type a question, or /help. The model thinks as hard as you say: /effort low, medium or high.")
    while True:
        try:
            line = input("\n> " if interactive else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            screen.note("\n(Ctrl-D or /exit leaves)")
            continue
        command, _, argument = line.partition(" ")
        if command in ("/exit", "/quit"):
            return
        if command == "/help":
            screen.note(HELP.format(effort=chat.effort))
        elif command == "/reset":
            chat.messages.clear()
            screen.note("The conversation is forgotten.")
        elif command == "/stats":
            stats = not stats
            screen.note(f"stats {'on' if stats else 'off'}")
        elif command == "/effort":
            if argument.strip() in EFFORTS:
                chat.effort = argument.strip()
                screen.note(f"effort {chat.effort}")
            else:
                screen.note(f"/effort: expected {', '.join(EFFORTS)}, found {argument.strip()!r}")
        elif line.startswith("/"):
            screen.note(f"{command}: no such command, /help lists them")
        elif line:
            try:
                answer(chat, screen, line, sampling, stats)
            except KeyboardInterrupt:
                screen.note("\n(stopped)")
            except ValueError as error:  # this question cannot be asked; the conversation goes on
                screen.note(f"{error}{'; /reset begins anew' if 'the context' in str(error) else ''}")


def answer(chat, screen, text, sampling, stats):
    with closing(chat.ask(text, **sampling)) as pieces:
        screen.show(pieces)
    if stats:
        screen.note(chat.engine.stats)


class Arguments(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"chat.py: {message}\n")


def number(kind, low, high=math.inf):
    """A type for argparse: an int or a float from low to high."""
    def error(message):
        return argparse.ArgumentTypeError(message.removeprefix(": "))

    def parse(text):
        value = None
        with suppress(ValueError):
            value = kind(text)
        return expect_number(value, kind, low, high, error, "", repr(text))

    return parse


def parse_arguments(argv):
    parser = Arguments(description="Chat with a gpt-oss model.")
    parser.add_argument("--model", metavar="DIR", default=HERE / "nano", type=Path,
                        help="a checkpoint, HF or original/ layout (default: the small model in nano/)")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and exit")
    parser.add_argument("--system", metavar="TEXT", help="instructions for the model, as its developer gives them")
    parser.add_argument("--effort", choices=EFFORTS, default="medium", help="how hard to think (default: medium)")
    parser.add_argument("--temperature", type=number(float, 0),
                        help="randomness; 0: always the likeliest token (default: as the checkpoint says, or 1)")
    parser.add_argument("--top-p", type=number(float, 1e-9, 1), default=1.0,
                        help="draw from the likeliest tokens whose probabilities reach this (default: 1, all tokens)")
    parser.add_argument("--seed", type=number(int, 0), help="the same seed gives the same reply")
    parser.add_argument("--max-tokens", type=number(int, 1), help="longest reply, thoughts included")
    parser.add_argument("--stats", action="store_true", help="show tokens and tokens per second after each reply")
    args = parser.parse_args(argv)
    if args.prompt is not None and not args.prompt.strip():
        parser.error("--prompt: expected a text, found nothing")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")
    screen = Screen()
    try:
        model, tokenizer = gptoss.load(args.model, backend="numpy", model=Changeover), tokenizers.load(args.model)
        prepare(model, args.model, screen)
        chat = Conversation(Measured(LocalEngine(model)), tokenizer, effort=args.effort, instructions=args.system)
        temperature = args.temperature if args.temperature is not None else 1.0 if model.config.do_sample else 0.0
        sampling = {"temperature": temperature, "top_p": args.top_p, "seed": args.seed, "max_tokens": args.max_tokens}
        if args.prompt is None:
            converse(chat, screen, sampling, args.stats)
        else:
            answer(chat, screen, args.prompt, sampling, args.stats)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # whoever read our output has left
            return 0
        print(f"chat.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
