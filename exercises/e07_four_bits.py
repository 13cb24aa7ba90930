"""Chapter 7, four bits: docs/07-four-bits.md

Check what you wrote: python exercises/check.py dequantize quantize"""

import numpy as np

from checkpoint import E2M1, E8M0, MXFP4  # tables: what each code of 4 bits and each scale byte is worth


def dequantize(weight):
    """MXFP4 -> float32: unpacks the four-bit numbers.

    weight: MXFP4, with blocks uint8 [..., M, N/32, 16] and scales uint8 [..., M, N/32]. -> float32 [..., M, N].

    A byte of blocks holds two neighbours: the element with the even index in its low four bits, the next one in its
    high four bits. Each is a code, and E2M1[code] its value. 32 neighbours share a scale, E8M0[byte] = 2^(byte - 127),
    by which their values are multiplied. (Byte 0 is 2^-127; byte 255 is nan.) Code 8 is -0; whether it becomes -0 or 0
    is not checked.

    Hint: blocks & 15 and blocks >> 4. np.stack(..., axis=-1) puts two arrays' elements side by side."""
    raise NotImplementedError


def quantize(x):
    """float32 -> MXFP4: rounds numbers to four bits (OCP Microscaling Formats v1.0, section 6.3).

    x: float32 [M, N], N a multiple of 32. -> MXFP4, with blocks uint8 [M, N/32, 16] and scales uint8 [M, N/32].

    - Each 32 neighbours of a row share the scale 2^e with e = floor(log2(m)) - 2, where m is the largest |x| of them.
      Its byte is e + 127, kept between 0 and 254. Where all 32 are zero, the byte is 0.
    - x / 2^e is rounded to the nearest value of E2M1. What lies above 6 becomes 6. What lies in the middle of two
      values becomes the one with the even code. The code of a negative number is 8 more than that of its magnitude.
      (solutions.py writes code 8 for a number below zero that becomes 0, and code 0 for a -0. Both codes are worth 0,
      so the check takes either.)
    - The element with the even index goes into the low four bits of a byte.

    Hint: np.frexp(m) splits m into a fraction and a power of two, exactly. The nearest of eight values is an argmin
    over |x / 2^e - value|; argmin takes the first of equals, so list the even codes first."""
    raise NotImplementedError
