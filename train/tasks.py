"""Programs that make endless problems and their chains of thought: the training data of the small model.

A problem knows how people ask it, its answer, and how it is thought through at each effort:

    low     no thought: the answer at once
    medium  worked steps
    high    finer steps, then an independent check; where the check fails, the work is done again

Numbers are worked from the units up and every token asks for one decision only, which is what lets a model of two
million parameters learn it. In part of the high-effort thoughts the first attempt holds a planted slip, so that there
is something to notice and to correct; planted text stands between SLIP and END, and training takes no loss on it
(nobody should learn to make mistakes), only on what follows from it.

A problem may also be one that a calculator solves: then `expression` is what to send to the tool where it is offered.
No model and no tokens here: plain text. The phrases and words are in words.py.
"""

if __name__ == "__main__":
    import program

    program.begin()

import hashlib
import random
import sys
from datetime import date, timedelta
from typing import NamedTuple

import program
from train import words

SLIP, END = "\x01", "\x02"
EFFORTS = ("low", "medium", "high")
SLIP_RATE = 0.35                    # share of high-effort training thoughts whose first attempt goes wrong
HELD_OUT_PERCENT = 10
NAMED_HELD_OUT = {"sum 12 30", "compare 9.11 9.9", "count r strawberry", "reverse strawberry", "sort strawberry",
                  "product 23 41", "product 5 58"}


def held_out(key):
    """Whether a problem belongs to the evaluation only: by a hash of its canonical key, or because the docs use it."""
    return key in NAMED_HELD_OUT or int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def plain(text):
    """A thought without its marks."""
    return text.replace(SLIP, "").replace(END, "")


# --- worked arithmetic: each returns (text, result); `slip` (a Random) plants one wrong step ------------------------


def wrong(value, rng, top):
    """A near miss of value within 0..top, marked."""
    value = rng.choice([v for v in range(max(0, value - 3), min(top, value + 3) + 1) if v != value])
    return value, f"{SLIP}{value}{END}"


def digits(n):
    """The decimal digits of n, units first."""
    return [int(c) for c in reversed(str(n))]


def add_columns(a, b, slip=None):
    """695+684: 5+4=9 9+8=17 6+6+1=13 so 1379"""
    x, y, carry, steps, out = digits(a), digits(b), 0, [], []
    n = max(len(x), len(y))
    at = slip.randrange(n) if slip else None
    for i in range(n):
        terms = [(x + [0] * n)[i], (y + [0] * n)[i]] + [carry] * (carry > 0)
        total = sum(terms)
        total, shown = wrong(total, slip, 19) if i == at else (total, total)
        steps.append("+".join(map(str, terms)) + f"={shown}")
        carry = total // 10
        out.append(total % 10 if i < n - 1 else total)
    result = int("".join(str(d) for d in reversed(out)))
    return f"{a}+{b}: {' '.join(steps)} so {result}", result


def subtract_columns(a, b, slip=None):
    """523-187: 3-7+10=6 2-8-1+10=3 5-1-1=3 so 336 (a >= b; ten is borrowed where it is needed, and paid back next)"""
    x, y, borrow, steps, out = digits(a), digits(b), 0, [], []
    at = slip.randrange(len(x)) if slip else None
    for i in range(len(x)):
        low = (y + [0] * len(x))[i]
        total, step = x[i] - low - borrow, f"{x[i]}-{low}" + "-1" * borrow
        borrow = int(total < 0)
        total += 10 * borrow
        value, shown = wrong(total, slip, 9) if i == at else (total, total)
        steps.append(step + "+10" * borrow + f"={shown}")
        out.append(value)
    result = int("".join(str(d) for d in reversed(out)))
    return f"{a}-{b}: {' '.join(steps)} so {result}", result


def times_digit(a, d, zeros=0, slip=None):
    """×70: 7×7=49 4×7+4=32 2×7+3=17 so 17290 (the row of 247×70)"""
    carry, steps, out, x = 0, [], "", digits(a)
    at = slip.randrange(len(x)) if slip else None
    for i, digit in enumerate(x):
        total = digit * d + carry
        total, shown = wrong(total, slip, 89) if i == at else (total, total)
        steps.append(f"{digit}×{d}" + (f"+{carry}" if carry else "") + f"={shown}")
        carry = total // 10
        out = str(total % 10 if i < len(x) - 1 else total) + out
    return f"×{d}{'0' * zeros}: {' '.join(steps)} so {int(out + '0' * zeros)}", int(out + "0" * zeros)


