"""python exercises/check.py [NAME ...] [--file FILE.py]: which functions of the exercises are right.

    python exercises/check.py                       all that are in exercises/e01_tokens.py to e09_files.py
    python exercises/check.py rotate attention      these
    python exercises/check.py --file mine.py        those in a file of your own

Of a wrong function it says on which input, what the first difference is, and which mistake it is if it is a known one.
At the end the small model answers a question with the functions that are right. Exit status 0 if all that were asked
for are right, 1 if not, 2 for bad arguments. Needs NumPy and tiktoken.
"""

import copy
import ctypes
import importlib.util
import inspect
import linecache
import sys
import threading
import traceback
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, Python looks for modules in exercises/ only

if __name__ == "__main__":
    import program

    program.begin()

import gptoss  # noqa: E402
import harmony  # noqa: E402
import program  # noqa: E402
from checkpoint import MXFP4, dequantize  # noqa: E402
from exercises import cases, mistakes, solutions  # noqa: E402

EXERCISES = {"bpe": "e01_tokens", "render": "e02_conversation", "rms_norm": "e03_stream", "softmax": "e04_attention",
             "attention": "e04_attention", "rope_frequencies": "e05_position", "rotate": "e05_position",
             "route": "e06_experts", "swiglu": "e06_experts", "experts": "e06_experts",
             "dequantize": "e07_four_bits", "quantize": "e07_four_bits", "filter_logits": "e08_next_token",
             "read_safetensors": "e09_files"}
OPTIONAL = {"train_bpe": "e01_tokens"}  # checked if it is named
PARTS = {"route": ("chosen", "weights"), "rope_frequencies": ("frequencies", "attention factor"),
         "quantize": ("blocks", "scales")}  # of results that are tuples
APART = ("quantize", "read_safetensors", "train_bpe")  # what no answer needs
SECONDS = 10  # for a function, and for the answer
SHOWN = 3  # wrong functions of which the details are told

# A float32 is off by up to 2^-24 of itself, a sum of n products by up to n times that, whatever their order. The
# longest sums here have 128 products. Twice as much is allowed, of the largest number of a result: a sum of large
# numbers may come out small.
TOLERANCE = 2.0**-16
EXACT = ("dequantize", "quantize", "read_safetensors")  # what is not rounded, or by a rule
ELEMENTWISE = ("rope_frequencies",)  # no sums: each number is held against itself


# ---- The reader's functions -----------------------------------------------------------------------------------------

class BadFile(ValueError):
    """A file that cannot be checked at all."""


def shown(path):
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def load(path):
    """A file of the reader's as a module."""
    if not Path(path).is_file():
        raise BadFile(f"{path}: expected a Python file, found {'a folder' if Path(path).is_dir() else 'none'}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(path).resolve())
    if spec is None:
        raise BadFile(f"{path}: expected a Python file, its name ending in .py")
    module = importlib.util.module_from_spec(spec)
    done = limited(spec.loader.exec_module, module)
    if done.error is not None:
        line = done.error.lineno if isinstance(done.error, SyntaxError) else done.place(module.__file__)[1]
        raise BadFile(f"{shown(path)}, line {line}: expected a file that can be imported, found {said(done.error)}")
    return module


def said(error):
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Done(NamedTuple):
    """What came of a call: its value, or an error and the (file, line, function) that it went through."""
    value: object
    error: BaseException | None
    frames: list

    def place(self, file):
        """Where in `file` it went wrong: (function, line), or (None, "?")."""
        return next(((frame[2], frame[1]) for frame in reversed(self.frames) if frame[0] == file), (None, "?"))


class TooLong(Exception):
    pass


def limited(function, *args):
    """Calls a function, in a thread that is told to end after SECONDS -> Done. It never hangs, and never raises."""
    done = []

    def call():
        try:
            with np.errstate(all="ignore"):
                done.append(Done(function(*args), None, []))
        except BaseException as error:  # SystemExit too: a reader's file may end the program
            frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__)]
            done.append(Done(None, error, frames))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if done:
        return done[0]
    stack = traceback.extract_stack(sys._current_frames()[thread.ident])
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    return Done(None, TooLong(f"it was still running after {SECONDS} seconds"),
                [(frame.filename, frame.lineno, frame.name) for frame in stack])


