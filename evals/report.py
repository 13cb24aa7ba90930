"""The answers of a run: kept as they come, and what is told of them.

    problems x repeats -> a log, a line of JSON each -> share that is right, its error, tokens -> table, JSON, picture

Several answers to one problem are no independent trials: a hard problem is hard each time. So the standard error is
clustered by problem (E. Miller, "Adding Error Bars to Evals", arXiv 2411.00640).
"""

import io
import json
import math
from pathlib import Path
from typing import NamedTuple

from checkpoint import expect
from harmony import EFFORTS
from transcript import write

KEY = ("task", "effort", "problem", "repeat")  # what an answer in the log is known by
PICTURES = (".png", ".svg", ".pdf")
PUBLISHED = {  # % right at low, medium and high effort, without tools: the model card, arXiv 2508.10925, table 3
    "aime": {"20b": (37.1, 72.1, 91.7), "120b": (50.4, 80.0, 92.5)},
    "gpqa": {"20b": (56.8, 66.0, 71.5), "120b": (67.1, 73.1, 80.1)},
}


# ---- The log --------------------------------------------------------------------------------------------------------

class Log:
    """A file of JSON lines: first what was asked for, `head`, then an answer a line, as they come. It goes on where an
    earlier run of the same command ended, and takes back half a line that this may have left. path None: no file.

    `answers`: {values of KEY: answer}. Raises ValueError for the file of another command, or OSError."""

    def __init__(self, path, head):
        self.path, self.answers, self.file = path, {}, None
        if path is None:
            return
        if not path.exists():
            write(path, json.dumps(head).encode() + b"\n")
        expect(path.is_file(), ValueError, path, "a name for a file", "a directory or a device")
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].split(b"\n")[:-1]
        found = self._object(lines[0] if lines else data[:200], 1)
        expect(found.keys() == head.keys(), ValueError, path, "the answers of an evaluation", "another file")
        for name, value in json.loads(json.dumps(head)).items():
            expect(found[name] == value, ValueError, f"{path}: {name}", f"this command's {json.dumps(value)}",
                   f"{json.dumps(found[name])} of another command; give another --json FILE")
        for n, line in enumerate(lines[1:], 2):
            self._add(self._object(line, n), f"{path}:{n}")
        self.file = open(path, "r+b")
        self.file.truncate(whole)
        self.file.seek(whole)

    def _object(self, line, n):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        expect(isinstance(found, dict), ValueError, f"{self.path}:{n}", "a JSON object", line.decode(errors="replace"))
        return found

    def _add(self, answer, where):
        for name in (*KEY, "right", "thought", "tokens", "cut"):
            expect(type(answer.get(name)) in (str, int, bool), ValueError, f"{where}: {name}", "a text or a number",
                   repr(answer.get(name)))
        self.answers[tuple(answer[name] for name in KEY)] = answer

    def add(self, answer):
        """Keeps an answer; when this returns, the system has the line."""
        self._add(answer, "answer")
        if self.file:
            self.file.write(json.dumps(answer, ensure_ascii=False).encode(errors="replace") + b"\n")
            self.file.flush()


# ---- Figures --------------------------------------------------------------------------------------------------------

def wilson(right, n, z=1.96):
    """The 95% interval of a share (Wilson 1927): sensible also at 0 and at 1."""
    p, d = right / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / d, z / d * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


class Estimate(NamedTuple):
    """A share, its standard error (None: of one problem nobody can say), and its 95% interval."""
    share: float
    error: float | None
    low: float
    high: float


def estimate(groups):
    """The Estimate of [[right or not, of each answer], of each problem].

    error^2 = P / (P - 1) * sum over the P problems of (right answers - answers * share)^2 / (all answers)^2. The
    interval is Wilson's for as many independent answers as would have this error. These are no more than the answers
    and no fewer than the problems, which is what is taken if all are right or all are wrong."""
    P, n = len(groups), sum(map(len, groups))
    p = sum(map(sum, groups)) / n
    error, independent = None, P
    if P > 1:
        variance = P / (P - 1) * sum((sum(group) - len(group) * p) ** 2 for group in groups) / n**2
        error = math.sqrt(variance)
        if 0 < p < 1:
            alone = p * (1 - p) / (n - 1)  # what the variance would be if all answers were independent
            independent = min(n, max(P, n * alone / variance)) if variance else n
    return Estimate(p, error, *wilson(p * independent, independent))