def long_multiplication(a, b, slip=None):
    """One row for each digit of b that is not zero, then their sum."""
    rows = [(d, zeros) for zeros, d in enumerate(digits(b)) if d] or [(0, 0)]
    lines, total = [f"{a}×{b}"], None
    at = slip.randrange(2 * len(rows) - 1) if slip else None        # rows and sums are equally error-prone
    for i, (d, zeros) in enumerate(rows):
        text, value = times_digit(a, d, zeros, slip if at == i else None)
        lines.append(text)
        if total is None:
            total = value
        else:
            text, total = add_columns(total, value, slip if at == len(rows) + i - 1 else None)
            lines.append(text)
    return "\n".join(lines), total


def long_division(n, d, slip=None):
    """847÷3: 8÷3=2 r2 24÷3=8 r0 7÷3=2 r1 so 282 r1"""
    rest, steps, quotient = 0, [], ""
    at = slip.randrange(len(str(n))) if slip else None
    for i, digit in enumerate(str(n)):
        part = 10 * rest + int(digit)
        q, rest = divmod(part, d)
        q, shown = wrong(q, slip, 9) if i == at else (q, q)
        steps.append(f"{part}÷{d}={shown} r{rest}")
        quotient += str(q)
    return f"{n}÷{d}: {' '.join(steps)} so {int(quotient)} r{rest}", (int(quotient), rest)


def remainders(n):
    """Casting out nines: 247 is 2 6 4, the running digit sum with nines dropped; the last is n mod 9."""
    total, out = 0, []
    for digit in str(n):
        total = (total + int(digit)) % 9
        out.append(str(total))
    return f"{n} is {' '.join(out)}.", total


def attempts(first, check, again, slip):
    """The shape of every high-effort thought: an attempt, a check, and if it fails another attempt and another check.

    first(slip), again() -> (text, result); check(result) -> (text, passed).
    """
    if slip:
        right = first(None)[1]
        for _ in range(40):         # a slip that the check cannot see teaches nothing good: draw another
            text, result = first(slip)
            if result != right and (checked := check(result)) is not None and not checked[1]:
                break
        else:
            text, result = first(None)
    else:
        text, result = first(None)
    checked, passed = check(result)
    thought = f"{text}\nCheck: {checked}"
    if not passed:
        text, result = again()
        thought += f"\nAgain: {text}\nCheck: {check(result)[0]}"
    return thought


def quote(text):
    return f'"{text}"'


def verdict(found, expected):
    """The two sides are written out before the decision."""
    return f"{found} and {expected}: {'yes' if found == expected else 'no'}."


# --- how people type ------------------------------------------------------------------------------------------------


def typed(rng, operators, direct, a, b):
    """One of the ways to type 'a operator b'."""
    if direct and rng.random() < 0.2:
        return rng.choice(direct).format(a=a, b=b)
    op = rng.choice(operators)
    gap = "" if not op.isalpha() and " " not in op and rng.random() < 0.4 else " "
    return rng.choice(words.ASK).format(f"{a}{gap}{op}{gap}{b}")


def number(rng, lengths):
    n = rng.choice(lengths)
    return rng.randrange(10 ** (n - 1) if n > 1 else 0, 10 ** n)


# --- the tasks: draw(rng) a problem; key, ask(rng), answer, value; medium(), high(slip) -----------------------------


class Problem:
    """What all of them have: key, value, answer, and what a calculator would need to be told."""

    expression = None


