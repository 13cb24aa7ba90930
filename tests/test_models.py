"""A model by its name: Hugging Face's cache, a small Hub on this machine, and kernels that compile meanwhile."""

import hashlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

import compiled
import gptoss
import kernels
import models
import tokenizer as tokenizers
from checkpoint import CheckpointError, map_safetensors
from conversation import Conversation, LocalEngine

NANO = ROOT / "nano"
NAMES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
FILES = {name: (NANO / name).read_bytes() for name in NAMES}
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"
COMMIT, EARLIER = "1" * 40, "2" * 40
MAIN = "openai/gpt-oss-20b"  # under this name the tests have the small model


def silent(text):
    pytest.fail(f"nothing was to be said: {text}")


# ---- Hugging Face's cache -------------------------------------------------------------------------------------------

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def store(cache, files, repository=MAIN, commit=COMMIT, ref="main"):
    """Puts a snapshot into the cache, with links to blobs as on every system that has them. Returns its directory."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    directory = folder / "snapshots" / commit
    for path in (directory, folder / "blobs", folder / "refs"):
        path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        blob = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / blob).write_bytes(data)
        (directory / name).symlink_to(f"../../blobs/{blob}")
    if ref:
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return directory


def index():
    """An index of the small model's tensors. The last one is in another shard, which is not there."""
    tensors = list(map_safetensors(NANO / "model.safetensors"))
    where = dict.fromkeys(tensors, "model.safetensors") | {tensors[-1]: SHARD}
    return {INDEX: json.dumps({"weight_map": where}).encode()}


def test_a_name_of_the_hub_is_its_snapshot_in_the_cache(cache):
    directory = store(cache, FILES)
    for name in (MAIN, "gpt-oss-20b", "20b", f"{MAIN}@main", f"{MAIN}@{COMMIT}", directory, directory.parents[1]):
        assert models.find(name, silent) == directory
    model, tokenizer, found = models.load("20b", silent)
    assert (found, model.config.num_hidden_layers, tokenizer.vocab_size) == (directory, 4, model.config.vocab_size)


def test_the_cache_of_these_tests_is_what_huggingface_hub_reads(cache):
    directory, earlier = store(cache, FILES), store(cache, FILES, commit=EARLIER, ref="v1")
    for name in NAMES:
        for revision, expected in [("main", directory), ("v1", earlier), (EARLIER, earlier)]:
            found = huggingface_hub.try_to_load_from_cache(MAIN, name, cache_dir=cache, revision=revision)
            assert found == str(expected / name)
    found = huggingface_hub.scan_cache_dir(cache)
    assert not found.warnings and [repo.repo_id for repo in found.repos] == [MAIN]
    [repo] = found.repos
    refs = {revision.commit_hash: set(revision.refs) for revision in repo.revisions}
    assert refs == {COMMIT: {"main"}, EARLIER: {"v1"}}


def test_a_revision_is_found_by_branch_tag_or_commit(cache):
    store(cache, FILES)
    earlier = store(cache, FILES, commit=EARLIER, ref="refs/pr/1")
    for revision in ("refs/pr/1", EARLIER):
        assert models.find(f"{MAIN}@{revision}", silent) == earlier
    assert [name for name, *_ in models.available()] == ["nano", MAIN, f"{MAIN}@refs/pr/1"]


def test_a_sharded_checkpoint_is_whole_with_its_last_shard(cache):
    directory = store(cache, FILES | index())
    assert models.whole(directory) is None and models.find(directory, silent) == directory
    (directory / SHARD).write_bytes(FILES["model.safetensors"])
    (directory / "not-in-the-index.safetensors").symlink_to("nowhere")
    assert models.find(MAIN, silent) == directory
    assert models.available()[1][2] == 2 * len(FILES["model.safetensors"])


