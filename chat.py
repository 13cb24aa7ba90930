"""A chat in the terminal: `python chat.py` talks to the small model in nano/, `--model NAME` to any gpt-oss model.

What is said, and to whom, is conversation.py's. This file is the screen and the keyboard: the thoughts of the model
(channel "analysis") are shown dim, its answer (channel "final") bright.
"""

import argparse
import math
import sys
import time
from contextlib import closing, suppress

from rich.console import Console
from rich.text import Text

import models
from checkpoint import expect_number
from conversation import Conversation, LocalEngine
from harmony import EFFORTS

HELP = """\
/effort low|medium|high   how long to think before answering (now: {effort})
/reset                    forget the conversation
/stats                    show or hide tokens and tokens per second
/help, /exit              this text; leave (also Ctrl-D)
Ctrl-C stops a reply and keeps the conversation."""


# ---- The engine -----------------------------------------------------------------------------------------------------

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
    parser.add_argument("--model", metavar="NAME", default=models.NANO,
                        help="a checkpoint's directory; a model of the Hugging Face Hub, as owner/name[@revision]; "
                             "20b, 120b (default: the small model in nano/)")
    parser.add_argument("--yes", action="store_true", help="download --model if need be, without asking")
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
        confirm = (lambda question: True) if args.yes else models.ask
        model, tokenizer, _ = models.load(args.model, screen.note, confirm)
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
