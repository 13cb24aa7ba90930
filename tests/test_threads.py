"""Numba's threads: several Python threads that use them at once, and processes that are forked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BEGINNING = """
import os, threading
import numba
import compiled, gptoss
model = gptoss.load("nano")
def ids():
    return list(gptoss.generate(model, [1, 2, 3], max_tokens=5, temperature=0, stop=()))
def fork():
    child = os.fork()
    if not child:
        try:
            said = ids()
        except RuntimeError as error:
            said = error
        print("child", said, flush=True)
        os._exit(0)
    print("status", os.waitpid(child, 0)[1], flush=True)
"""


def run(program, layer):
    """What a program prints with this threading layer of Numba. It may have to compile; a hang is an error."""
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", BEGINNING + program], env=environment, cwd=ROOT, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_several_threads_generate_at_once(layer):
    """With "workqueue", which Numba takes where there is no OpenMP, that ended the process."""
    found = run("""
expected, found = ids(), []
threads = [threading.Thread(target=lambda: found.extend(ids() for _ in range(5))) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(numba.threading_layer(), len(found), all(reply == expected for reply in found))
""", layer)
    assert found == [f"{layer} 15 True"]


FORKS = """
fork()  # before the first token
expected = ids()
held = threading.Event()
def hold():
    with compiled.Turn.lock: held.wait()
thread = threading.Thread(target=hold)
thread.start()
fork()  # while another thread has its turn
held.set()
thread.join()
print(ids() == expected, expected)
"""


def test_a_fork_generates_too():
    before, status, after, also, parent = run(FORKS, "workqueue")
    assert status == also == "status 0" and before == after == "child " + parent.removeprefix("True ")


def test_a_fork_that_lost_the_threads_says_so():
    """OpenMP's threads stay behind, and the process would be ended by the next use of them."""
    before, status, after, also, parent = run(FORKS, "omp")
    assert status == also == "status 0" and before == "child " + parent.removeprefix("True ")
    assert after == ("child Numba's threads: expected a process of its own (multiprocessing: \"spawn\"), "
                     "or a fork before the first token, found a fork after it")