@pytest.mark.parametrize("environment", [
    {}, {"HF_HOME": "~/x"}, {"XDG_CACHE_HOME": "/x"}, {"HF_HUB_CACHE": "$HOME/x"}, {"HUGGINGFACE_HUB_CACHE": "x"},
    {"HF_HOME": "/x", "XDG_CACHE_HOME": "/y"}, {"HF_HOME": "/x", "HF_HUB_CACHE": "/y"},
], ids=str)
def test_the_cache_is_where_huggingface_hub_has_it(environment, monkeypatch):
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    constants = runpy.run_path(huggingface_hub.constants.__file__)
    assert str(models.cache()) == constants["HF_HUB_CACHE"]


def test_a_directory_comes_before_other_meanings(cache, tmp_path):
    assert models.find("nano", silent) == NANO
    store(cache, FILES)
    for name in ("nano", "20b", MAIN):
        (tmp_path / name).mkdir(parents=True)
        assert models.find(name, silent).absolute() == tmp_path / name


@pytest.mark.parametrize("name", [
    "nowhere", "./a/b", "/a/b", "~/nowhere/b", "a/b/c", "a/../b", "a/b@..", "a/b@", "a b/c", "a/b@x y", "\x1b/b",
])
def test_what_is_no_name_of_the_hub_is_a_missing_directory(name, cache):
    with pytest.raises(CheckpointError) as error:
        models.find(name, silent)
    shown = name.replace("\x1b", "\\x1b")  # which a terminal would obey
    assert str(error.value) == f"{shown}: expected a checkpoint directory, found no such directory"


def test_available_leaves_out_what_is_broken(cache):
    store(cache, FILES)
    store(cache, FILES | index(), repository="half/downloaded")
    store(cache, FILES, repository="no/ref", ref=None)
    store(cache, FILES | {"config.json": b'{"model_type": "llama"}'}, repository="other/model")
    store(cache, FILES | {"config.json": b"[" * 100_000}, repository="bad/json")
    pipe = store(cache, {name: FILES[name] for name in NAMES[1:]}, repository="a/pipe")
    os.mkfifo(pipe / "config.json")
    os.mkfifo(store(cache, FILES, repository="another/pipe") / INDEX)
    loop = store(cache, {name: FILES[name] for name in NAMES[1:]}, repository="a/loop")
    (loop / "config.json").symlink_to("config.json")
    dangling = store(cache, FILES, repository="lost/blob")
    (dangling / "model.safetensors").resolve().unlink()
    (cache / "models--a--file").touch()
    (cache / "models--round--round").symlink_to("models--round--round")
    upwards = f"../../models--openai--gpt-oss-20b/snapshots/{COMMIT}"
    for name, content in {"empty": "", "upwards": upwards, "long": "1" * 10**6, "gone": EARLIER}.items():
        (store(cache, FILES, repository=f"ref/{name}").parents[1] / "refs" / "main").write_text(content)
    os.mkfifo(store(cache, FILES, repository="ref/pipe", ref=None).parents[1] / "refs" / "main")
    (cache / "models--ref--pipe" / "refs" / "round").symlink_to(".")
    weights = len(FILES["model.safetensors"])
    nano, other = models.available()
    assert nano == ("nano", NANO, weights, "4 layers, 8 experts, 2 of them for each token")
    assert other == (MAIN, models.find(MAIN, silent), *nano[2:])


def test_no_cache_is_no_trouble(cache):
    cache.rmdir()
    assert [name for name, *_ in models.available()] == ["nano"]


def test_another_kind_of_model_in_the_cache_is_said(cache):
    directory = store(cache, {"config.json": b'{"model_type": "llama"}'}, repository="some/llama")
    with pytest.raises(CheckpointError) as error:
        models.find("some/llama", silent)
    assert str(error.value) == f'{directory}/config.json: model_type: expected "gpt_oss", found "llama"'


def test_a_folder_of_the_cache_without_a_current_snapshot_is_said(cache):
    folder = store(cache, FILES, ref="v1").parents[1]
    with pytest.raises(CheckpointError) as error:
        models.find(folder, silent)
    assert str(error.value) == f"{folder}: expected refs/main in it, with the name of a snapshot, found none"


# ---- The Hub --------------------------------------------------------------------------------------------------------

