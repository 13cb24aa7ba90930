"""Do the official weights say here what they say elsewhere? For those who have them; nothing else needs them.

    python tests/official.py DIR        DIR holds openai/gpt-oss-20b or -120b, in either layout

official-greedy.json has published continuations: greedy, so the same wherever the weights are computed right, but for
rounding. Each model was run in several ways, in bfloat16, and at some token the ways part. Up to there every one of
them says the same, and so must gptoss.py. It prints a line for each prompt: right, or the first token that differs.
Exit status 0: all are right; 1: one is not; 2: nothing was compared.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, Python looks for modules in tests/ only

if __name__ == "__main__":
    import program

    program.begin()

import json  # noqa: E402
import os  # noqa: E402

import program  # noqa: E402

FACTS = ROOT / "tests" / "official-greedy.json"


def facts_for(config, path):
    """The model of official-greedy.json whose shape `config` is; ValueError if it is none of them."""
    models = json.loads(FACTS.read_text(encoding="utf-8"))["models"]
    for facts in models:
        if all(getattr(config, key) == value for key, value in facts["config"].items()):
            return facts
    found = ", ".join(f"{key} {getattr(config, key)}" for key in models[0]["config"])
    raise ValueError(f"{path}: expected the shape of {' or '.join(m['name'] for m in models)}, found {found}")


def agreed(continuations, tokenizer):
    """The ids with which all continuations begin."""
    return os.path.commonprefix([tokenizer.encode(text) for text in continuations])  # it takes lists as well


def compare(model, tokenizer, prompt, expected):
    """What a line says of one prompt, and whether the model goes on with the ids `expected`."""
    import gptoss

    ids = gptoss.generate(model, tokenizer.encode(prompt), max_tokens=len(expected), temperature=0, stop=(),
                          cache=model.new_cache("float32"))
    for n, (found, right) in enumerate(zip(ids, expected, strict=True)):
        if found != right:
            said, found, right = (tokenizer.decode(part) for part in (expected[:n], [found], [right]))
            return f"{prompt!r}: token {n + 1}, after {said!r}: expected {right!r}, found {found!r}", False
    return f"{prompt!r}: right, {len(expected)} tokens, {tokenizer.decode(expected)!r}", True


@program.ends("python tests/official.py", unread=2)
def main():
    parser = program.parser("python tests/official.py",
                            "Compare the official weights with published greedy continuations.")
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--backend", choices=("numba", "numpy"), default="numba")
    args = parser.parse_args()

    import gptoss
    import tokenizer as tokenizers

    results = []
    model = gptoss.load(args.directory, backend=args.backend)
    facts = facts_for(model.config, args.directory)
    tokenizer = tokenizers.load(args.directory)
    for entry in facts["prompts"]:
        line, right = compare(model, tokenizer, entry["prompt"], agreed(entry["continuations"], tokenizer))
        results.append(right)
        print(f"{facts['name']}: {line}", flush=True)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