class Sum(Problem):
    def __init__(self, a, b):
        self.a, self.b, self.value = a, b, a + b
        self.key = f"sum {min(a, b)} {max(a, b)}"
        self.answer, self.expression = f"{a} + {b} = {a + b}", f"{a}+{b}"

    @classmethod
    def draw(cls, rng):
        n = rng.choice((1, 2, 2, 3, 3, 4, 5, 6))
        return cls(number(rng, (n,)), number(rng, (n, n, n, rng.randint(1, 6))))

    def ask(self, rng):
        return typed(rng, ("+", "+", "+", "plus"), ("Add {a} and {b}.", "add {a} to {b}",
                                                    "What is the sum of {a} and {b}?",
                     "Sum of {a} and {b}", "What do you get when you add {a} and {b}?"), self.a, self.b)

    def medium(self):
        return add_columns(self.a, self.b)[0]

    def high(self, slip):
        def check(total):
            if total < self.b:
                return f"{total} is less than {self.b}: no.", False
            text, back = subtract_columns(total, self.b)
            return f"{text}. {verdict(back, self.a)}", back == self.a
        return attempts(lambda s: add_columns(self.a, self.b, s), check, lambda: add_columns(self.b, self.a), slip)


class Difference(Problem):
    def __init__(self, a, b):
        self.a, self.b, self.value = a, b, a - b
        self.key = f"difference {max(a, b)} {min(a, b)}"
        self.answer, self.expression = f"{a} - {b} = {a - b}", f"{a}-{b}"

    @classmethod
    def draw(cls, rng):
        n = rng.choice((1, 2, 2, 3, 3, 4, 5, 6))
        a, b = number(rng, (n,)), number(rng, (n, n, rng.randint(1, n)))
        return cls(a, b) if a >= b or rng.random() < 0.15 else cls(b, a)

    def ask(self, rng):
        return typed(rng, ("-", "-", "-", "minus"), ("Subtract {b} from {a}.", "take {b} away from {a}",
                     "What is the difference between {a} and {b}?", "What is left when you take {b} from {a}?")
                     if self.a >= self.b else (), self.a, self.b)

    def medium(self):
        big, small = max(self.a, self.b), min(self.a, self.b)
        text = subtract_columns(big, small)[0]
        return text if self.a >= self.b else f"{self.a} is less than {self.b}, so minus.\n{text}"

    def high(self, slip):
        big, small = max(self.a, self.b), min(self.a, self.b)

        def check(rest):
            text, back = add_columns(rest, small)
            return f"{text}. {verdict(back, big)}", back == big
        text = attempts(lambda s: subtract_columns(big, small, s), check, lambda: subtract_columns(big, small), slip)
        return text if self.a >= self.b else f"{self.a} is less than {self.b}, so minus.\n{text}"


class Product(Problem):
    def __init__(self, a, b):
        self.a, self.b, self.value = a, b, a * b
        self.key = f"product {min(a, b)} {max(a, b)}"
        self.answer, self.expression = f"{a} × {b} = {a * b}", f"{a}*{b}"

    @classmethod
    def draw(cls, rng):
        n, m = rng.choice(((1, 1), (2, 1), (2, 1), (3, 1), (3, 1), (2, 2), (2, 2), (3, 2), (3, 2), (3, 3)))
        a, b = number(rng, (n,)), number(rng, (m,))
        return cls(a, b) if rng.random() < 0.7 else cls(b, a)

    def ask(self, rng):
        return typed(rng, ("*", "*", "x", "×", "times", "times", "multiplied by"), ("Multiply {a} by {b}.",
                     "multiply {a} and {b}", "What is the product of {a} and {b}?", "Product of {a} and {b}"), self.a,
                     self.b)

    def medium(self):
        a, b = max(self.a, self.b), min(self.a, self.b)
        if b < 10:                                              # 528×3: 500×3=1500 20×3=60 8×3=24, then added up
            parts = [d * 10 ** i for i, d in enumerate(digits(a)) if d][::-1] or [0]
            lines, values = [f"{p}×{b}={p * b}" for p in parts], [p * b for p in parts]
        else:                                                   # 979×27: 979×7=6853 979×20=19580, then added up
            parts = [d * 10 ** i for i, d in enumerate(digits(b)) if d]
            lines, values = [f"{a}×{p}={a * p}" for p in parts], [a * p for p in parts]
        total = values[0]
        for value in values[1:]:
            lines.append(f"{total}+{value}={total + value}")
            total += value
        return f"{a}×{b}: " + " ".join(lines) + f" so {total}"

    def high(self, slip):
        a, b = max(self.a, self.b), min(self.a, self.b)

        def check(product):
            (ta, ra), (tb, rb), (tp, rp) = remainders(a), remainders(b), remainders(product)
            tab, rab = remainders(ra * rb)
            return f"mod 9. {ta} {tb} {ra}×{rb}={tab} {tp} {verdict(rab, rp)}", rab == rp
        return attempts(lambda s: long_multiplication(a, b, s), check, lambda: long_multiplication(b, a), slip)