class Hub(ThreadingHTTPServer):
    """What of the Hub's interface huggingface_hub needs in order to list one model and download its files."""
    daemon_threads, block_on_close = True, False

    def __init__(self, **files):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.got = FILES | {"original/model.safetensors": b"x" * 10**6, "README.md": b"# nano"} | files, []
        self.refused = {}  # what a request begins with: the status and the headers with which it is refused
        self.in_the_middle = []  # functions, each called once in the middle of the weights, then the connection is lost

    def handle_error(self, *args):
        pass  # whoever asked has left


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, body, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        refused = [answer for start, answer in hub.refused.items() if f"{self.command} {path}".startswith(start)]
        if refused:
            self.send(refused[0][0], b"", **refused[0][1])
        elif path.startswith(f"/api/models/{MAIN}/revision/"):
            listed = [{"rfilename": name, "size": len(data), "blobId": git_id(data),
                       **({"lfs": {"size": len(data), "sha256": etag(name, data), "pointerSize": 134}}
                          if name.endswith(".safetensors") else {})} for name, data in hub.files.items()]
            self.send(200, json.dumps({"id": MAIN, "sha": COMMIT, "siblings": listed}).encode())
        elif path.startswith(f"/{MAIN}/resolve/") and path.split("/", 5)[5] in hub.files:
            self.send_file(hub, path.split("/", 5)[5])
        else:
            self.send(404, b"", X_Error_Code="EntryNotFound" if "/resolve/" in path else "RepoNotFound")

    do_HEAD = do_GET

    def send_file(self, hub, name):
        data, start = hub.files[name], int(self.headers.get("Range", "bytes=0-")[6:-1])
        headers = {"ETag": f'"{etag(name, data)}"', "X_Repo_Commit": COMMIT}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET":
            hub.got.append((name, start))
            if name == "model.safetensors" and hub.in_the_middle:
                self.send(200, data[: len(data) // 2], **headers, Content_Length=len(data))
                hub.in_the_middle.pop()()
                self.close_connection = True
                return
        self.send(206 if start else 200, data[start:], **headers)


def git_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag(name, data):
    return hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else git_id(data)


@pytest.fixture
def hub():
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


PROGRAM = f"""
import signal, sys
import models
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
def note(text):
    print(text, file=sys.stderr)
def confirm(question):
    note(question)
    return True
try:
    print(models.load("{MAIN}", note, confirm)[2])
except ValueError as error:
    sys.exit(str(error))
except KeyboardInterrupt:
    sys.exit(130)
"""


def program(hub):
    """A program that loads a model from this Hub. (huggingface_hub reads its settings when it is imported.)"""
    env = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=env | {"PYTHONPATH": str(ROOT)}, text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process):
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def test_a_model_is_downloaded_once_and_loads(cache, hub):
    assert MAIN not in [name for name, *_ in models.available()]
    status, out, err = ended(program(hub))
    directory = cache / "models--openai--gpt-oss-20b" / "snapshots" / COMMIT
    assert (status, out) == (0, f"{directory}\n"), err
    said, asked = err.splitlines()
    need = models.decimal(sum(map(len, FILES.values())) - len(FILES["config.json"]))  # which has come before
    assert said.startswith(f"{MAIN}: {need} to download into {cache}, ") and said.endswith("B free")
    assert asked == "Download it now?"
    assert [name for name, _ in hub.got] == [*NAMES[:2], "tokenizer.json", "model.safetensors"]  # the largest last
    assert {name: (directory / name).read_bytes() for name in NAMES} == FILES
    assert sorted(path.name for path in directory.iterdir()) == sorted(NAMES)

    assert models.find("20b", silent) == directory  # and from now on without the Hub, and without its library
    assert [name for name, *_ in models.available()] == ["nano", MAIN]
    found = huggingface_hub.try_to_load_from_cache(MAIN, "config.json", cache_dir=cache)
    assert found == str(directory / "config.json") and len(hub.got) == 4


def test_the_next_start_goes_on_after_what_is_complete(cache, hub):
    hub.refused[f"GET /{MAIN}/resolve/{COMMIT}/model.safetensors"] = (500, {})
    status, out, err = ended(program(hub))
    assert (status, out) == (1, "") and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"{MAIN}: the download stopped (HfHubHTTPError: ")
    assert err.endswith("); the same command goes on after the files that are complete\n")
    assert len(hub.got) == 3
    hub.refused.clear()
    status, out, err = ended(program(hub))
    assert status == 0 and hub.got[3:] == [("model.safetensors", 0)], err
    assert err.startswith(f"{MAIN}: {models.decimal(len(FILES['model.safetensors']))} to download")


