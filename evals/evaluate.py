"""How often a model is right, by task and effort, and how long it thinks, on held-out problems of train/tasks.py.

An answer is right if the final message is, word for word, what the problem asks for. Intervals are Wilson's, at 95%.
"""

import json
import random
from contextlib import closing
from typing import NamedTuple

import gptoss
import harmony
from conversation import LocalEngine, Reader
from evals.report import save_picture, wilson
from tokenizer import load as load_tokenizer
from train import rows, tasks

MAX_TOKENS = 700


def prompt(tokenizer, question, effort):
    """What chat.py sends for a first question."""
    return harmony.render([*opening(effort), harmony.Message("user", question)], tokenizer)


def opening(effort, calculator=False, instructions=None):
    return rows.opening(tasks.Setting(effort, "2026-06-01", instructions, calculator))


def asked(tokenizer, problem, effort):
    """The same for a sets.Problem."""
    return harmony.render([*opening(effort, instructions=problem.instructions), *problem.history], tokenizer)


def reply(model, tokenizer, tokens):
    """Greedy: (thought, final answer, tokens of thought). A reply that is not well-formed is no answer."""
    out = list(gptoss.generate(model, tokens, temperature=0, max_tokens=MAX_TOKENS))
    try:
        messages = harmony.parse(out, tokenizer, role="assistant")
    except harmony.HarmonyError:
        return "", "", len(out)
    text = {m.channel: "".join(m.content) for m in messages}
    return text.get("analysis", ""), text.get("final", ""), len(tokenizer.encode(text.get("analysis", "")))


def problems(task, each, seed=0):
    """Held-out problems of a task, the same for every effort and every run."""
    rng = random.Random(f"evaluate {task} {seed}")
    drawn = []
    for _ in range(each):
        problem = tasks.draw(rng, task, "test")
        drawn.append((problem, problem.ask(rng)))
    return drawn


class Score(NamedTuple):
    """Of `each` problems: right answers, tokens of thought in all, and of the first attempts at high effort the right
    ones and those of them that were doubted."""

    right: int
    length: int
    first: int
    doubted: int


def measure(model, tokenizer, task, effort, each):
    """-> Score of a task at an effort."""
    right = length = first = doubted = 0
    for problem, question in problems(task, each):
        thought, answer, n = reply(model, tokenizer, prompt(tokenizer, question, effort))
        right += answer.strip() == problem.answer
        length += n
        attempt = effort == "high" and before_check(thought) == before_check(tasks.think(problem, effort))
        first += attempt
        doubted += attempt and "\nAgain:" in thought
    return Score(right, length, first, doubted)


def before_check(thought):
    return thought.split("\nCheck")[0]


def recover(model, tokenizer, task, each):
    """Puts a slip into the model's mouth and lets it go on: how often the answer is right all the same."""
    header = [tokenizer.special_tokens["<|channel|>"], *tokenizer.encode("analysis"),
              tokenizer.special_tokens["<|message|>"]]
    right = n = 0
    for i, (problem, question) in enumerate(problems(task, each)):
        thought = tasks.plain(problem.high(random.Random(i)))
        if "\nAgain:" not in thought:               # no slip that the check could notice
            continue
        begun = tokenizer.encode(before_check(thought) + "\nCheck")
        n += 1
        right += reply_after(model, tokenizer, prompt(tokenizer, question, "high") + header + begun) == problem.answer
    return right, n


def reply_after(model, tokenizer, tokens):
    """The final answer of a reply whose beginning is in the tokens already."""
    out = list(gptoss.generate(model, tokens, temperature=0, max_tokens=MAX_TOKENS))
    start = tokenizer.special_tokens["<|start|>"]
    if start not in out:
        return ""
    try:
        return "".join(harmony.parse(out[out.index(start):], tokenizer)[-1].content).strip()
    except harmony.HarmonyError:
        return ""


def percent(right, n):
    low, high = wilson(right, n)
    return f"{100 * right / n:.0f}% ({100 * low:.0f}–{100 * high:.0f})"


