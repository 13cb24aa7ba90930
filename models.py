"""A model by its name, ready at once: where its weights are, how they come here, the kernels compiled meanwhile, and
how fast it is.

A name is a directory; a model of the Hugging Face Hub, "owner/name" or "owner/name@revision"; or one of NAMES. A model
of the Hub is looked for in the cache that Hugging Face's programs share, and downloaded into it if it is not there.

What there is to say on the way is given to a function note(text), and what to ask to confirm(question): the caller
knows where its person is, and what else its output is for. Nothing is printed to stdout.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from rich.filesize import decimal

import compiled
import gptoss
import tokenizer as tokenizers
from checkpoint import CheckpointError, directory_of, expect, read_config, read_tensors
from files import read_file, readable

HERE = Path(__file__).resolve().parent
NANO = HERE / "nano"
NAMES = {"nano": NANO, "20b": "openai/gpt-oss-20b", "120b": "openai/gpt-oss-120b",
         "gpt-oss-20b": "openai/gpt-oss-20b", "gpt-oss-120b": "openai/gpt-oss-120b"}
ON_THE_HUB = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:@(\w[\w./-]*))?", re.ASCII)  # a repository, and a revision of it
NEEDED = re.compile(r"config\.json|generation_config\.json|tokenizer\.json|model\.safetensors\.index\.json|"
                    r"[\w.-]+\.safetensors")  # and neither original/ nor metal/, which hold the same weights again
SMALL = 50e6  # bytes of a checkpoint with which NumPy alone keeps up a conversation


def ask(question):
    """Whether a person at the terminal says yes. Where nobody can be asked, the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    with suppress(ImportError, OSError):  # what was typed before is no answer. (Windows has no termios)
        import termios

        termios.tcflush(sys.stdin, termios.TCIFLUSH)  # and not after the question is seen: that would take the answer
    print(f"{question} (y/N) ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def load(name, note, confirm=ask, adapter=None):
    """The model called `name`, its tokenizer and its directory, as find gives it. The model computes with the kernels
    as soon as they are compiled. `adapter`: the directory of a LoRA adapter to put on it. Raises ValueError, before
    anything is compiled, for a model or an adapter that cannot be used."""
    directory = find(name, note, confirm)
    model = gptoss.load(directory, backend="numpy", adapter=at_home(adapter), model=Changeover)
    tokenizer = tokenizers.load(directory)
    prepare(model, directory, note)
    return model, tokenizer, directory


def at_home(path):
    """path, where ~ may stand for the home directory. (A shell leaves it as it is in --adapter=~/mine.)"""
    return None if path is None else os.path.expanduser(path)


def label(name, directory, adapter=None):
    """What a person calls the model of that name, which is in this directory: 20b, mine, 20b+my-adapter."""
    name = directory.name if os.path.isdir(name) else name
    return readable(name if adapter is None else f"{name}+{Path(at_home(adapter)).resolve().name}", 100)


# ---- Where the weights are ------------------------------------------------------------------------------------------

def find(name, note, confirm=ask):
    """The directory of the model called `name`, once it is there. What has to be downloaded is said to `note`, and
    comes if confirm("Download it now?") is true. Raises CheckpointError."""
    path = Path(os.path.expanduser(name))
    if not os.path.isdir(path):
        if os.path.lexists(path):
            return directory_of(path)
        name = os.fspath(NAMES.get(name, name))
        path = Path(name)
    if os.path.isdir(path):
        if not path.name.startswith("models--"):
            return path
        directory = snapshot(path, "main")
        expect(directory, CheckpointError, path, "refs/main in it, with the name of a snapshot", "none")
        return directory
    hub = ON_THE_HUB.fullmatch(name)
    expect(hub and ".." not in name, CheckpointError, name, "a checkpoint directory", "no such directory")
    repository, revision = hub[1], hub[2] or "main"
    directory = snapshot(cache() / f"models--{repository.replace('/', '--')}", revision)
    if whole(directory):
        return directory
    if directory and os.path.lexists(directory / "config.json"):
        read_config(directory)  # what is no gpt-oss stays none, however much of it is here
    return download(name, repository, revision, note, confirm)


def available():
    """The models that are here and whole, [(name, directory, bytes of weights, description)]: first the one that comes
    with this program, then those in Hugging Face's cache. What is broken there is left out."""
    places = [("nano", NANO)]
    for folder in sorted(cache().glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/")
        for ref in sorted((folder / "refs").rglob("*")):
            revision = ref.relative_to(folder / "refs").as_posix()
            name = repository if revision == "main" else f"{repository}@{revision}"
            with suppress(CheckpointError):
                places += [(name, snapshot(folder, revision))] if ON_THE_HUB.fullmatch(name) else []
    return [(name, directory, weight_bytes(directory), f"{config.num_hidden_layers} layers, {config.num_local_experts} "
             f"experts, {config.num_experts_per_tok} of them for each token")
            for name, directory in places if (config := whole(directory))]


def cache():
    """The directory in which Hugging Face's programs keep what they download (huggingface.co/docs/huggingface_hub,
    "Environment variables")."""
    get = os.environ.get
    home = get("HF_HOME") or os.path.join(get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    place = get("HF_HUB_CACHE") or get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(place)))


def snapshot(folder, revision):
    """The directory of a branch, a tag or a commit in a repository's folder of the cache, or None. There a file
    refs/BRANCH holds the name of a commit, and snapshots/COMMIT/ has the files, which may be links to blobs/."""
    ref, commit = folder / "refs" / revision, revision
    if os.path.lexists(ref) and not os.path.isdir(ref):
        commit = read_file(ref, 100).decode(errors="replace").strip()
    directory = folder / "snapshots" / commit
    return directory if re.fullmatch(r"\w+", commit) and os.path.isdir(directory) else None


def whole(directory):
    """The Config of a checkpoint of which nothing is missing. None if something is, or there is no directory."""
    with suppress(CheckpointError, OSError):
        if directory:
            config, layout = read_config(directory)
            read_tensors(directory, config, layout)  # opens all files, and reads none but their headers
            return config
    return None


def weight_bytes(directory):
    return sum(file.stat().st_size for file in directory.glob("*.safetensors") if file.is_file())


# ---- How they come here ---------------------------------------------------------------------------------------------

def download(name, repository, revision, note, confirm):
    """The directory of a model that has come from the Hub into the cache. Files come one after the other, the weights
    last. Those that are complete stay, whatever happens, so that the next call goes on with the others."""
    began = False
    try:
        from huggingface_hub import HfApi, hf_hub_download  # optional: whoever has the weights needs no Hub

        files = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30).siblings
        directory = Path(hf_hub_download(repository, "config.json", revision=revision, cache_dir=cache())).parent
        read_config(directory)  # another kind of model is refused before gigabytes of it come
        files = sorted((file for file in files if NEEDED.fullmatch(file.rfilename)), key=lambda file: file.size)
        blobs = directory.parents[1] / "blobs"  # each has the name of its checksum
        missing = [file for file in files if not (blobs / (file.lfs.sha256 if file.lfs else file.blob_id)).is_file()
                   and not (directory / file.rfilename).is_file()]
        if missing:
            need, free = sum(file.size for file in missing), shutil.disk_usage(directory).free
            expect(need < free, CheckpointError, name, f"{decimal(need)} of disk for the download, or HF_HUB_CACHE to "
                   "name another place", f"{decimal(free)} free in {cache()}")
            note(f"{name}: {decimal(need)} to download into {cache()}, {decimal(free)} free")
            expect(confirm("Download it now?"), CheckpointError, name, "a yes to the download (or --yes)", "none")
        began = True
        for file in files:  # not snapshot_download: its threads go on after Ctrl-C, for the length of a shard
            hf_hub_download(repository, file.rfilename, revision=directory.name, cache_dir=cache())
        return directory
    except CheckpointError:
        raise
    except KeyboardInterrupt:
        if began:
            note(f"{name}: stopped; the same command goes on after the files that are complete")
        raise
    except Exception as error:  # which classes there are depends on the library's version, and on what is below it
        said = f"{type(error).__name__}: {readable(str(error).strip().partition(chr(10))[0], 200)}"
        if began:
            raise CheckpointError(f"{name}: the download stopped ({said}); the same command goes on after the files "
                                  "that are complete") from None
        instead, here = refusal(error, repository, revision, said), ", ".join(model[0] for model in available())
        raise CheckpointError(f"{name}: expected a directory or a model of the Hugging Face Hub, found no such "
                              f"directory and {instead}; here are: {here}") from None