class Quotient(Problem):
    def __init__(self, n, d):
        self.n, self.d, (self.value, self.rest) = n, d, divmod(n, d)
        self.key = f"quotient {n} {d}"
        self.answer = f"{n} ÷ {d} = {self.value}" + (f" remainder {self.rest}" if self.rest else "")

    @classmethod
    def draw(cls, rng):
        d = rng.randint(2, 9)
        n = number(rng, (2, 2, 3, 3, 4))
        return cls(n if rng.random() < 0.5 else max(d, n - n % d), d)

    def ask(self, rng):
        return typed(rng, ("/", "/", "÷", ":", "divided by", "divided by"), ("Divide {a} by {b}.", "divide {a} by {b}",
                     "How often does {b} go into {a}?", "Share {a} among {b}."), self.n, self.d)

    def medium(self):
        return long_division(self.n, self.d)[0]

    def high(self, slip):
        def check(result):
            quotient, rest = result
            text, back = times_digit(quotient, self.d)
            text = f"{quotient}{text}"
            if rest:
                more, back = add_columns(back, rest)
                text += f". {more}"
            return f"{text}. {verdict(back, self.n)}", back == self.n
        return attempts(lambda s: long_division(self.n, self.d, s), check, lambda: long_division(self.n, self.d), slip)


class Compare(Problem):
    def __init__(self, a, b, larger=True):
        self.a, self.b, self.larger = a, b, larger
        big, small = sorted((a, b), key=float, reverse=True)
        self.value = big if larger else small
        self.key = "compare " + " ".join(sorted((a, b)))
        self.answer = f"{big} is larger than {small}." if larger else f"{small} is smaller than {big}."

    @classmethod
    def draw(cls, rng):
        def decimal(whole):
            n = rng.choice((0, 1, 1, 2, 2, 3))
            return str(whole) + (f".{rng.randrange(10 ** n):0{n}d}" if n else "")
        while True:
            whole = number(rng, (1, 1, 2))
            a, b = decimal(whole), decimal(whole if rng.random() < 0.75 else number(rng, (1, 1, 2)))
            if float(a) != float(b):
                return cls(a, b, rng.random() < 0.75)

    def ask(self, rng):
        word = rng.choice(("larger", "bigger", "greater")) if self.larger else rng.choice(("smaller", "less"))
        return rng.choice(("Which is {w}, {a} or {b}?", "which is {w}: {a} or {b}?", "Which number is {w}, {a} or {b}?",
                           "What is {w}, {a} or {b}?", "{a} or {b}, which is {w}?", "Is {a} {w} than {b}?",
                           "which one is {w} {a} or {b}", "Compare {a} and {b}: which is {w}?")
                          ).format(w=word, a=self.a, b=self.b)

    @staticmethod
    def steps(a, b, larger, slip=None):
        """9=9 1<9 so 9.9 (wholes first, then digit by digit; a missing digit is 0)"""
        (wa, _, fa), (wb, _, fb) = a.partition("."), b.partition(".")
        n = max(len(fa), len(fb))
        pairs, out = [(int(wa), int(wb))] + [(int(x), int(y)) for x, y in zip(fa.ljust(n, "0"), fb.ljust(n, "0"),
                                                                              strict=True)], []
        for x, y in pairs:
            if x != y:
                less = (x < y) != bool(slip)
                sign = "<" if less else ">"
                out.append(f"{x}{SLIP}{sign}{END}{y}" if slip else f"{x}{sign}{y}")
                break
            out.append(f"{x}={y}")
        winner = (b if less else a) if larger else (a if less else b)
        return f"{a} {b}: {' '.join(out)} so {winner}", winner

    def medium(self):
        return self.steps(self.a, self.b, self.larger)[0]

    def high(self, slip):
        def check(winner):
            text, other = self.steps(self.b, self.a, self.larger)
            return f"{text}. {verdict(other, winner)}", other == winner
        return attempts(lambda s: self.steps(self.a, self.b, self.larger, s), check,
                        lambda: self.steps(self.a, self.b, self.larger), slip)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word(rng):
    """A real word, or syllables, or letters at random; now and then with a letter doubled."""
    kind = rng.random()
    if kind < 0.4:
        out = rng.choice(words.WORDS)
    elif kind < 0.88:
        # Beginnings of common words, because those can be tokens (vocabulary.py).
        out = rng.choice(words.COMMON)[:rng.randint(1, 6)] if kind < 0.55 else ""
        while len(out) < rng.randint(3, 10):
            out += rng.choice(("", *"bcdfghjklmnprstvw")) + rng.choice("aeiouy") + rng.choice(("", "", *"lmnrstpd"))
    else:
        few = rng.sample(LETTERS, rng.randint(2, 8))
        out = "".join(rng.choice(few) for _ in range(rng.randint(2, 9)))
    at = rng.randrange(len(out))
    return (out[:at] + out[at] + out[at:] if rng.random() < 0.2 else out)[:13]