def table(results, each):
    """{(task, effort): Score} as markdown."""
    names = list(dict.fromkeys(task for task, _ in results))
    lines = ["| task | low | medium | high | tokens of thought: medium | high |", "|---|---|---|---|---|---|"]
    for name in [*names, "**all**"]:
        part = names if name == "**all**" else [name]
        n = each * len(part)
        cells = [percent(sum(results[task, effort].right for task in part), n) for effort in tasks.EFFORTS]
        cells += [f"{sum(results[task, effort].length for task in part) / n:.0f}" for effort in tasks.EFFORTS[1:]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(results, slips, followed, calls, each, fifth):
    """Sentences below the table: of slips [(recovered, all)] for each task but chat, of second turns {effort: right},
    and of right calls of the calculator, a number for each `fifth` of `each` problems. What was not tried is left out.
    """
    checked = [score for (task, effort), score in results.items() if task != "chat" and effort == "high"]
    first, n = sum(score.first for score in checked), len(checked) * each
    recovered, slipped = (sum(pair[i] for pair in slips) for i in range(2))
    if slipped:
        yield (f"High effort: of {slipped} slips put into its first attempt {percent(recovered, slipped)} still ended "
               f"in the right answer; {sum(score.doubted for score in checked)} of {first} right first attempts were "
               "doubted.")
    if checked:
        yield (f"What the check is worth (chat left out): {percent(first, n)} of the first attempts were right, "
               f"{percent(sum(score.right for score in checked), n)} of the answers.")
    yield ("Second turns that build on the first: "
           + ", ".join(f"{percent(right, each)} at {effort} effort" for effort, right in followed.items()) + ".")
    if calls:
        n = len(calls) * fifth
        yield (f"With a calculator offered: {percent(sum(calls), n)} of {n} problems were handed to it and answered "
               "with what it said.")


def picture(results, each, path):
    import matplotlib.pyplot as plt
    names = list(dict.fromkeys(task for task, _ in results))
    fig, axes = plt.subplots(figsize=(6.4, 4.2))

    def line(part, label, **style):
        n = each * len(part)
        right, length = ([sum(getattr(results[task, effort], what) for task in part) / n for effort in tasks.EFFORTS]
                         for what in ("right", "length"))
        axes.plot(length, right, marker="o", label=label, **style)
    for name in names:
        line([name], name, ms=4, lw=1, alpha=0.6)
    line(names, "all", color="black", lw=2.5)
    axes.set(xscale="symlog", xlabel="tokens of thought (low, medium, high effort)", ylabel="right answers",
             ylim=(0, 1.03), xlim=(-0.1, None))
    axes.legend(fontsize=8, ncols=2)
    fig.tight_layout()
    save_picture(fig, path)


def follow(model, tokenizer, effort, each):
    """Second turns that build on the result of the first ("and times 2?"), themselves held out: right answers."""
    rng, right, n = random.Random("follow"), 0, 0
    while n < each:
        before = tasks.draw(rng, rng.choice(tasks.CALCULATED))
        question, problem = tasks.follow_up(rng, before.value, "test") or (None, None)
        if problem is None:
            continue
        n += 1
        messages = [*opening(effort), harmony.Message("user", before.ask(rng)),
                    harmony.Message("assistant", before.answer, channel="final"), harmony.Message("user", question)]
        right += reply(model, tokenizer, harmony.render(messages, tokenizer))[1].strip() == problem.answer
    return right


def call(model, tokenizer, task, effort, each):
    """Offers the calculator: how often it is called, with the right expression, and the answer then is right."""
    right = 0
    for problem, question in problems(task, each):
        messages = [*opening(effort, calculator=True), harmony.Message("user", question)]
        try:
            said = harmony.parse(list(gptoss.generate(model, harmony.render(messages, tokenizer), temperature=0,
                                                      max_tokens=MAX_TOKENS)), tokenizer, role="assistant")
            asked = json.loads("".join(said[-1].content))["expression"] if said[-1].recipient else None
        except (ValueError, TypeError, KeyError):
            continue
        if said[-1].recipient == "functions.calculator" and asked == problem.expression:
            messages += said[:-1] + rows.call_of(tasks.Turn(question, "", "", asked, str(problem.value)))
            tokens = harmony.render(messages, tokenizer)
            right += reply(model, tokenizer, tokens)[1] == problem.answer
    return right


def answer(engine, tokenizer, tokens, sampling):
    """{"final": text, "thought": tokens of it, "tokens": in all, "cut": whether the reply has no end} of a prompt.

    A form that is not quite right is taken for what was meant, as conversation.Reader does it."""
    reader, n, thought = Reader(tokenizer), 0, 0
    with closing(engine.generate(tokens, **sampling)) as ids:
        for id in ids:
            message, n = reader.message, n + 1
            list(reader.feed(id))
            thought += message is not None and message is reader.message and message.channel == "analysis"
            if reader.over:
                break
    list(reader.finish())
    final = "".join(message.content for message in reader.said() if message.channel == "final")
    return {"final": final, "thought": thought, "tokens": n, "cut": not reader.over}


def answer_here(model, tokenizer, tokens, sampling):
    return answer(LocalEngine(model), tokenizer, tokens, sampling)


def begin(checkpoint, backend, adapter=None):
    """Loads the model in a worker process, of which there is one for each core: a model as small as the bundled one
    has no work for a second thread."""
    global loaded
    if backend == "numba":
        import numba

        numba.set_num_threads(1)
    loaded = gptoss.load(checkpoint, backend=backend, adapter=adapter), load_tokenizer(checkpoint)


def job(function, *args):
    return function(*loaded, *args)