# ---- Comparing ------------------------------------------------------------------------------------------------------

def kind(value):
    """What something is, in words: "an array float32 [3, 5]"."""
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {[*value.shape]}"
    if value is None:
        return "None (is there a return?)"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


def difference(name, expected, found, spell=repr):
    """What is wrong with the result of an exercise, in one line, or None. Kind, shape and dtype go before values."""
    if isinstance(expected, list):
        return difference_of_ids(expected, found, spell)
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            missing = sorted(expected.keys() - found.keys()) if isinstance(found, dict) else ()
            more = sorted(found.keys() - expected.keys(), key=repr) if isinstance(found, dict) else ()
            words = [f"{word} {names[0]!r}" for word, names in (("no", missing), ("also", more)) if names]
            return f"result: expected a dict of {len(expected)}, found {' and '.join(words) or kind(found)}"
        triples = [(repr(key), value, found[key]) for key, value in expected.items()]
    elif isinstance(expected, tuple):
        parts = PARTS[name]
        if not isinstance(found, tuple | list) or len(found) != len(parts):
            return f"result: expected a tuple ({', '.join(parts)}), found {kind(found)}"
        triples = list(zip(parts, expected, found, strict=True))
    else:
        triples = [("result", expected, found)]
    for label, e, f in triples:
        if isinstance(e, np.ndarray):
            whole = e.dtype.kind == "i"  # of whole numbers any will do, and of computed ones any floating-point numbers
            loose = "iu" if whole else "f" if e.dtype.kind == "f" and name not in EXACT else ""
            fits = isinstance(f, np.ndarray) and (f.dtype.kind in loose if loose else f.dtype == e.dtype)
            if not fits or f.shape != e.shape:
                wanted = f"an array of whole numbers {[*e.shape]}" if whole else kind(e)
                return f"{label}: expected {wanted}, found {kind(f)}"
        elif not isinstance(f, Integral if isinstance(e, int) else Real):
            return f"{label}: expected a number, found {kind(f)}"
    if name == "quantize":  # said in numbers, and 0 may have either sign
        scales, values = (found[1], dequantize(MXFP4(*found)))
        triples = [("scales", expected.scales, scales), ("dequantize(result)", dequantize(expected), values)]
    if name == "filter_logits":  # a constant makes no difference
        triples = [("result - max(result)", expected - expected.max(), found - found.max())]
    return next(filter(None, (difference_of_arrays(name, *triple) for triple in triples)), None)


def difference_of_ids(expected, found, spell):
    if isinstance(found, np.ndarray | tuple):
        found = list(found)
    if not isinstance(found, list) or not all(isinstance(id, Integral) for id in found):
        strange = [id for id in found if not isinstance(id, Integral)] if isinstance(found, list) else [found]
        return f"result: expected a list of ids, found {kind(strange[0])}" + " in it" * isinstance(found, list)
    if found == expected:
        return None
    end = min(len(expected), len(found))
    at = next((i for i in range(end) if expected[i] != found[i]), end)
    words = [f"{ids[at]} ({spell(ids[at])})" if at < len(ids) else "the end" for ids in (expected, found)]
    return f"result[{at}]: expected {words[0]}, found {words[1]}"


def difference_of_arrays(name, label, expected, found):
    expected, found = np.asarray(expected), np.asarray(found)
    with np.errstate(all="ignore"):
        close = (found == expected) | ((found != found) & (expected != expected))
        if name not in EXACT and expected.dtype.kind == "f":
            size = np.where(np.isfinite(expected), np.abs(expected), 0)
            close |= np.abs(found - expected) <= TOLERANCE * (size if name in ELEMENTWISE else size.max(initial=0))
    if close.all():
        return None
    at = tuple(int(i) for i in np.argwhere(~close)[0]) if close.ndim else ()
    where = f"{label}[{', '.join(map(str, at))}]" if at else label
    count = f" ({np.sum(~close)} of {close.size} differ)" if close.size > 1 else ""
    return f"{where}: expected {expected[at]:.6g}, found {found[at]:.6g}{count}"