def numbered(places):
    """1b2e3e: places [(number, letter), ...]. By its number the way back to a letter is easily found."""
    return "".join(f"{i}{c}" for i, c in places)


class Letters(Problem):
    """Tasks about the letters of a word or the digits of a number. In thoughts and answers nothing stands before a
    letter that its token could begin with (vocabulary.py): each letter is a token of its own, always the same."""

    def __init__(self, text, value):
        self.text, self.value = text, value

    def quoted(self, rng):
        """As people write a word in a question."""
        text = self.text.capitalize() if rng.random() < 0.05 else self.text
        return rng.choice(("{}", "{}", "{}", '"{}"', '"{}"', "'{}'")).format(text)


class Count(Letters):
    def __init__(self, letter, text):
        super().__init__(text, text.count(letter))
        self.letter = letter
        self.key = f"count {letter} {text}"
        self.answer = (f'There is 1 {letter} in "{text}".' if self.value == 1 else
                       f'There are {self.value} {letter}\'s in "{text}".')

    @classmethod
    def draw(cls, rng):
        text = word(rng)
        if rng.random() < 0.4:
            return cls(max(text, key=text.count), text)
        return cls(rng.choice(text) if rng.random() < 0.8 else rng.choice(LETTERS), text)

    def ask(self, rng):
        letter = self.letter.upper() if rng.random() < 0.05 else self.letter
        return rng.choice(words.COUNT).format(l=letter, t=self.quoted(rng))

    def walk(self, text):
        """"str(1)awber(2)r(3)y" so 3: the count after each letter that is the one."""
        count, out = 0, ""
        for c in text:
            count += c == self.letter
            out += f"{c}({count})" if c == self.letter else c
        return f'"{out}" so {count}', count

    def numbered_walk(self, slip=None):
        """1s2t3r(1)4a5w6b7e8r(2)9r(3)10y so 3. A slip overlooks a letter, or counts a wrong one."""
        at = slip.randint(1, len(self.text)) if slip else None
        count, out, early = 0, "", False
        for i, c in enumerate(self.text, 1):
            out += f"{SLIP}{i}{END}{c}" if early else f"{i}{c}"     # what follows an overlooked letter comes too early
            hit = (c == self.letter) != (i == at)
            early = i == at and not hit
            if hit:
                count += 1
                out += f"{SLIP}({END}{count})" if i == at else f"({count})"
        return f"{out} {SLIP + 'so' + END if early else 'so'} {count}", count

    def medium(self):
        return f"{self.letter} in {self.walk(self.text)[0]}"

    def high(self, slip):
        def check(count):
            text, other = self.walk(self.text[::-1])
            return f"back {text}. {verdict(other, count)}", other == count
        return f"{self.letter} in " + attempts(self.numbered_walk, check, self.numbered_walk, slip)


