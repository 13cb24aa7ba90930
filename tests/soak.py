"""A long run with the small model: is memory flat, is the speed, and are the caches at the end those of a fresh start?

    python tests/soak.py conversation --minutes 60     chats in this process: asked, interrupted, undone, begun anew
    python tests/soak.py service --minutes 60          serve.py in a process of its own, and two clients that may go

Prints a line a minute. The exit status is 1 if memory or the time for a token grew from the second quarter of the run
to the last, or if anything at the end differs from a fresh start. Not a part of the test suite, because it takes its
time. It reads the memory of processes in /proc, so it needs Linux.

Time is processor time, which other programs do not lengthen much.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import httpx  # noqa: E402
import numpy as np  # noqa: E402

import gptoss  # noqa: E402
import tokenizer as tokenizers  # noqa: E402
from checkpoint import bf16_to_float32  # noqa: E402
from conversation import Conversation, LocalEngine  # noqa: E402
from train import tasks  # noqa: E402

NANO, PORT = ROOT / "nano", 8765
MEMORY, SLOWER = 20.0, 1.15  # MB that may be gained, and how many times as long a token may take
# Keys and values are kept in bfloat16, whose numbers are up to one part in 128 apart. A sum in another order can round
# to the next one. So the difference may be that, of the largest number.
TOLERANCE = 2**-7


def resident(pid):
    """MB of a process's memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024


def processor_time(pid):
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def question(rng):
    return tasks.draw(rng).ask(rng)


