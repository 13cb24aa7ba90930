"""Chapter 8, the next token: docs/08-the-next-token.md

Check what you wrote: python exercises/check.py filter_logits"""

import math

import numpy as np

from gptoss import softmax  # or take your own, from chapter 4


def filter_logits(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The logits from which the next id is drawn.

    logits: float32 [V], some of which may be -inf. -> float32 [V], with -inf for each id that is ruled out. It does not
    matter if the same number is added to all logits. The defaults change nothing.

    One after the other, each step with what the one before has left:
    - the logits are divided by the temperature. It is above 0 here: at 0, `sample` takes the best id by itself;
    - top_k: only the top_k largest stay, and those that are equal to the last of them. 0 switches it off; if there are
      no more than top_k, all stay;
    - top_p (above 0): ids stay from the likeliest on, until their probabilities sum to top_p or more. The id with which
      they reach it stays. Of ids that are equally likely, the lower one comes first. 1 switches it off;
    - min_p: ids stay that are at least min_p times as likely as the likeliest. 0 switches it off.

    Hint: probabilities are a softmax, in which -inf counts 0. For top_p sort the ids by probability and sum with
    np.cumsum: an id stays if the sum BEFORE it is less than top_p. np.argsort(..., kind="stable") keeps equal ones in
    their order."""
    raise NotImplementedError