def test_ctrl_c_stops_a_download_at_once_and_says_what_is_kept(cache, hub):
    go_on = threading.Event()
    hub.in_the_middle = [lambda: go_on.wait(60)]
    process = program(hub)
    while ("model.safetensors", 0) not in hub.got:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    status, out, err = ended(process)
    assert not go_on.is_set() and (status, out) == (130, "") and "Traceback" not in err
    assert err.endswith(f"\n{MAIN}: stopped; the same command goes on after the files that are complete\n")
    go_on.set()
    assert ended(program(hub))[0] == 0 and hub.got[4:] == [("model.safetensors", 0)]


LEAD = "expected a directory or a model of the Hugging Face Hub, found no such directory and"
BRING = (f'where there is a network, `hf download {MAIN} --exclude "original/*" --exclude "metal/*" '
         "--local-dir gpt-oss-20b` gives a directory to bring here; here are: nano")


@pytest.fixture
def near(hub, cache, monkeypatch):
    """This Hub as the Hub of this process."""
    point_at(f"http://127.0.0.1:{hub.server_port}", monkeypatch)
    return hub


def point_at(address, monkeypatch, offline=False):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def refusal(name=MAIN, note=silent, confirm=lambda question: True):
    with pytest.raises(CheckpointError) as error:
        models.find(name, note, confirm)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("where, status, code, instead", [
    # 401: so the Hub answers those who have not logged in
    ("/api/", 401, "RepoNotFound", "no such model there (a private one needs `hf auth login`); here are: nano"),
    ("/api/", 404, "RepoNotFound", "no such model there (a private one needs `hf auth login`); here are: nano"),
    ("/api/", 404, "RevisionNotFound", "no such revision of the model there; here are: nano"),
    (f"/{MAIN}/", 401, "GatedRepo",  # whose list of files is public
     f"one whose terms are to be accepted (huggingface.co/{MAIN}, then `hf auth login`); here are: nano"),
    (f"/{MAIN}/", 404, "EntryNotFound", "no config.json in the model there; here are: nano"),
    ("/api/", 401, "none", "no permission to read the one there (HfHubHTTPError: "),
    ("/api/", 403, "none", "no permission to read the one there (HfHubHTTPError: "),
    ("/api/", 500, "none", "no download (HfHubHTTPError: Server error '500 Internal Server Error' for url "),
])
def test_what_the_hub_refuses_is_one_sentence(where, status, code, instead, near):
    near.refused |= {f"{method} {where}": (status, {"X_Error_Code": code}) for method in ("GET", "HEAD")}
    assert refusal().startswith(f"{MAIN}: {LEAD} {instead}")


def test_without_a_network_it_says_how_to_bring_the_model(cache, monkeypatch):
    point_at("http://127.0.0.1:9", monkeypatch)
    assert refusal("20b") == f"{MAIN}: {LEAD} no download (ConnectError: [Errno 111] Connection refused); {BRING}"
    point_at("http://127.0.0.1:9", monkeypatch, offline=True)
    store(cache, FILES, repository="other/gpt-oss")
    said = refusal(f"{MAIN}@v9")
    assert "no download (OfflineModeIsEnabled: " in said and f"`hf download {MAIN} --revision v9 --exclude" in said
    assert said.endswith("; here are: nano, other/gpt-oss")


def test_a_name_that_the_hub_cannot_have(near):
    assert refusal("a/b--c") == f"a/b--c: {LEAD} a name that no model there can have; here are: nano"


