"""Which texts say the same, and which nearly: their plain forms, and MinHash signatures of many at a time.

MinHash: Broder, "On the resemblance and containment of documents", 1997. A text is the set of its runs of three words;
the share of 64 random permutations in which two sets have the same minimum estimates their Jaccard similarity (its
standard error at 0.8 is 0.05). Four bands of four minima find those worth comparing: of texts that are 0.9 alike 98 %.
A byte of each minimum then tells them apart: Li and König, "b-Bit minwise hashing", 2010.
"""

import re
import struct
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from zlib import crc32

from rensa import RMinHash

from shared import evaluation, grounding

PERMUTATIONS, SEED = 64, 1997
FACTORS = (0x2545F491, 0x1B873593, 0x38B34AE5)  # of a run's words; below 2^30, so that a sum of three has 64 bits
PAIRS, PRIME, FACTOR = struct.Struct("<8Q"), 2**53 - 111, 0x1B873593CC9E2D51  # two minima each, for four bands of four

BETWEEN = b" \xff "  # no byte of UTF-8
# ASCII's marks as spaces, but for a number's point and sign; what stands between texts as a line's end.
PLAIN = bytes(code if code > 127 or chr(code).isalnum() or chr(code) in ".-" else 32 for code in range(255)).lower()
PLAIN += b"\n"
MARKS = re.compile(
    f"[{''.join(chr(code) for code in range(128, 0xFFFF) if unicodedata.category(chr(code))[0] in 'PZ')}\x85]"
)
ENDS = b" \0 \0\n"  # two words after each text, so that a shorter one has a run too


def plain(texts: Iterable[str]) -> list[bytes]:
    """Each text's words in UTF-8 as texts are compared, without case and marks; a text without any is as it is."""
    folded = [_folded(text) for text in texts]
    data = b" %b " % BETWEEN.join(folded)
    data = data.translate(PLAIN).replace(b". ", b" ").replace(b"- ", b" ")
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    found = data.split(b"\n") if folded else []
    return [words.strip() or b" ".join(text.split()) for text, words in zip(folded, found, strict=True)]


def _folded(text: str) -> bytes:
    folded = text
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", grounding.visible(text)).replace("−", "-").casefold()
        folded = evaluation.UNSPACED.sub(r" \1 ", MARKS.sub(" ", folded))
    return (folded if folded.strip() else text).encode(errors="replace")


def signatures(texts: Sequence[bytes]) -> list[tuple[list[int], str]]:
    """Of plain texts each one's four keys, of which two that are nearly the same share one, and its signature.

    The keys are below 2^53, as whole numbers in any JSON are; the signature is 64 bytes in hexadecimal. No text may be
    empty.
    """
    if not texts:
        return []
    starts = list(accumulate((text.count(b" ") + 1 + 2 for text in texts), initial=0))
    words = (ENDS.join(texts) + ENDS).split()
    assert len(words) == starts[-1], "a text without words"
    hashes = _runs(words)
    # Its own are those that begin before the last two of its words; of a shorter text the first.
    own = [hashes[8 * start : 8 * max(start + 1, end - 4)] for start, end in pairwise(starts)]
    ends = array("Q", accumulate((len(each) // 8 for each in own), initial=0))
    tokens = array("Q", b"".join(own))
    minima = RMinHash.digest_matrix_from_flat_token_hashes(tokens, ends, PERMUTATIONS, SEED)
    return [_compared(array("I", row).tobytes()) for row in minima.to_rows()]


def _runs(words: Sequence[bytes]) -> bytes:
    """A hash of each word and the two after it, of eight bytes.

    All are computed at once, as digits of one long number: a word's hash has 32 bits of 64.
    """
    hashes = int.from_bytes(array("Q", map(crc32, words)).tobytes(), "little")
    first, second, third = FACTORS
    runs = hashes * first + (hashes >> 64) * second + (hashes >> 128) * third
    return runs.to_bytes(8 * len(words), "little")


def _compared(minima: bytes) -> tuple[list[int], str]:
    """A number for each of the first bands, of which two texts must share one; and the minima's lowest bytes."""
    first, second, third, fourth, fifth, sixth, seventh, eighth = PAIRS.unpack_from(minima)
    return [
        (first * FACTOR + second) % PRIME,
        (third * FACTOR + fourth + 1) % PRIME,
        (fifth * FACTOR + sixth + 2) % PRIME,
        (seventh * FACTOR + eighth + 3) % PRIME,
    ], minima[::4].hex()
