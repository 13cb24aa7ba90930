"""tokenizer.json, damaged and changed: the ids of the tokenizers library, or one sentence. No text is ever lost."""

import copy
import json
import os
import random

from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

import tokenizer as tokenizers

CASES = 20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 300
TEXTS = ["answer", "What is 12+30?\n\n  What's that", "İt'S aBc ſ'ſ ß ǅ", "\r\n a\t \u00a0\u3000x", "日本 e\u0301 ½²",
         "<|start|>a<|end|> word\u0085\x1c-_&~#", "aaaa aaab abab cabab", "   ", "",
         "x" * 50 + " " * 50, "***{[]}//\n/\n^$|\\"]
CHARACTERS = {byte: char for char, byte in tokenizers._BYTE_OF_CHAR.items()}
BYTES = [CHARACTERS[byte] for byte in range(256)]


def made(rng):
    """A small tokenizer.json: the bytes, and tokens of letters that merges make in the order of their ids, or all the
    merges that make them, or only some of them."""
    tokens, merges = [*BYTES], []
    for _ in range(rng.randrange(12)):
        pair = rng.choices(tokens[256:] + list("abc") * 2 + ["Ġ"], k=2)
        if "".join(pair) not in tokens:
            tokens.append("".join(pair))
            merges.append(pair)
    if rng.random() < 0.5:
        merges = [[t[:n], t[n:]] for t in tokens for n in range(1, len(t)) if t[:n] in tokens and t[n:] in tokens]
    if rng.random() < 0.3:
        merges = [merge for merge in merges if rng.random() < 0.8]
    if rng.random() < 0.2:
        tokens += ["hello", "Ġword"]
    added = ["<|start|>", "<|end|>", *rng.sample(["word", "ab", "bc", " a"], rng.randrange(3))]
    if rng.random() < 0.3:
        tokens.append(added[0])
    ids = {token: n for n, token in enumerate(dict.fromkeys(tokens + added))}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    pattern = rng.choice([tokenizers.GPT2_PATTERN, NANO["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]])
    return {**NANO, "pre_tokenizer": split(pattern),
            "added_tokens": [{"id": ids[name], "content": name, **flags, "special": "<" in name} for name in added],
            "model": {**NANO["model"], "ignore_merges": rng.random() < 0.5, "merges": merges,
                      "vocab": {token: ids[token] for token in tokens}}}


def split(pattern):
    both = copy.deepcopy(NANO["pre_tokenizer"])
    both["pretokenizers"][0]["pattern"]["Regex"] = pattern
    return both


NANO = json.loads((ROOT / "nano" / "tokenizer.json").read_text())
VALUES = [None, True, False, 0, 1, -1, 0.5, 2**32, 2**64, "", "a", "BPE", [], {}, ["a", "b"], {"a": 1}, "Isolated",
          "Removed", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, {"type": "NFC"}, "<|start|>",
          "\ud800"]
PARTS = r"""a b ' \s \S \p{L} \p{N} \P{L} \p{Lu} \p{M} [ [^ ] ^ ( ) (?: (?i: (?! (?= | | * + ? {1,3} {2} {,2} \n \r . $
            \b \w \d \h \* \' \- - && -- ~ # / x"""


def changed(rng, data):
    """The same with one thing changed, somewhere."""
    data = copy.deepcopy(data)
    kind = rng.randrange(6)
    if kind == 0 and isinstance(data.get("pre_tokenizer"), dict):
        pattern = NANO["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        data["pre_tokenizer"] = split(rng.choice([pattern, tokenizers.GPT2_PATTERN, random_pattern(rng)]))
        pattern = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        for _ in range(rng.randrange(4)):
            at, to = sorted(rng.choices(range(len(pattern) + 1), k=2))
            to = min(to, at + rng.randrange(4))
            pattern = pattern[:at] + rng.choice(["", "", random_pattern(rng)]) + pattern[to:]
        data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
        return data
    place, path = data, []
    while True:  # down to some object or list
        inner = list(place) if isinstance(place, dict) else range(len(place))
        deeper = [key for key in inner if isinstance(place[key], (dict, list)) and place[key]]
        if not deeper or rng.random() < 0.3 and place is not data:
            break
        path.append(key := rng.choice(deeper))
        place = place[key]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    key, other = rng.choice(keys), rng.choice(keys)
    if kind == 1:
        del place[key]
    elif kind == 2:
        place[key], place[other] = place[other], place[key]
    elif kind == 3 and isinstance(place, list):
        place.insert(key, copy.deepcopy(place[other]))
    elif kind == 4 and isinstance(place, list):
        rng.shuffle(place)
    elif kind == 5 and isinstance(place, dict):
        place[rng.choice(["a", "ab", "new", "", "type", "pretokenizers", "dropout"])] = place.pop(key)
    else:
        place[key] = rng.choice(VALUES)
    return data


def random_pattern(rng):
    return "".join(rng.choices([*PARTS.split(), " ", "\\ "], k=rng.randrange(1, 7)))


@settings(max_examples=CASES)
@given(st.integers(0, 2**64), st.sampled_from(["nano", "made"]), st.integers(0, 3))
def test_a_changed_file_has_the_ids_of_the_library_or_is_refused(tmp_path_factory, seed, which, times):
    rng = random.Random(f"{seed}")
    data = NANO if which == "nano" else made(rng)
    for _ in range(times):
        data = changed(rng, data)
    same_or_refused(tmp_path_factory.getbasetemp(), json.dumps(data).encode())


def same_or_refused(directory, text):
    (directory / "tokenizer.json").write_bytes(text)
    try:
        ours = tokenizers.load(directory)
    except tokenizers.TokenizerError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return False
    try:
        theirs = HuggingFaceTokenizer.from_str(text.decode())
        theirs.no_truncation()
        theirs.no_padding()
    except Exception:  # stricter
        theirs = None
    for sample in TEXTS:
        for name in ours.special_tokens.keys() - ours.words:
            sample = sample.replace(name, "")
        ids = ours.encode(sample)
        assert ours.decode(ids) == sample
        if theirs:
            assert ids == theirs.encode(sample, add_special_tokens=False).ids, sample
    return True