def test_the_library_is_needed_for_the_hub_alone(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    instead = "no huggingface_hub to ask the Hub with (pip install huggingface_hub); here are: nano"
    assert refusal() == f"{MAIN}: {LEAD} {instead}"
    directory = store(cache, FILES)
    assert models.find(MAIN, silent) == directory


def test_a_download_that_does_not_fit_is_refused(near, cache, monkeypatch):
    need = sum(map(len, FILES.values())) - len(FILES["config.json"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need))
    expected = f"expected {models.decimal(need)} of disk for the download, or HF_HUB_CACHE to name another place"
    assert refusal() == f"{MAIN}: {expected}, found {models.decimal(need)} free in {cache}"
    assert [name for name, _ in near.got] == ["config.json"]
    blobs = cache / "models--openai--gpt-oss-20b" / "blobs"  # what another revision has brought needs no room
    (blobs / etag("tokenizer.json", FILES["tokenizer.json"])).write_bytes(FILES["tokenizer.json"])
    assert models.whole(models.find(MAIN, lambda text: None, lambda question: True))
    assert [name for name, _ in near.got[1:]] == ["generation_config.json", "model.safetensors"]


def test_a_download_waits_for_a_yes(near, monkeypatch, capsys):
    said = []
    refused = refusal(note=said.append, confirm=models.ask)
    assert refused == f"{MAIN}: expected a yes to the download (or --yes), found none"
    assert len(said) == 1 and [name for name, _ in near.got] == ["config.json"]
    for typed, yes in [("n\n", False), ("\n", False), ("", False), ("Yes\n", True)]:
        for name, text in [("stdin", typed), ("stderr", "")]:
            monkeypatch.setattr(sys, name, io.StringIO(text))
            monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True)
        assert models.ask("Now?") == yes and sys.stderr.getvalue() == "Now? (y/N) "
    assert capsys.readouterr().out == ""


