"""Do the versions hold that requirements.txt claims? And is anything known against those that it brings?

    python tests/versions.py lowest       the lowest version of each package, on the Python that runs this
    python tests/versions.py highest      the newest of each
    python tests/versions.py audit        known vulnerabilities of what requirements.txt brings, and all licenses

Each makes a new virtual environment and removes it again. The tests are those that need no PyTorch and touch every
other package: they take some minutes, and the whole suite runs with the newest versions anyway.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "accelerate", "peft")  # gigabytes, and pinned by each other
TESTS = ("tokenizer", "harmony", "gptoss", "kernels", "checkpoint", "chat", "grammar", "tools", "browser", "models",
         "serve", "serve_clients", "terminal", "site")


def light(path):
    """The lines of a file of requirements without the heavy ones, and with those of files that it names."""
    out = []
    for line in path.read_text().splitlines():
        if line.startswith("-r"):
            out += light(path.parent / line.split()[1])
        elif not line.startswith(HEAVY):
            out.append(line)
    return out


def test(python, resolution, folder):
    """Installs them with uv, for pip knows no lowest versions."""
    wanted = folder / "wanted.txt"
    wanted.write_text("\n".join(light(ROOT / "requirements-dev.txt")) + "\n")
    resolution = {"lowest": "lowest-direct", "highest": "highest"}[resolution]
    call(python, "-m", "pip", "install", "--quiet", "uv")
    call(python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--only-binary", ":all:",
         "--resolution", resolution, "-r", wanted)
    call(python, "-m", "uv", "pip", "list", "--python", python)
    call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/test_{name}.py" for name in TESTS))


def audit(python):
    call(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip", "-r", "requirements.txt")
    with tempfile.TemporaryDirectory() as folder:
        tools = make(Path(folder) / "tools")
        call(tools, "-m", "pip", "install", "--quiet", "pip-audit", "pip-licenses")
        listed = subprocess.run([tools, "-m", "piplicenses", "--python", python, "--with-system"], check=True,
                                capture_output=True, text=True).stdout
        print("\n".join(line for line in listed.splitlines() if line[1:2].strip()))  # not whole texts of licenses
        packages = Path(folder) / "frozen.txt"
        packages.write_bytes(subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True).stdout)
        call(tools, "-m", "pip_audit", "--strict", "--no-deps", "--disable-pip", "-r", packages)


def make(folder):
    """A new virtual environment. Returns its Python."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def call(*command):
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)


def main():
    if sys.argv[1:] not in (["lowest"], ["highest"], ["audit"]):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        python = make(Path(folder) / "venv")
        try:
            audit(python) if sys.argv[1] == "audit" else test(python, sys.argv[1], Path(folder))
        except subprocess.CalledProcessError as error:
            sys.exit(f"python tests/versions.py {sys.argv[1]}: `{' '.join(error.cmd[1:4])} ...` found something")


if __name__ == "__main__":
    main()