class Reverse(Letters):
    def __init__(self, text):
        super().__init__(text, text[::-1])
        self.key = f"reverse {text}"
        self.answer = f'"{text}" backwards is "{self.value}".'

    @classmethod
    def draw(cls, rng):
        return cls(word(rng) if rng.random() < 0.8 else str(number(rng, (2, 3, 4, 5, 6))))

    def ask(self, rng):
        ways = words.REVERSE + (words.REVERSE_WORD if self.text.isalpha() else words.REVERSE_NUMBER)
        return rng.choice(ways).format(self.quoted(rng))

    def turn(self, slip=None):
        """4k3e2e1b so "keeb": the numbered letters from the last to the first. A slip leaves one out."""
        places, end = list(enumerate(self.text, 1))[::-1], "so"
        shown = [numbered([place]) for place in places]
        if slip:
            at = slip.randrange(len(places))
            del places[at], shown[at]
            if at < len(places):                # what comes next comes too early: that is the planted part
                shown[at] = f"{SLIP}{shown[at]}{END}"
            else:
                end = f"{SLIP}so{END}"
        value = "".join(c for _, c in places)
        return f'{"".join(shown)} {end} "{value}"', value

    def medium(self):
        return f'"{self.text}" back "{self.value}"'

    def high(self, slip):
        def check(back):
            turned = back[::-1]
            return f'back "{turned}". {verdict(quote(turned), quote(self.text))}', turned == self.text
        return f"{numbered(enumerate(self.text, 1))}\n" + attempts(self.turn, check, self.turn, slip)


class Sort(Letters):
    """The letters of a word or the digits of a number, smallest first."""

    def __init__(self, text):
        super().__init__(text, "".join(sorted(text)))
        self.key = f"sort {text}"
        self.answer = f'"{text}" sorted is "{self.value}".'

    @classmethod
    def draw(cls, rng):
        return cls(word(rng)[:9] if rng.random() < 0.5 else str(number(rng, (2, 3, 4, 5, 6))))

    def ask(self, rng):
        kind = "letters" if self.text.isalpha() else "digits"
        return rng.choice(words.SORT).format(t=self.quoted(rng), k=kind)

    def medium(self):
        """Insertion, one after the other: ;b;ab;abn;aabn"""
        return f'"{self.text}"' + "".join(f";{''.join(sorted(self.text[:i]))}" for i in range(1, len(self.text) + 1))

    @staticmethod
    def insert(letters, slip=None):
        """+b;b+a;ab+n;abn, the same with what is inserted. A slip puts one into the wrong place."""
        out, text = [], ""
        at = slip.randrange(1, len(letters)) if slip and len(letters) > 1 else None
        for i, c in enumerate(letters):
            k = next((j for j, x in enumerate(out) if x > c), i)
            if i == at:
                k = slip.choice([j for j in range(len(out) + 1) if j != k])
            out.insert(k, c)
            text += f"+{c};" + "".join(f"{SLIP}{x}{END}" if i == at and j == k else x for j, x in enumerate(out))
        value = "".join(out)
        return f'{text} so "{value}"', value

    def high(self, slip):
        def check(value):                       # the same from the last to the first
            text, other = self.insert(self.text[::-1])
            return f"back {text}. {verdict(quote(other), quote(value))}", other == value

        def first(slip):
            return self.insert(self.text, slip)
        return f'"{self.text}"\n' + attempts(first, check, lambda: first(None), slip)


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class Weekday(Problem):
    def __init__(self, day, n, after=True):
        self.day, self.n, self.after = day, n, after
        self.value = DAYS[(DAYS.index(day) + (n if after else -n)) % 7]
        self.key = f"weekday {day} {n} {after}"
        self.word = "after" if after else "before"
        self.answer = f"{n} day{'s' * (n != 1)} {self.word} {day} is {self.value}."

    @classmethod
    def draw(cls, rng):
        return cls(rng.choice(DAYS), rng.randint(1, 30), rng.random() < 0.65)

    def ask(self, rng):
        s = "s" * (self.n != 1)
        if self.after and rng.random() < 0.3:
            return rng.choice((f"Today is {self.day}. What day is it in {self.n} day{s}?",
                               f"If today is {self.day}, which day is it {self.n} day{s} from now?"))
        return rng.choice((f"What day is {self.n} day{s} {self.word} {self.day}?",
                           f"which day is {self.n} day{s} {self.word} {self.day}",
                           f"What day of the week is {self.n} day{s} {self.word} {self.day}?"))

    def step(self, day, forward, left, slip=None):
        """Tuesday 1 Wednesday 2 so Wednesday: with a slip, a day is skipped."""
        at = slip.randint(1, left) if slip and left else None
        i, out = DAYS.index(day), []
        for k in range(1, left + 1):
            i += (1 if forward else -1) * (2 if k == at else 1)
            name = DAYS[i % 7]
            out.append(f"{SLIP}{name}{END} {k}" if k == at else f"{name} {k}")
        return " ".join([*out, f"so {DAYS[i % 7]}"]), DAYS[i % 7]

    def weeks(self):
        """30: 7 14 21 28 left 2"""
        whole = self.n - self.n % 7
        return " ".join([f"{self.n}:", *map(str, range(7, whole + 1, 7)), f"left {self.n % 7}."]), self.n % 7

    def medium(self):
        text, left = self.weeks()
        return f"{text} {self.step(self.day, self.after, left)[0]}"

    def high(self, slip):
        text, left = self.weeks()
        start = f"{self.n} {self.word} {self.day}\n{text} {self.day}"

        def check(day):
            text, back = self.step(day, not self.after, left)
            return f"back from {day}: {text}. {verdict(back, self.day)}", back == self.day
        return f"{start} " + attempts(lambda s: self.step(self.day, self.after, left, s), check,
                                      lambda: self.step(self.day, self.after, left), slip)


