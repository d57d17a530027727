"""Which of many signs a text has, in one pass over it: RE2, for patterns that Python's `re` looks for one by one.

RE2 looks around nowhere, and its `\\w`, `\\d`, `\\s` and `\\b` are ASCII's. So a sign is a weaker pattern than what is
looked for, with `WORD` and `SPACE` instead, and is looked for in what `folded` makes of a text; what has the sign is
then looked at as it is.
"""

from collections.abc import Callable, Iterable
from typing import cast

SPACE_SIGNS = r"\s\x0b\x1c-\x1f"
SPACE = rf"[{SPACE_SIGNS}]"
WORD = r"[\w\x{80}-\x{10ffff}]"
MOST_BYTES = 64 << 20

# What Python and RE2 take for different things, as what RE2 takes for the same: any digit, any space, and the letters
# that without case are an i, an s or a k.
FOLDS = {chr(code): "0" for code in range(128, 0x20000) if chr(code).isdecimal()}
FOLDS |= {chr(code): " " for code in range(128, 0x3001) if chr(code).isspace()}
FOLDS |= {"ı": "i", "İ": "i", "ſ": "s", "\u212a": "k"}
FOLDED, FOLDING = frozenset(FOLDS), str.maketrans(FOLDS)


def scanner(signs: Iterable[str]) -> Callable[[bytes], list[int]]:
    """Says which of the signs a text in UTF-8 has, by their places. One more, the last, is in any text.

    For where RE2 has failed it says nothing at all. It builds its states while it reads, some megabytes of them for the
    prose of a language; with too little room it would start again and again, at a hundred times the cost.
    """
    import re2  # by the first that looks for signs

    options = re2.Options()
    options.max_mem = MOST_BYTES
    signs_set = re2.Set.SearchSet(options)
    for sign in (*signs, ""):
        signs_set.Add(sign)
    signs_set.Compile()
    return cast(Callable[[bytes], list[int]], signs_set._set.Match)


def folded(text: str) -> str:
    """The text with ASCII's digits, spaces and letters for what Python takes for them."""
    return text if FOLDED.isdisjoint(text) else text.translate(FOLDING)