def equal(a, b):
    """Whether two arguments are the same, to the last bit."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if hasattr(a, "__dict__") and a is not b:
        return equal(vars(a), vars(b))
    return a is b or a == b


# ---- Checking -------------------------------------------------------------------------------------------------------

class Verdict(NamedTuple):
    status: str  # "right", "wrong" or "not written yet", with what belongs on the same line
    details: tuple = ()


def copied(args):
    """Arguments that a function may spoil; the tokenizer stays the same."""
    return copy.deepcopy(args, {id(cases.tokenizer()): cases.tokenizer()})


def speller(name, args):
    """What makes text of an id, for the exercises that give ids."""
    if name == "render":
        return lambda id: cases.tokenizer().decode([id]) if 0 <= id < cases.tokenizer().vocab_size else "no such id"
    if name == "bpe":
        return {id: token for token, id in args[1].items()}.get
    return repr


def check(name, function, file):
    """The Verdict on a reader's function, which stands in `file`."""
    if function is None:
        return Verdict(f"not written yet ({shown(file)} has no function {name})")
    if not callable(function):
        return Verdict("wrong", (f"expected a function, found {kind(function)}",))
    right = getattr(solutions, name)
    for what, args in cases.of(name):
        expected, given = right(*copied(args)), copied(args)
        done = limited(function, *given)
        caller, line = done.place(file)
        if isinstance(done.error, NotImplementedError):
            calls = "" if caller in (name, None) else f"; it calls {caller}"
            return Verdict(f"not written yet ({shown(file)}, line {line}{calls})")
        if done.error is not None:
            found = str(done.error) if isinstance(done.error, TooLong) else f"it raised {said(done.error)}"
            text = linecache.getline(file, line).strip() if isinstance(line, int) else ""
            found += f" ({shown(file)}, line {line}: {text})" if text else ""
        else:
            found = difference(name, expected, done.value, speller(name, args))
        if found:
            mistake = None if isinstance(done.error, TooLong) else known(name, function, args)
            return Verdict("wrong", (f"input: {what}", found, *([mistakes.sentence(mistake)] if mistake else [])))
        changed = [label for label, a, b in zip(inspect.signature(right).parameters, args, given, strict=False)
                   if not equal(a, b)]
        if changed:
            return Verdict("wrong", (f"input: {what}", f"it changes its argument {changed[0]} in place; the caller "
                                                       "still needs it as it was"))
    if function is right and function.__module__ in ("gptoss", "checkpoint"):
        return Verdict(f"right, but it is that of {function.__module__}.py")
    return Verdict("right")


broken = cache(mistakes.broken)


def known(name, function, failed):
    """The known mistake that gives what `function` gives on the case that failed, or None; of several, the one that
    does so on most cases. A mistake in what the exercise calls counts."""
    def same(mistake, args):
        found, other = limited(function, *copied(args)), limited(getattr(broken(mistake), name), *copied(args))
        if found.error is not None or other.error is not None:
            return None not in (found.error, other.error) and said(found.error) == said(other.error)
        return difference(name, other.value, found.value) is None

    possible = [mistake for mistake in mistakes.MISTAKES if name in mistakes.touched(mistake) and same(mistake, failed)]
    if len(possible) < 2:
        return possible[0] if possible else None
    return max(possible, key=lambda mistake: sum(same(mistake, args) for _, args in cases.of(name)))


# ---- The answer -----------------------------------------------------------------------------------------------------

class Text:
    """The small model's tokenizer with the reader's `bpe` in it."""

    def __init__(self, bpe):
        (self.pattern, self.ranks), self.special_tokens = cases.vocabulary(), cases.tokenizer().special_tokens
        self.bpe = bpe

    def encode(self, text):
        pieces = solutions.regex.findall(self.pattern, text)
        return [id for piece in pieces for id in self.bpe(piece.encode(), self.ranks)]