class Story(Problem):
    """A two-step word problem: b groups of c, then added to a or taken away from."""

    def __init__(self, name, thing, gain, a, b, c):
        self.name, self.thing, self.gain, self.a, self.b, self.c = name, thing, gain, a, b, c
        self.value = a + b * c if gain else b * c - a
        self.key = f"story {gain} {a} {b} {c}"
        self.answer = f"{name} has {self.value} {thing}."
        self.expression = f"{a}+{b}*{c}" if gain else f"{b}*{c}-{a}"

    @classmethod
    def draw(cls, rng):
        gain, b, c = rng.random() < 0.5, rng.randint(2, 9), rng.randint(2, 9)
        a = rng.randint(2, 60) if gain else rng.randint(1, b * c)
        return cls(rng.choice(words.NAMES), rng.choice(words.THINGS), gain, a, b, c)

    def ask(self, rng):
        n, t, a, b, c = self.name, self.thing, self.a, self.b, self.c
        if self.gain:
            return rng.choice((f"{n} has {a} {t} and buys {b} bags with {c} {t} each. How many {t} does {n} have now?",
                               f"{n} has {a} {t}. {n} gets {b} boxes of {c} {t}. How many {t} does {n} have?"))
        return rng.choice((
            f"{n} has {b} bags with {c} {t} each and gives away {a} {t}. How many {t} does {n} have left?",
            f"{n} buys {b} boxes of {c} {t} and loses {a}. How many {t} does {n} have now?"))

    def medium(self):
        p = self.b * self.c
        second = add_columns(self.a, p) if self.gain else subtract_columns(p, self.a)
        return f"{self.b}×{self.c}={p} {second[0]}"

    def high(self, slip):
        p = self.b * self.c
        if self.gain:
            return f"{self.b}×{self.c}={p}\n" + Sum(self.a, p).high(slip)
        return f"{self.b}×{self.c}={p}\n" + Difference(p, self.a).high(slip)


class Chat(Problem):
    """Greetings and the like, and an honest answer to what it cannot do."""

    def __init__(self, question, reply):
        self.question, (self.answer, self.thought), self.value = question, reply, reply[0]
        self.key = f"chat {question}"

    @classmethod
    def draw(cls, rng):
        if rng.random() < 0.6:
            reply, questions = rng.choice(words.FIXED)
            return cls(rng.choice(questions), reply)
        if rng.random() < 0.2:
            return cls(rng.choice(words.OPEN_NUMBER).format(number(rng, (1, 2, 3, 4))), words.CANNOT)
        subject = word(rng) if rng.random() < 0.8 else f"{word(rng)} {word(rng)}"
        return cls(rng.choice(words.OPEN).format(subject.capitalize() if rng.random() < 0.3 else subject), words.CANNOT)

    def ask(self, rng):
        return self.question

    def medium(self):
        return self.thought

    def high(self, slip):
        return f"{self.thought} There is nothing to calculate."