def test_a_lost_connection_is_taken_up_where_it_was(near, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # bytes: of fewer nothing is kept
    near.in_the_middle = [lambda: None]
    directory = models.find(MAIN, lambda text: None, lambda question: True)
    size = len(FILES["model.safetensors"])
    assert near.got[-2:] == [("model.safetensors", 0), ("model.safetensors", size // 2 // 100_000 * 100_000)]
    assert (directory / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_another_kind_of_model_is_refused_before_its_weights_come(near):
    near.files["config.json"] = b'{"model_type": "llama"}'
    assert refusal().endswith('/config.json: model_type: expected "gpt_oss", found "llama"')
    assert [name for name, _ in near.got] == ["config.json"]


# ---- The first answer at once ---------------------------------------------------------------------------------------

QUESTION, ANSWER = "What is 12 + 30?", "12 + 30 = 42"


def answer(model):
    pieces = Conversation(LocalEngine(model), tokenizers.load(NANO)).ask(QUESTION, temperature=0)
    return "".join(text for channel, text in pieces if channel == "final")


def test_the_first_start_answers_while_the_kernels_compile(tmp_path):
    """With nothing compiled, and again while that is under way. Afterwards there is nothing left to compile."""
    code = "import models, test_models; print(test_models.answer(models.load('nano', print)[0]))"
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}

    def run():
        process = subprocess.Popen([sys.executable, "-c", code], env=env, text=True, start_new_session=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert ended(process) == (0, ANSWER + "\n", "")
        return process

    for _ in range(2):
        process = run()
        with pytest.raises(ProcessLookupError):  # Ctrl-C reaches a terminal's group of processes: nobody is left in it
            os.killpg(process.pid, signal.SIGINT)
        directory, = tmp_path.iterdir()
        assert (directory / "begun-bfloat16-mxfp4").exists() and not (directory / "complete-bfloat16-mxfp4").exists()
    begun = (directory / "begun-bfloat16-mxfp4").stat().st_mtime_ns
    for _ in range(3000):
        if (directory / "complete-bfloat16-mxfp4").exists():
            break
        time.sleep(0.1)
    files = sorted(directory.iterdir())
    run()
    assert len(files) > 30 and sorted(directory.iterdir()) == files
    assert (directory / "begun-bfloat16-mxfp4").stat().st_mtime_ns == begun  # one process compiled for both


def test_the_model_changes_over_in_the_middle_of_a_reply(monkeypatch):
    monkeypatch.setattr(compiled, "all_compiled", lambda *_: next(answers))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: None)
    answers = iter([False] * 20 + [True])  # at loading, at 19 steps, and at the 20th; then it is asked no more
    model, _, _ = models.load(NANO, silent)
    assert model.operations.attention is gptoss.attention
    assert answer(model) == ANSWER
    assert model.operations.attention is kernels.attention and not list(answers)


def test_a_large_model_waits_and_shows_how_far_it_is(monkeypatch):
    monkeypatch.setattr(compiled, "all_compiled", lambda *_: False)
    monkeypatch.setattr(models, "SMALL", 0)
    said = []
    model, _, _ = models.load("nano", said.append)
    assert model.operations.attention is kernels.attention
    assert said[0] == "The first run compiles the kernels: 1 of 7, rms_norm"
    assert said[6] == "The first run compiles the kernels: 7 of 7, experts"
    assert "cannot be kept" in said[7] and len(said) == 8  # all_compiled still says no


def test_what_is_compiled_does_not_depend_on_what_the_model_says(monkeypatch):
    """A stop token as the first: a single token is read all the same, for which other code is compiled."""
    lengths, experts = [], kernels.experts
    monkeypatch.setattr(gptoss, "sample", lambda *args: model.config.eos_token_id[0])
    monkeypatch.setattr(kernels, "experts", lambda x, *rest: lengths.append(len(x)) or experts(x, *rest))
    monkeypatch.setattr(compiled, "mark_all_compiled", lambda *_: None)
    model = gptoss.load(NANO)
    models.compile_kernels(lambda state: None, *compiled.PUBLISHED)
    assert lengths == 4 * [40] + 4 * [1]


def test_a_model_in_another_form_finds_its_kernels_compiled(tmp_path):
    """The small model as a training would leave it: all in float16, the experts unpacked. In a process of its own with
    an empty cache of compiled code: what `load` compiles is all that is needed."""
    tensors = {}
    for name, (dtype, shape, data) in map_safetensors(NANO / "model.safetensors").items():
        if name.endswith("_scales"):
            blocks = tensors.pop(name.replace("scales", "blocks"))
            weight = gptoss.dequantize(gptoss.MXFP4(blocks, data.reshape(shape))).swapaxes(1, 2)  # [E, inputs, outputs]
            tensors[name.removesuffix("_scales")] = np.ascontiguousarray(weight.astype(np.float16))
        elif dtype == "U8":
            tensors[name] = data.reshape(shape)
        else:
            tensors[name] = gptoss.bf16_to_float32(data.view(np.uint16).reshape(shape)).astype(np.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        shutil.copy(NANO / name, tmp_path)
    program = f"""if True:
        import os, compiled, gptoss, models
        models.SMALL = 0
        model, _, _ = models.load({str(tmp_path)!r}, lambda text: None)
        assert models.forms(model) == ("float16", "float16") and compiled.all_compiled("float16", "float16")
        files = set(os.listdir(compiled.DIRECTORY))
        list(gptoss.generate(model, range(40), max_tokens=3, stop=()))
        new = set(os.listdir(compiled.DIRECTORY)) - files
        assert len(files) > 15 and not new, (files, new)
        """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "compiled")})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_stands_for_its_directory(tmp_path):
    assert models.find(str(NANO / "model.safetensors"), silent) == NANO
    (tmp_path / "small.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(CheckpointError, match="small.gguf: expected a checkpoint directory, found GGUF"):
        models.find(str(tmp_path / "small.gguf"), silent)
    with pytest.raises(CheckpointError, match="expected a checkpoint, found GGUF"):
        models.load(str(tmp_path), silent)


def test_what_cannot_be_used_is_said_before_anything_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "all_compiled", lambda *_: pytest.fail("prepared"))
    shutil.copytree(NANO, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(tokenizers.TokenizerError):
        models.load(tmp_path, silent)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError):
        models.load(tmp_path, silent)