class Record:
    """What a process costs, minute by minute."""

    def __init__(self, pid, minutes):
        self.pid, self.end, self.minutes = pid, time.monotonic() + 60 * minutes, []
        self.tokens = self.replies = 0
        self._begin()

    def _begin(self):
        self.next, self.before = time.monotonic() + 60, (self.tokens, processor_time(self.pid))

    def goes_on(self):
        """Whether there is time left. Writes down a minute that is over."""
        if time.monotonic() > self.next and self.tokens > self.before[0]:
            cost = 1000 * (processor_time(self.pid) - self.before[1]) / (self.tokens - self.before[0])
            self.minutes.append((resident(self.pid), cost))
            print(f"minute {len(self.minutes):3}: {self.replies:6} replies, {self.tokens:8} tokens, {cost:6.2f} ms of "
                  f"processor time for a token, {self.minutes[-1][0]:6.0f} MB", flush=True)
            self._begin()
        return time.monotonic() < self.end

    def verdict(self):
        """Whether memory and speed stayed what they were."""
        n = max(1, len(self.minutes) // 4)
        early, late = self.minutes[n : 2 * n] or self.minutes[:1], self.minutes[-n:]
        (memory, cost), (memory_late, cost_late) = (map(statistics.median, zip(*part, strict=True))
                                                    for part in (early, late))
        print(f"memory {memory:.0f} -> {memory_late:.0f} MB, a token {cost:.2f} -> {cost_late:.2f} ms")
        return memory_late - memory < MEMORY and cost_late < SLOWER * cost


def converse(minutes):
    """Yields whether what is looked at is as it should be."""
    rng, tokenizer = random.Random(0), tokenizers.load(NANO)
    model = gptoss.load(NANO)
    engine = LocalEngine(model, caches=3)
    conversations = [Conversation(engine, tokenizer, effort=effort) for effort in ("low", "medium", "high")]
    record, done = Record(os.getpid(), minutes), {"asked": 0, "interrupted": 0, "undone": 0, "full": 0, "anew": 0}
    while record.goes_on():
        conversation = rng.choice(conversations)
        act = rng.random()
        if act < 0.1:
            done["undone"] += conversation.undo() is not None
        elif act < 0.105:
            conversation.history.clear()
            done["anew"] += 1
        else:
            stop_at = rng.randrange(1, 40) if act < 0.3 else None
            sampling = {"temperature": rng.choice((0, 1.0)), "seed": rng.randrange(2**31)}
            try:
                reply = conversation.ask(question(rng), **sampling)
            except ValueError:  # the context is full
                conversation.history.clear()
                done["full"] += 1
                continue
            with closing(reply):
                for n, (_, text) in enumerate(reply):
                    record.tokens += len(tokenizer.encode(text))
                    if n == stop_at:
                        break
            record.replies += 1
            done["interrupted" if stop_at is not None else "asked"] += 1
    print(done)
    yield record.verdict()
    worst = 0.0
    for cache in (engine.cache, *engine.others):
        if cache.length:
            fresh = model.new_cache()
            model(cache.ids[: cache.length], fresh, logits_to_keep=1)
            for pair in zip(cache.layers, fresh.layers, strict=True):
                kept, right = (bf16_to_float32(layer[:, :, : cache.length]) for layer in pair)
                worst = max(worst, float(np.abs(kept - right).max() / np.abs(right).max()))
    print(f"keys and values of {1 + len(engine.others)} caches differ by at most {worst:.1e} of the largest from fresh "
          "ones")
    yield worst <= TOLERANCE


def serve(minutes):
    tokenizer = tokenizers.load(NANO)
    process = subprocess.Popen([sys.executable, ROOT / "serve.py", "--port", str(PORT)], stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True)
    said = []
    threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()
    url = f"http://127.0.0.1:{PORT}/v1"
    try:
        for _ in range(120):
            try:
                httpx.get(f"{url}/models")
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        record, lock, wrong = Record(process.pid, minutes), threading.Lock(), []

        def client(seed):
            rng = random.Random(seed)
            with httpx.Client(timeout=120) as http:
                while time.monotonic() < record.end:
                    text, effort, streams = question(rng), rng.choice(tasks.EFFORTS), rng.random() < 0.6
                    path, body = rng.choice((
                        ("chat/completions", {"messages": [{"role": "user", "content": text}],
                                              "reasoning_effort": effort}),
                        ("responses", {"input": text, "reasoning": {"effort": effort}, "store": rng.random() < 0.5})))
                    leaves = rng.randrange(1, 30) if streams and rng.random() < 0.3 else None
                    length = 0
                    with http.stream("POST", f"{url}/{path}", json=body | {"stream": streams}) as answer:
                        for n, line in enumerate(answer.iter_lines()):
                            length += len(line) > 0
                            if n == leaves:
                                break
                        if answer.status_code != 200:
                            wrong.append((answer.status_code, path, text))
                    with lock:
                        record.replies += 1
                        record.tokens += length if streams else 100

        clients = [threading.Thread(target=client, args=(seed,)) for seed in (1, 2)]
        for thread in clients:
            thread.start()
        while record.goes_on():
            time.sleep(1)
        for thread in clients:
            thread.join()
        yield record.verdict()
        print(f"{len(wrong)} answers other than 200", *wrong[:3])
        yield not wrong
        print(f"{len(said)} lines on standard error", *said[-3:])
        yield not any("Traceback" in line for line in said)
        engine, rng, same = LocalEngine(gptoss.load(NANO)), random.Random(3), 0
        for _ in range(20):
            text = question(rng)
            body = {"messages": [{"role": "user", "content": text}], "reasoning_effort": "high", "temperature": 0}
            answer = json.loads(httpx.post(f"{url}/chat/completions", json=body, timeout=120).content)
            conversation = Conversation(engine, tokenizer, effort="high")
            fresh = "".join(piece for channel, piece in conversation.ask(text, temperature=0) if channel == "final")
            same += answer["choices"][0]["message"]["content"] == fresh
        print(f"{same} of 20 answers are those of a fresh engine")
        yield same == 20
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(prog="tests/soak.py", description="A long run with the small model.")
    parser.add_argument("what", choices=("conversation", "service"))
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    good = all([*(converse if args.what == "conversation" else serve)(args.minutes)])
    print("as it should be" if good else "NOT as it should be")
    sys.exit(not good)


if __name__ == "__main__":
    main()
