"""How the house is built: who may import whom, and how large the core may be. Read from the files, as they are."""

import ast
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name

import pytest
from conftest import ROOT

PROGRAM = '\nif __name__ == "__main__":'
MODEL = ("gptoss", "checkpoint", "kernels", "mxfp4", "simd", "tokenizer", "harmony", "schema")  # what gpt-oss is


def import_graph(root):
    """{module: the modules of this project that it imports, wherever in its file}, dotted names. Tests are known by
    their bare names too: their folder is on the path when they run."""
    files = {}
    for path in sorted([*root.glob("*.py"), *root.glob("[!.]*/*.py")]):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        files[name] = path
    aliases = {name.removeprefix("tests."): name for name in files if name.startswith("tests.")}

    def known(name):  # an attribute of a module counts as the module; any part of tests/ as tests/
        while name and name not in files:
            name = aliases.get(name) or name.rpartition(".")[0]
        return name

    graph = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {known(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                base = resolve_name(base, package) if node.level else base
                found |= {known(f"{base}.{alias.name}") for alias in node.names}
        graph[module] = found - {"", module}
    return graph


def reach(graph, module):
    """All that comes with `module`: what it imports, and what that imports."""
    found, unread = set(), [module]
    while unread:
        new = graph[unread.pop()] - found
        found |= new
        unread += new
    return found


def complaints(root):
    """What is wrong with the direction of imports in a folder of modules and packages, a sentence each. Programs, which
    nobody imports, may use folders: what they offer is there."""
    graph, said = import_graph(root), []
    top = {path.stem: path.read_text(encoding="utf-8") for path in root.glob("*.py")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        said.append("imports go round: " + " > ".join(error.args[1][::-1]))
    for module, imported in graph.items():
        for other in [] if module.startswith("tests.") else sorted(imported):
            if other.startswith("tests."):
                said.append(f"{module} imports {other}: only tests import tests")
            elif module in top and other not in top and PROGRAM not in top[module]:
                said.append(f"{module} imports {other}: the core imports no folder")
            elif PROGRAM in top.get(other, ""):
                said.append(f"{module} imports {other}: what is run as a program is not imported")
    return said


def test_imports_run_one_way():
    assert complaints(ROOT) == []


def test_the_model_knows_no_text():
    graph = import_graph(ROOT)
    assert "kernels" in reach(graph, "gptoss")  # what is imported inside a function counts
    assert not reach(graph, "gptoss") & {"tokenizer", "harmony", "schema", "conversation"}
    assert reach(graph, "checkpoint") == {"files"} and not reach(graph, "files")  # which stands on nothing


@pytest.mark.parametrize(("files", "said"), [
    ({"a.py": "import b", "b.py": "def f():\n    from a import x"}, "imports go round: a > b > a"),
    ({"a.py": "from box.part import x", "box/__init__.py": "", "box/part.py": ""}, "a imports box.part: the core "),
    ({"a.py": "import box", "box/__init__.py": "", "box/part.py": ""}, "a imports box: the core imports no folder"),
    ({"a.py": "from box import part", "box/part.py": ""}, "a imports box.part: the core imports no folder"),
    ({"box/part.py": "from . import other", "box/other.py": "import box.part"}, "imports go round: box.other > "),
    ({"box/part.py": "import helpers", "tests/helpers.py": ""}, "box.part imports tests.helpers: only tests "),
    ({"a.py": "from tests.helpers import x", "tests/helpers.py": ""}, "a imports tests.helpers: only tests import "),
    ({"a.py": "import b", "b.py": 'x = 1\n\nif __name__ == "__main__":\n    pass'}, "a imports b: what is run "),
])
def test_a_wrong_import_is_found(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    [found] = complaints(tmp_path)
    assert found.startswith(said)


# ---- Size -----------------------------------------------------------------------------------------------------------


def lines(name):
    return len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines())


def test_the_model_fits_into_380_lines():
    assert lines("gptoss") <= 380


def test_no_file_of_the_core_is_longer_than_500_lines():
    assert {path.stem: lines(path.stem) for path in ROOT.glob("*.py") if lines(path.stem) > 500} == {}


def test_all_that_gpt_oss_is_fits_into_2700_lines():
    """The model, its files, its kernels, its tokens and its messages. What one does with it stands on these."""
    sizes = {name: lines(name) for name in MODEL}
    assert sum(sizes.values()) <= 2700, sizes
