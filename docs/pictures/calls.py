"""Pictures of chapter 12: the messages of a turn with a call, and the bytes that a grammar lets follow."""

from runs import model, tokenizer
from style import WIDTH, Drawing, picture

import gptoss
import harmony
from grammar import Grammar

DATE = "2026-11-27"
CALCULATOR = harmony.Function("calculator", "Computes an expression.", {
    "type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]})


def turn(question="What is 748 * 96?", result="71808"):
    """[(ids of a message, whether the model wrote it, the message)] of a turn in which the calculator is called."""
    developer = harmony.DeveloperContent(tools=[harmony.Namespace("functions", functions=[CALCULATOR])])
    asked = [harmony.Message("system", [harmony.SystemContent(conversation_start_date=DATE)]),
             harmony.Message("developer", [developer]), harmony.Message("user", question)]
    ids = harmony.render(asked, tokenizer())
    first = list(gptoss.generate(model(), ids, temperature=0))
    *_, call = harmony.parse(first, tokenizer(), role="assistant")
    told = harmony.Message("tool", result, name=call.recipient, channel=call.channel, recipient="assistant")
    back = harmony.render([told], tokenizer())
    second = list(gptoss.generate(model(), ids + first + back, temperature=0))
    assistant = ids[-2:]  # <|start|>assistant, which the program writes and the model's messages begin with
    return [*split(ids[:-2], False), *split(assistant + first, True),
            *split(back[:-2], False), *split(assistant + second, True)]


def split(ids, by_model):
    start, messages = tokenizer().special_tokens["<|start|>"], []
    for id in ids:
        messages += [[]] if id == start else []
        messages[-1].append(id)
    return [(message, by_model, harmony.parse(message, tokenizer())[0]) for message in messages]


@picture("tool-call")
def tool_call():
    messages = turn()
    step, top = 62, 50
    drawing = Drawing(top + step * len(messages) + 66, "Who writes what in a turn with a call",
                      "Seven messages from top to bottom. The program writes the first three: system, developer, user. "
                      "The model writes a thought and a call, which ends with the token call. The program runs the "
                      "tool and writes its result. The model writes the answer, which ends with the token return.")
    drawing.text(16, 28, "the program writes", "blue", bold=True)
    drawing.text(WIDTH - 16, 28, "the model writes", "green", anchor="end", bold=True)
    shown = {"system": "who it is, effort, channels, date",
             "developer": "type calculator = (_: { ... }) => any;"}
    y = top
    for ids, by_model, message in messages:
        color, x = ("green", 70) if by_model else ("blue", 16)
        stop = tokenizer().decode(ids[-1:])
        header = f"{message.name or message.role}{f' to={message.recipient}' if message.recipient else ''}"
        drawing.rect(x, y, WIDTH - 86, 48, color, opacity=0.14, radius=6)
        drawing.text(x + 10, y + 18, header, color, 12, bold=True)
        drawing.text(x + WIDTH - 96, y + 18, message.channel or "", "dim", 12, "end")
        drawing.text(x + 10, y + 38, shown.get(message.role, message.content), size=12, mono=True)
        drawing.text(x + WIDTH - 96, y + 38, stop, color if by_model else "dim", 12, "end", mono=True, bold=by_model)
        if stop == "<|call|>":
            drawing.line([(36, y + 24), (36, y + step - 3)], "blue", 2, arrow=True)
            drawing.line([(68, y + 24), (36, y + 24)], "blue", 2)
            drawing.text(20, y + 12, "runs", "blue", 12)
        y += step
    n = [len(ids) for ids, _, _ in messages]
    drawing.text(16, y + 12, f"The first three messages are {sum(n[:3])} tokens, the result is {n[5]}.", "dim")
    drawing.text(16, y + 30, "<|call|> and <|return|> stop the model, <|end|> does not.", "dim")
    drawing.text(16, y + 48, "A call waits for its tool; a return waits for the user.", "dim")
    return drawing


@picture("grammar")
def what_may_follow():
    schema = {"type": "object", "required": ["n", "unit"], "additionalProperties": False,
              "properties": {"n": {"type": "integer"}, "unit": {"enum": ["cm", "km"]}}}
    grammar, text = Grammar(schema), '{"n":-7,"unit":"km"}'
    assert grammar.complete(grammar.advance(grammar.start, text.encode()))
    columns = '\n "' + "-0123456789:,\\cikmntu{}"
    cell, left, top = 11.5, 153, 62
    drawing = Drawing(top + cell * (len(text) + 1) + 66, "Which characters may follow each beginning of an answer",
                      "A table. Each row is a beginning of the answer, each column is a character. A filled square "
                      "says that the character may follow there. The one that was written next has a ring. Inside the "
                      "number any digit may follow, in the name of the unit only c or k, and at the end nothing.")
    drawing.text(16, 24, "The answer so far, and what may follow", bold=True)
    for n, char in enumerate(columns):
        shown = {"\n": "⏎", " ": "␣"}.get(char, char)
        drawing.text(left + cell * n + 6, top - 8, shown, "dim", 12, "middle", mono=True)
    for row in range(len(text) + 1):
        state, y = grammar.advance(grammar.start, text[:row].encode()), top + cell * row
        drawing.text(left - 8, y + 10, text[:row] or "(nothing yet)", "ink" if row else "dim", 11, "end", mono=row > 0)
        for n, char in enumerate(columns):
            allowed = grammar.advance(state, char.encode()) is not None
            color, opacity = ("green", 0.8) if allowed else ("line", 0.22)
            drawing.rect(left + cell * n, y, cell - 1, cell - 1, color, opacity=opacity)
            if text[row : row + 1] == char:
                drawing.circle(left + cell * n + 5.25, y + 5.25, 3.2, stroke="paper", thick=1.6)
    y = top + cell * (len(text) + 1) + 22
    drawing.text(16, y, 'n is an integer, unit is "cm" or "km". ⏎ is a line end, ␣ a blank.', "dim", 12)
    drawing.text(16, y + 17, "A ring: what was written next. A backslash: an escaped letter.", "dim", 12)
    drawing.text(16, y + 34, "The last row is empty: the answer is complete.", "dim", 12)
    return drawing
