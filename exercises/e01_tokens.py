"""Chapter 1, text to tokens: docs/01-text-to-tokens.md

Check what you wrote: python exercises/check.py bpe"""


def bpe(piece, ranks):
    """The token ids of one piece of text, by byte-pair encoding.

    piece: bytes, such as b" straw". ranks: {bytes of a token: its id}, with a token for each single byte.
    -> list of ids; of an empty piece the empty list.

    The piece begins as single bytes. Of all neighbours that together are a token, those merge whose token has the
    lowest id; if there are several such pairs, the first. This is repeated until no two neighbours are a token.

    Hint: keep a list of parts, each of type bytes. piece[i : i + 1] is a byte as bytes, piece[i] is a number."""
    raise NotImplementedError


def train_bpe(pieces, merges):
    """For those who want more; check.py looks at it only if it is named. Where the ranks come from.

    pieces: {bytes: how often this piece occurs in a text}. merges: how many tokens to learn.
    -> {bytes of a token: its id}: the 256 single bytes with ids 0 to 255, then the learned tokens in order.

    Each time, the two neighbouring tokens that occur most often in all pieces become a token; of pairs that are equally
    frequent, the one seen first. It ends early if there are no neighbours any more.

    Hint: your own bpe cuts every piece into the tokens that there are so far. Count with collections.Counter."""
    raise NotImplementedError