def refusal(error, repository, revision, said):
    """What there is instead of a model of the Hub, by the exception, and what a person can do about it."""
    known = {
        "ImportError": "no huggingface_hub to ask the Hub with (pip install huggingface_hub)",
        "HFValidationError": "a name that no model there can have",
        "GatedRepoError": f"one whose terms are to be accepted (huggingface.co/{repository}, then `hf auth login`)",
        "RepositoryNotFoundError": "no such model there (a private one needs `hf auth login`)",
        "RevisionNotFoundError": "no such revision of the model there",
        "RemoteEntryNotFoundError": "no config.json in the model there",
    }
    for kind in type(error).__mro__:  # from the class itself to those it is derived from
        if kind.__name__ in known:
            return known[kind.__name__]
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return f"no permission to read the one there ({said}; `hf auth login`)"
    what = repository if revision == "main" else f"{repository} --revision {revision}"
    return (f"no download ({said}); where there is a network, `hf download {what} --exclude \"original/*\" "
            f"--exclude \"metal/*\" --local-dir {repository.rpartition('/')[2]}` gives a directory to bring here")


# ---- The kernels ----------------------------------------------------------------------------------------------------

class Changeover(gptoss.Model):
    """A model that is loaded for NumPy and computes with the kernels once those are compiled. `steps` counts how far it
    is: one token through one layer is one."""
    changed, steps = False, 0

    def __call__(self, *args, **kwargs):
        if not self.changed and compiled.all_compiled(*forms(self)):
            self.change_over()
        return super().__call__(*args, **kwargs)

    def mlp(self, i, x):
        y = super().mlp(i, x)
        self.steps += len(x)
        return y

    def change_over(self):
        self.operations, self.changed = gptoss.operations_of("numba"), True


