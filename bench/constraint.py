"""What it costs to hold a token to a schema, with the 201,088 ids of gpt-oss: `python -m bench.constraint`.

The model is a stand-in: noise, and a peak at the token that continues a document of the schema. `surprised`: half the
time there are higher peaks at tokens that the schema refuses. llguidance, if it is installed, computes a mask over all
ids for the same document, by which the logits are masked. Drawing from what is left comes on top, the same for both.
"""

if __name__ == "__main__":
    import program

    program.begin()

import json
import statistics
import sys
import time

import numpy as np

import program
import tokenizer as tokenizers
from conversation import Constraint
from grammar import Grammar

SCHEMA = {"type": "object", "required": ["title", "year", "authors", "kind"], "additionalProperties": False,
          "properties": {
    "title": {"type": "string"}, "year": {"type": "integer"}, "kind": {"enum": ["book", "paper", "talk"]},
    "authors": {"type": "array", "items": {"type": "object", "required": ["name"], "additionalProperties": False,
                "properties": {"name": {"type": "string"}, "mail": {"type": ["string", "null"]}}}},
    "abstract": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}}}
DOCUMENT = json.dumps({
    "title": "On the care of small models", "year": 2025, "kind": "paper",
    "authors": [{"name": "Ada Lovelace", "mail": None}, {"name": "Jos\u00e9 \u00c1lvarez", "mail": "jose@example.org"}],
    "abstract": ["They are cheap to feed.", "They learn what they are shown."]}, ensure_ascii=False)


def ours(tokenizer, ids, surprised):
    """Seconds for each id of the document."""
    rng, V = np.random.default_rng(0), tokenizer.vocab_size
    constraint = Constraint(tokenizer, Grammar(SCHEMA), {}, seed=1)
    begun = tokenizer.encode("<|channel|>final<|message|>", "all")
    refused = tokenizer.encode("\n\n\n\nnot JSON at all, is it")
    seconds = []
    for n, id in enumerate(ids):
        logits = rng.normal(size=V).astype(np.float32) * 2
        logits[id] = 25
        if surprised and n % 2:
            logits[refused] = 30
        begin = time.perf_counter()
        constraint([*begun, *ids[:n]], logits)
        seconds.append(time.perf_counter() - begin)
    return seconds


def llguidance(tokenizer, ids):
    """The same with llguidance's masks."""
    from llguidance import LLMatcher, LLTokenizer
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    rng, V, special = np.random.default_rng(0), tokenizer.vocab_size, tokenizer.special_tokens
    words = {tokenizer.decode_bytes([id]): id for id in range(V) if id not in special.values()}
    matcher = LLMatcher(LLTokenizer.from_tiktoken(
        encoder=words, special_tokens=special, pattern=r"\w+|\W", eos_token=special["<|return|>"], n_vocab=V),
        LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA)))
    mask, seconds = allocate_token_bitmask(1, V), []
    for id in ids:
        logits = rng.normal(size=V).astype(np.float32) * 2
        logits[id] = 25
        begin = time.perf_counter()
        fill_next_token_bitmask(matcher, mask)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[:V].astype(bool)
        np.where(allowed, logits, -np.inf)
        matcher.consume_token(id)
        seconds.append(time.perf_counter() - begin)
    assert not matcher.get_error(), matcher.get_error()
    return seconds


@program.ends("python -m bench.constraint")
def main():
    tokenizer = tokenizers.load()
    ids = tokenizer.encode(DOCUMENT)
    rows = {"ours": ours(tokenizer, ids, False), "ours, surprised": ours(tokenizer, ids, True)}
    try:
        rows["llguidance"] = llguidance(tokenizer, ids)
    except ImportError:
        print("llguidance: not installed (pip install llguidance)")
    print(f"{len(ids)} tokens of a document, {tokenizer.vocab_size:,} ids; ms a token")
    print(f"{'':18} {'median':>7} {'mean':>7} {'largest':>7}")
    for name, seconds in rows.items():
        seconds = [1000 * s for s in seconds]
        print(f"{name:18} {statistics.median(seconds):7.2f} {statistics.mean(seconds):7.2f} {max(seconds):7.2f}")


if __name__ == "__main__":
    sys.exit(main())