def model_with(functions):
    """gptoss.py in which the reader's functions have taken the place of its own, and the small model of it."""
    engine = mistakes.fresh(gptoss)
    for name, function in functions.items():
        setattr(engine, name, function)
    return engine, engine.load(cases.NANO, backend=engine)  # a module is an object with OPERATIONS, too


def reply_with(functions):
    """The reply of the small model to a question, as messages; all that can be the reader's is."""
    engine, model = model_with(functions)
    text = Text(functions["bpe"]) if "bpe" in functions else cases.tokenizer()
    prompt = functions.get("render", solutions.render)(cases.question(), text)
    chance = {"top_p": 0.9, "seed": 0} if "filter_logits" in functions else {"temperature": 0}
    ids = list(engine.generate(model, prompt, max_tokens=100, **chance))
    return harmony.parse(ids, cases.tokenizer(), role="assistant")


def answer(functions):
    """Lets the small model answer and says whose functions did it; whether it came to an answer."""
    done = limited(reply_with, functions)
    print(f'"{cases.QUESTION}", asked of the small model with your {listed(functions)}:\n')
    if done.error is not None:
        print(f"    no answer: {said(done.error)}")
        return False
    for message in done.value:
        print(f"    {message.channel:9} {message.content}")
    rest = [name for name in EXERCISES if name not in functions and name not in APART]
    if rest:
        print(f"\nStill the project's: {listed(rest)}.")
    return True


def listed(names):
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


# ---- The command ----------------------------------------------------------------------------------------------------

@program.ends("check.py", unread=1)
def main(arguments=None):
    parser = program.parser("check.py", "Which functions of the exercises are right.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join((*EXERCISES, *OPTIONAL))}")
    parser.add_argument("--file", metavar="FILE.py", help="a file of your own (default: exercises/e*.py)")
    args = parser.parse_args(arguments)
    home = EXERCISES | OPTIONAL
    unknown = [name for name in args.names if name not in home]
    if unknown:
        print(f"check.py: NAME: expected one of {', '.join(home)}, found {unknown[0]}", file=sys.stderr)
        return 2
    names = list(dict.fromkeys(args.names or EXERCISES))
    try:
        files = {name: Path(args.file or ROOT / "exercises" / f"{home[name]}.py") for name in names}
        modules = {file: load(file) for file in dict.fromkeys(files.values())}
    except BadFile as error:
        print(f"check.py: {error}", file=sys.stderr)
        return 2
    return report({name: modules[files[name]] for name in names})


def report(modules: dict[str, ModuleType]):
    """Checks {name: the module that has the function}, and prints. -> exit status."""
    verdicts = {}
    for name, module in modules.items():
        verdicts[name] = check(name, getattr(module, name, None), module.__file__)
        print(f"{name}: {verdicts[name].status}", flush=True)
    wrong = {name: verdict.details for name, verdict in verdicts.items() if verdict.details}
    for name in list(wrong)[:SHOWN]:
        print(f"\n{name} is wrong.", *(f"    {line}" for line in wrong[name]), sep="\n")
    if len(wrong) > SHOWN:
        print(f"\nWrong, too: {listed(list(wrong)[SHOWN:])}.")
    right = [name for name, verdict in verdicts.items() if verdict.status.startswith("right")]
    print(f"\n{len(right)} of {len(verdicts)} right.")
    functions = {name: getattr(modules[name], name) for name in right if verdicts[name].status == "right"}
    for module in modules.values():  # what a file has taken over from the project may be written by now
        for name in functions:
            if hasattr(module, name):
                setattr(module, name, functions[name])
    taking_part = [name for name in functions if name not in APART]
    answered = True
    if taking_part:
        print()
        answered = answer({name: functions[name] for name in taking_part})
    return 0 if answered and len(right) == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