def prepare(model, directory, note):
    """Sees to it that the kernels are compiled, which takes half a minute once.

    A small model does not wait for that. It answers through NumPy while a process of its own compiles. The process goes
    on when this one ends, so that the next start finds all compiled."""
    if compiled.all_compiled(*forms(model)):
        return
    if weight_bytes(directory) > SMALL:
        compile_kernels(lambda state: note(f"The first run compiles the kernels: {state}"), *forms(model))
        model.change_over()
        if not compiled.all_compiled(*forms(model)):
            note(f"compiled kernels cannot be kept, so every start compiles them ({compiled.UNKEPT or 'disk full?'})")
    elif compiled.DIRECTORY:
        compile_in_background(*forms(model))
    else:
        note(f"compiled kernels cannot be kept, so NumPy computes, which is slower ({compiled.UNKEPT})")


def forms(model):
    """In which form a model has its dense weights, and in which its experts: "bfloat16", "mxfp4", "float16", ..."""
    return form(model.layers[0].q_weight), form(model.layers[0].gate_up)


def form(weight):
    weight = weight.weight if isinstance(weight, gptoss.Adapted) else weight
    if isinstance(weight, gptoss.MXFP4):
        return "mxfp4"
    return "bfloat16" if weight.dtype == np.uint16 else str(weight.dtype)


def in_form(weight, wanted):
    """A weight of the small model in another form. Like a mapped one it cannot be written, which Numba tells apart."""
    if form(weight) == wanted:
        return weight
    x = gptoss.dequantize(weight).swapaxes(1, 2) if isinstance(weight, gptoss.MXFP4) else gptoss.bf16_to_float32(weight)
    x = np.ascontiguousarray(gptoss.float32_to_bf16(x) if wanted == "bfloat16" else x.astype(wanted))
    x.flags.writeable = False
    return x.swapaxes(1, 2) if x.ndim == 3 else x


def compile_kernels(report, dense, experts):
    """Has the small model, its weights in these forms, read and write a little, which compiles all. Calls report("1 of
    7, rms_norm") and so on, as each operation returns for the first time."""
    kernels, done = gptoss.operations_of("numba"), []

    def reporting(name):
        def run(*args):
            result = getattr(kernels, name)(*args)
            if name not in done:
                done.append(name)
                report(f"{len(done)} of {len(gptoss.OPERATIONS)}, {name}")
            return result

        return run

    backend = SimpleNamespace(**{name: reporting(name) for name in gptoss.OPERATIONS})
    model = gptoss.load(NANO, backend=backend)
    model.layers = [layer._replace(**{
        field: in_form(weight, dense if field.endswith("weight") else experts)
        for field, weight in layer._asdict().items() if field.endswith("weight") or field in ("gate_up", "down")
    }) for layer in model.layers]
    model.unembedding = in_form(model.unembedding, dense)
    list(gptoss.generate(model, range(40), max_tokens=2, stop=()))  # many tokens at once, then, whatever comes, one
    compiled.mark_all_compiled(dense, experts)