def figures(answers):
    """Of the answers of a log, in order, {"task", "effort", "problems", "answers", the four of Estimate, "thought",
    "tokens" (means), "cut" (a count)} for each task and effort."""
    told = {}
    for answer in answers:
        told.setdefault((answer["task"], answer["effort"]), []).append(answer)
    rows = []
    for (task, effort), part in told.items():
        groups = {}
        for answer in part:
            groups.setdefault(answer["problem"], []).append(bool(answer["right"]))
        mean = {name: sum(answer[name] for answer in part) / len(part) for name in ("thought", "tokens")}
        rows.append({"task": task, "effort": effort, "problems": len(groups), "answers": len(part)}
                    | estimate(list(groups.values()))._asdict() | mean | {"cut": sum(answer["cut"] for answer in part)})
    return rows


def table(rows):
    """The figures as Markdown, and a sentence for those that the limit of tokens has lowered."""
    lines = ["| task | effort | problems | answers | right ± standard error | 95% interval | tokens of thought | "
             "in all | cut off |", "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        share, error, low, high = (None if row[name] is None else f"{100 * row[name]:.1f}" for name in Estimate._fields)
        lines.append(f"| {row['task']} | {row['effort']} | {row['problems']} | {row['answers']} | {share}% ± "
                     f"{error or '?'} | {low}–{high} | {row['thought']:,.0f} | {row['tokens']:,.0f} | "
                     f"{row['cut'] / row['answers']:.1%} |")
    for row in rows:
        if row["cut"]:
            lines.append(f"\nWarning: {row['cut']} of {row['answers']} answers of {row['task']} at {row['effort']} "
                         "effort were cut off by the limit of tokens, and most of these count as wrong for no other "
                         "reason.")
    return "\n".join(lines)


# ---- The picture ----------------------------------------------------------------------------------------------------

def check_picture(path):
    """Raises ValueError if no picture can be written there: better now than when all is measured."""
    expect(Path(path).suffix in PICTURES, ValueError, "--picture", f"a file {', '.join(PICTURES)}", str(path))
    expect(Path(path).parent.is_dir(), ValueError, "--picture", "a file in a directory that is there", str(path))
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--picture: expected matplotlib (pip install matplotlib), found none") from None
    matplotlib.use("Agg")


def save_picture(figure, path):
    data = io.BytesIO()
    figure.savefig(data, format=Path(path).suffix[1:], dpi=90, bbox_inches="tight")
    write(Path(path), data.getvalue())


def picture(rows, path):
    """Share of right answers over mean tokens, with the intervals. Published scores come without token counts. So they
    stand outside the axes on the right, as marks at their height, and claim no place on the axis of tokens."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for task in dict.fromkeys(row["task"] for row in rows):
        part = [row for row in rows if row["task"] == task]
        share = [100 * row["share"] for row in part]
        sides = [[100 * abs(row["share"] - row[side]) for row in part] for side in ("low", "high")]
        axes.errorbar([row["tokens"] for row in part], share, yerr=sides, marker="o", ms=4, lw=1, capsize=2, label=task)
        for row, height in zip(part, share, strict=True):
            axes.annotate(row["effort"], (row["tokens"], height), (4, 3), textcoords="offset points", fontsize=7)
        place = {"transform": axes.get_yaxis_transform(), "clip_on": False}
        if task in PUBLISHED:
            axes.text(1.04, 8, "published scores, at\ntheir height; no token\ncounts go with them", fontsize=7, **place)
        for column, (model, scores) in enumerate(PUBLISHED.get(task, {}).items()):
            x = 1.04 + 0.18 * column
            axes.text(x, 104, model, fontsize=8, **place)
            for effort, score in zip(EFFORTS, scores, strict=True):
                axes.plot([x, x + 0.03], [score, score], color="gray", lw=2, **place)
                axes.text(x + 0.04, score, f"{effort} {score}", fontsize=7, va="center", **place)
    axes.set(xscale="log", xlabel="tokens of an answer, thought included (mean)", ylabel="right answers, %",
             ylim=(-3, 103))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, title="measured, with 95% intervals", title_fontsize=8)
    save_picture(figure, path)
    plt.close(figure)
