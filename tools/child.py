"""The other process, in which code runs that may do anything: what the model writes, and the functions of a user.

    child.py python              {"code": text}                   ->  {}       what is shown is output, as in a notebook
    child.py functions FILE.py   {}                               ->  {"functions": [each as harmony.Function has it]}
                                 {"name": text, "content": text}  ->  {}       the result is output
                                                                      {"error": sentence}    instead of each of these

Requests and replies are lines of JSON, each with the "id" of its request. They go through the pipes that are standard
input and output when the process starts. From then on, the standard input is at its end, and standard output and error
are the pipe of the error: what is shown is shown in order. Before the first reply there is an empty line. It says that
the process has started, and only then is it sent a request: so if the other end is gone by then, nothing runs.
process.py is at the other end. This file imports nothing of the project, so that the code that runs here finds none of
it by accident.
"""

import ast
import builtins
import inspect
import json
import linecache
import os
import sys
import traceback
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import get_type_hints

LIMITS = {"RLIMIT_AS": 2 << 30, "RLIMIT_FSIZE": 256 << 20,  # bytes: of memory for one process, of one file
          "RLIMIT_CPU": 3600, "RLIMIT_CORE": 0,  # seconds, of a whole session; bytes
          "RLIMIT_NOFILE": 256, "RLIMIT_NPROC": 1024}  # processes and threads of this user; root has no such limit


def main():
    """Answers requests until there are no more."""
    kind, *arguments = sys.argv[1:]
    del sys.argv[1:]
    requests, replies, shown = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w"), os.dup(2)
    nothing = os.open(os.devnull, os.O_RDONLY)
    answer = {"python": python, "functions": functions}[kind](*arguments)
    names, modules, own = dict(vars(builtins)), dict(sys.modules), os.getpid()
    replies.write("\n")
    replies.flush()
    for line in requests:
        vars(builtins).update(names)  # the code before may have changed these, and closed or redirected the rest
        sys.modules.update(modules)
        for n, pipe in enumerate((nothing, shown, shown)):
            os.dup2(pipe, n)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        request = json.loads(line)
        result, reply = answer(request)
        with suppress(Exception):
            sys.stdout.flush()
        if os.getpid() != own:  # a copy that the code made by os.fork, and that has come to its end
            os._exit(0)
        result = memoryview(result.encode(errors="backslashreplace"))
        while result:
            result = result[os.write(shown, result) :]
        replies.write(json.dumps({**reply, "id": request["id"]}) + "\n")
        replies.flush()


# ---- Python ---------------------------------------------------------------------------------------------------------

def python():
    """Runs code, one piece after the other, as if all of it stood in one program."""
    limit()
    program = sys.modules["__main__"] = ModuleType("__main__")
    count = 0

    def answer(request):
        nonlocal count
        count += 1
        try:
            run(request["code"], f"<code {count}>", vars(program))
        except BaseException as error:  # SystemExit too: the session goes on
            frame = error.__traceback__
            while frame and not frame.tb_frame.f_code.co_filename.startswith("<code "):  # of this file, and of ast.py
                frame = frame.tb_next
            return "".join(traceback.format_exception(type(error), error, frame)), {}
        return "", {}

    return answer


def run(code, name, space):
    """If the last statement is an expression, its value is shown, and kept as `_`."""
    linecache.cache[name] = len(code), None, code.splitlines(keepends=True), name  # for tracebacks
    statements = ast.parse(code, name).body
    last = [statements.pop()] if statements and isinstance(statements[-1], ast.Expr) else []
    for compiled in (compile(ast.Module(statements, []), name, "exec"), compile(ast.Interactive(last), name, "single")):
        exec(compiled, space)


def limit():
    import resource  # Linux and macOS have it

    for name, most in LIMITS.items():
        with suppress(AttributeError, ValueError, OSError):  # not every system has every limit
            _, hard = resource.getrlimit(getattr(resource, name))
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(getattr(resource, name), (most, most))


# ---- Functions ------------------------------------------------------------------------------------------------------

class Refused(Exception):
    """Its text is the sentence that the user or the model is told."""


def functions(path):
    """Describes and calls the functions of a Python file."""
    sys.path[0] = os.path.dirname(os.path.realpath(path))  # as if the file had been started: it finds its neighbours
    found, described = {}, []

    def answer(request):
        try:
            if not found:
                loaded = load(path)
                described[:] = [describe(function, path) for function in loaded.values()]
                found.update(loaded)
            if "name" not in request:
                return "", {"functions": described}
            return call(found[request["name"]], arguments_in(request["content"]), path), {}
        except Refused as reason:
            return "", {"error": str(reason)}

    return answer


