"""The tools `functions.NAME`: the functions of a user's Python file, which the model may call.

    def weather(city: str, unit: Literal["celsius", "kelvin"] = "celsius") -> str:
        \"\"\"Tells the weather of a city.

        Args:
            city: Name and country, in English.\"\"\"

All functions are offered that are defined in the file, and whose names do not begin with an underscore. Each needs a
docstring, and an annotation for each parameter: from these the model learns what it may call (pydantic makes the JSON
schema, docstring_parser finds the words). The file is imported, and the functions run, in a process of its own
(child.py), which may do whatever you may. What a function prints comes before what it returns.
"""

from harmony import Function, Namespace
from tools.process import Ended, Process

SECONDS = 30  # the file may take to be imported, and a call


def load(path):
    """The tool for a file. Raises ValueError, in a sentence, if the file or a function in it cannot be used."""
    tool = Functions(Process("functions", str(path)))
    try:
        reply, _ = tool.process.ask({}, SECONDS)
    except Ended as ended:
        raise ValueError(f"{path}: expected a file that can be imported, but {ended}") from None
    if "error" in reply:
        tool.close()
        raise ValueError(reply["error"])
    tool.namespace = Namespace("functions", None, [Function(**described) for described in reply["functions"]])
    return tool


class Functions:
    """See load."""

    def __init__(self, process):
        self.process, self.namespace = process, Namespace("functions")

    def call(self, recipient, content):
        """What the function returns: a text as it is, all else as JSON. Raises ValueError."""
        name = recipient.removeprefix("functions.")
        if name not in [function.name for function in self.namespace.functions]:
            raise ValueError(f"{name}: expected one of the functions offered, found no such function")
        try:
            reply, output = self.process.ask({"name": name, "content": content}, SECONDS)
        except Ended as ended:
            raise ValueError(f"{name}: {ended}") from None
        if "error" in reply:
            raise ValueError(reply["error"])
        return output

    def close(self):
        self.process.close()
