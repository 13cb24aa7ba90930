"""The changes that the page offers, as gptoss.py makes them: backends and models. And what becomes of the answers.

    python page/switches.py [EACH]      right answers of EACH held-out problems (10) of each task but chat, high effort

The page makes the same changes in JavaScript; a test holds the two against each other.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, Python looks for modules in page/ only

if __name__ == "__main__":
    import program

    program.begin()

import numba  # noqa: E402
import numpy as np  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

import gptoss  # noqa: E402
import kernels  # noqa: E402
import program  # noqa: E402
import tokenizer as tokenizers  # noqa: E402
from checkpoint import expect_number  # noqa: E402
from evals import evaluate  # noqa: E402
from train import tasks  # noqa: E402


class NoSink:
    @staticmethod
    def attention(q, k, v, sinks, window):
        return gptoss.attention(q, k, v, np.full_like(sinks, -np.inf), window)


class BestOnly:
    @staticmethod
    def route(logits, K):
        chosen, weights = gptoss.route(logits, K)
        return chosen, np.where(np.arange(K) == 0, 1, 0 * weights).astype(np.float32)


class SoftmaxAll:
    @staticmethod
    def route(logits, K):
        chosen, _ = gptoss.route(logits, K)
        return chosen, np.take_along_axis(gptoss.softmax(logits), chosen, axis=-1)


class Window8(gptoss.Model):
    def __init__(self, config, *rest):
        super().__init__(replace(config, sliding_window=8), *rest)


class NoYarn(gptoss.Model):
    def __init__(self, config, *rest):
        super().__init__(replace(config, rope_scaling=None), *rest)


def expert_off(layer, expert):
    """A Model that never chooses this expert."""
    class ExpertOff(gptoss.Model):
        def __init__(self, config, embedding, layers, *rest):
            bias = layers[layer].router_bias.copy()
            bias[expert] = -np.inf
            changed = layers[layer]._replace(router_bias=bias)
            super().__init__(config, embedding, [*layers[:layer], changed, *layers[layer + 1 :]], *rest)

    return ExpertOff


def with_kernels(changed):
    """A backend with these operations, and the kernels for the others."""
    operations = {name: getattr(changed, name, getattr(kernels, name)) for name in gptoss.OPERATIONS}
    return SimpleNamespace(**operations)


@program.ends("page/switches.py")
def main():
    given = sys.argv[1] if sys.argv[1:] else "10"
    each = expect_number(int(given) if given.isdecimal() else given, int, 1, 1000, ValueError, "EACH")
    numba.set_num_threads(1)  # the small model has no work for more
    threadpool_limits(1)
    tokenizer, names = tokenizers.load(ROOT / "nano"), [task for task in tasks.TASKS if task != "chat"]
    switches = {"intact": (object, gptoss.Model), "sink off": (NoSink, gptoss.Model),
                "best expert only": (BestOnly, gptoss.Model), "softmax over all": (SoftmaxAll, gptoss.Model),
                "no YaRN": (object, NoYarn), "window 8": (object, Window8)}
    switches |= {f"layer {layer}, expert {expert} off": (object, expert_off(layer, expert))
                 for layer, expert in ((0, 3), (1, 6), (2, 6), (3, 5))}
    print(f"{'right of ' + str(each * len(names)):24}", *(f"{name[:7]:>7}" for name in ("all", *names)))
    for switch, (backend, kind) in switches.items():
        model = gptoss.load(ROOT / "nano", backend=with_kernels(backend), model=kind)
        right = [sum(evaluate.reply(model, tokenizer, evaluate.prompt(tokenizer, question, "high"))[1].strip()
                     == problem.answer for problem, question in evaluate.problems(task, each)) for task in names]
        print(f"{switch:24}", *(f"{n:7}" for n in (sum(right), *right)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