def compile_in_background(dense, experts):
    """Starts a process that compiles, unless another program has just done so, which a file says that it begins with.
    If that cannot be, NumPy goes on."""
    begun = compiled.DIRECTORY / f"begun-{dense}-{experts}"
    with suppress(OSError):
        if begun.exists() and time.time() - begun.stat().st_mtime < 120:
            return
        begun.touch()
        subprocess.Popen([sys.executable, "-c", f"import models; models.compile_quietly({dense!r}, {experts!r})"],
                         cwd=HERE, env=os.environ | {"NUMBA_CACHE_DIR": str(compiled.DIRECTORY.parent)},
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                         start_new_session=True)  # there Ctrl-C, which only stops a reply, does not reach it


def compile_quietly(dense, experts):
    if hasattr(os, "nice"):  # Windows has none
        os.nice(10)  # the reply comes first
    compile_kernels(lambda state: None, dense, experts)


# ---- How far it is, and how fast -------------------------------------------------------------------------------------

class Meter:
    """An engine that counts what another one reads and generates, and how long that takes. `used`: tokens of the
    context that are taken. `prompt`, `known`: of the last prompt, all tokens and those that were in the cache.
    `generated`: since `begin`."""

    def __init__(self, engine):
        self.engine, self.context, self.ids, self.new = engine, engine.context, [], 0
        self.processes_logits = getattr(engine, "processes_logits", True)
        self.used = self.prompt = self.known = self.steps = 0
        self.begin()

    def begin(self):
        """A turn begins: one prompt, or several if tools are called."""
        self.generated, self.later, self.reading = 0, 0, False  # later: those that did not come with the reading
        self.read, self.writing, self.began = 0.0, 0.0, time.perf_counter()

    def generate(self, tokens, **sampling):
        self.began, self.steps, self.reading = time.perf_counter(), self._steps(), True
        ids = self.engine.generate(tokens, **sampling)
        cache = getattr(self.engine, "cache", None)
        self.prompt = self.used = len(tokens)
        self.known = cache.length if cache else 0
        self.new = min(self.new, len(os.path.commonprefix([self.ids, list(tokens)])))
        self.ids = list(tokens)
        return self._count(ids)

    def _count(self, ids):
        begun = None
        for id in ids:
            now = time.perf_counter()
            if begun is None:
                self.read, self.reading, begun = self.read + now - self.began, False, now
            else:
                self.writing, self.later, begun = self.writing + now - begun, self.later + 1, now
            self.generated, self.used = self.generated + 1, self.used + 1
            self.ids.append(id)
            yield id

    def _steps(self):
        return getattr(getattr(self.engine, "model", None), "steps", 0)

    @property
    def rate(self):
        """Tokens generated in a second, without the first of each prompt, which comes with the reading."""
        return self.later / self.writing if self.writing else 0.0

    @property
    def stats(self):
        return (f"{self.prompt} tokens of prompt, {self.known} of them known, read in {self.read:.2f} s; "
                f"{self.generated} generated, {self.rate:.1f} tokens/s")

    def unseen(self):
        """The ids that the model has read or written since the last time that it was asked for them."""
        unseen, self.new = self.ids[self.new :], len(self.ids)
        return unseen

    def waiting(self):
        """How far the model is with reading, as a line."""
        if not self.reading:
            return "..."
        seconds, total = time.perf_counter() - self.began, self.prompt - self.known
        if not hasattr(self.engine, "cache"):
            return f"waiting for the server, {seconds:.0f} s"
        part = min((self._steps() - self.steps) / max(total * len(self.engine.model.layers), 1), 1)
        left = f", {seconds / part - seconds:.0f} s left" if part > 0.02 else ""
        bar = "\u2588" * round(20 * part)
        return f"reading {total:,} tokens  {bar:\u2591<20}  {part:.0%}{left}"