# Each with how often it is drawn. Letters need it most: copying them without a mistake is what is learned last.
TASKS = {"sum": (Sum, 2), "difference": (Difference, 3), "product": (Product, 5), "quotient": (Quotient, 3),
         "compare": (Compare, 3), "count": (Count, 4), "reverse": (Reverse, 3), "sort": (Sort, 3),
         "weekday": (Weekday, 2), "story": (Story, 2), "chat": (Chat, 1)}


CALCULATED = ("sum", "difference", "product", "story")      # those that have an expression for the calculator


def draw(rng, task=None, split="train"):
    """A problem of a task (or of one drawn by weight) that is in the split "train" or "test"."""
    kind = TASKS[task or rng.choices(list(TASKS), [weight for _, weight in TASKS.values()])[0]][0]
    while True:
        problem = kind.draw(rng)
        if kind is Chat and problem.answer != words.CANNOT[0] or held_out(problem.key) == (split == "test"):
            return problem              # there are only so many ways to say hello: those are never held out


def think(problem, effort, rng=None):
    """The chain of thought, "" at low effort. With rng, slips are planted at high effort."""
    if effort == "low":
        return ""
    if effort == "medium":
        return problem.medium()
    return problem.high(rng if rng and rng.random() < SLIP_RATE else None)


def follow_up(rng, value, split="train"):
    """A second turn that builds on the result of the first: (question, problem) of a split, or None where the result
    does not lend itself."""
    if not isinstance(value, int) or not 0 <= value < 1000:
        return None
    kind = rng.choice((Sum, Difference, Product))
    b = rng.randint(2, 9) if kind is Product or value < 10 else rng.randint(1, min(99, value))
    problem = kind(value, b)
    word = {Sum: rng.choice(("plus", "+", "add")), Difference: rng.choice(("minus", "-")),
            Product: rng.choice(("times", "*", "x"))}[kind]
    if held_out(problem.key) != (split == "test"):
        return None
    return rng.choice(("and {} {}?", "And {} {}?", "{} {}?", "now {} {}", "{} {}", "and then {} {}?",
                       "what about {} {}?")
                      ).format(word, b), problem


FIRST_DAY = date(2023, 1, 1)


class Turn(NamedTuple):
    """A question and its reply. `call`: an expression that the calculator gets after the thought, or None."""

    question: str
    thought: str                        # marked; "" for none
    answer: str
    call: str | None = None
    result: str | None = None           # what the calculator says


class Setting(NamedTuple):
    """What a row of conversations shares."""

    effort: str
    day: str | None
    instructions: str | None = None     # of the developer
    calculator: bool = False            # whether that tool is offered


def setting(rng):
    day = None if rng.random() < 0.1 else str(FIRST_DAY + timedelta(days=rng.randrange(4000)))
    return Setting(rng.choices(EFFORTS, (2, 3, 5))[0], day,
                   rng.choice(words.INSTRUCTIONS) if rng.random() < 0.08 else None, rng.random() < 0.08)


def turn(rng, problem, setting, question=None, slips=True):
    """A problem as it is asked and answered in a setting."""
    question = question or problem.ask(rng)
    if setting.calculator and problem.expression:
        thought = {"low": "", "medium": words.TOOL[0], "high": " ".join(words.TOOL)}[setting.effort]
        return Turn(question, thought, problem.answer, problem.expression, str(problem.value))
    return Turn(question, think(problem, setting.effort, rng if slips else None), problem.answer)


def conversation(rng, setting, slips=True):
    """Turns of training problems: mostly one, some two."""
    task = rng.choice(CALCULATED) if setting.calculator and rng.random() < 0.7 else None
    problem = draw(rng, task)
    turns = [turn(rng, problem, setting, slips=slips)]
    if rng.random() < 0.12:
        more = follow_up(rng, problem.value) if rng.random() < 0.6 else None
        question, problem = more or (None, draw(rng))
        turns.append(turn(rng, problem, setting, question, slips))
    return turns


@program.ends("python -m train.tasks")
def main():
    """A look at the data."""
    rng = random.Random(0)
    for task in TASKS:
        for effort in EFFORTS:
            problem = draw(rng, task)
            print(f"[{task} · {effort}] {problem.ask(rng)}")
            print(f"{plain(think(problem, effort, rng)) or '(no thought)'}\n=> {problem.answer}\n")


if __name__ == "__main__":
    sys.exit(main())