def load(path):
    """{name: function} of the public functions that are defined in a file."""
    loader = SourceFileLoader("user_functions", path)
    module = sys.modules[loader.name] = ModuleType(loader.name)  # registered, so that annotations can be resolved
    module.__file__ = path
    if not os.path.isfile(path):
        raise Refused(f"{path}: expected a Python file, found none")
    try:
        loader.exec_module(module)
    except BaseException as error:
        raise Refused(f"{path}: expected a file that can be imported, found {sentence(error, path)}") from None
    found = {name: value for name, value in vars(module).items()
             if inspect.isfunction(value) and value.__module__ == loader.name and not name.startswith("_")}
    if not found:
        raise Refused(f"{path}: expected a function whose name does not begin with _, found none")
    return found


def describe(function, path):
    """What harmony.Function says of it: the types from its signature, the words from its docstring."""
    try:
        from docstring_parser import parse
        from pydantic import TypeAdapter
    except ImportError as error:
        raise Refused(f"functions need {error.name}: pip install pydantic docstring_parser") from None

    def expect(ok, where, expected, found):
        if not ok:
            hint = "(a name that begins with _ keeps it from the model)"
            raise Refused(f"{path}: {function.__name__}{where}: expected {expected}, found {found} {hint}")

    words = parse(function.__doc__ or "")
    said = {parameter.arg_name: parameter.description for parameter in words.params}
    expect(words.description, "", "a docstring that says what it does", "none")
    expect(not inspect.iscoroutinefunction(function), "", "a function", "a coroutine")
    signature, hints = inspect.signature(function), {}
    for name, parameter in signature.parameters.items():
        expect(parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY), f", parameter {name}",
               "one that can be given by its name", str(parameter))
        expect(parameter.annotation is not parameter.empty, f", parameter {name}", "an annotation", "none")
        function.__annotations__ = {name: parameter.annotation}
        try:
            hints |= get_type_hints(function, include_extras=True)  # what is written as text, too
            TypeAdapter(hints[name]).json_schema()
        except Exception:
            expect(False, f", parameter {name}", "a type that has a JSON schema", str(parameter))
    function.__annotations__ = hints
    try:
        schema = plain(TypeAdapter(function).json_schema())
    except Exception:
        expect(False, "", "parameters that have a JSON schema", str(signature))
    for name, property in schema["properties"].items():
        if said.get(name):
            property.setdefault("description", " ".join(said[name].split()))
    returns = f"\nReturns: {words.returns.description}" if words.returns and words.returns.description else ""
    return {"name": function.__name__, "description": words.description.strip() + returns, "parameters": schema}


def plain(schema):
    """A schema by pydantic, without the titles that repeat names, and without anyOf where schema.py knows another form:
    a list of types if it says no more than those, and for what is None if it is left out, "nullable"."""
    if isinstance(schema, list):
        return [plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kinds = schema.get("anyOf")
    if isinstance(kinds, list):
        others = [kind for kind in kinds if kind != {"type": "null"}]
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        if all(list(kind) == ["type"] for kind in kinds):
            schema = {"type": [kind["type"] for kind in kinds], **rest}
        elif len(others) == 1 and "type" in others[0] and rest.get("default", 0) is None:
            schema = {**others[0], "nullable": True, **rest}
    return {key: value if key in ("default", "examples", "enum", "const") else plain(value)
            for key, value in schema.items() if not (key == "title" and isinstance(value, str))}


def arguments_in(content):
    """The arguments that the model wrote: an object in JSON, sometimes in a list, or nothing at all."""
    try:
        arguments = json.loads(content) if content.strip() else {}
    except (ValueError, RecursionError) as error:
        raise Refused(f"expected the arguments as a JSON object, found text that is no JSON: {error}") from None
    if isinstance(arguments, list) and len(arguments) == 1:
        [arguments] = arguments
    if not isinstance(arguments, dict):
        raise Refused(f"expected the arguments as a JSON object, found {content[:100]}")
    return arguments


def call(function, arguments, path):
    """What the function returns, as text: JSON, if it is no text. pydantic checks and converts the arguments."""
    from pydantic import ValidationError, validate_call

    try:
        return text_of(validate_call(function)(**arguments))
    except BaseException as error:
        if isinstance(error, ValidationError) and line_in(error, path) is None:  # by the arguments, not by the function
            lines = [f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors()]
            raise Refused("\n".join(lines)) from None
        raise Refused(sentence(error, path)) from None


def text_of(result):
    from pydantic_core import to_json

    if isinstance(result, str):
        return result
    try:
        return to_json(result, fallback=repr).decode()
    except ValueError:  # what contains itself, or bytes that are no text
        return repr(result)


def line_in(error, path):
    """The last line of the file that an exception went through, or None."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else None


def sentence(error, path):
    """An exception in one line: "KeyError: 'Oslo' (functions.py, line 12)"."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")[:1000]
    line = line_in(error, path)
    return text if line is None else f"{text} ({os.path.basename(path)}, line {line})"


if __name__ == "__main__":
    main()
