"""Take out the spaces that a published text set put around its words, by rules that are written down here alone.

A perplexity on such a set is that of the text after these rules; its characters are counted after them, too.
"""

from __future__ import annotations

import re
from typing import Literal, assert_never

Detokenise = Literal["none", "wikitext"]

_WIKITEXT = [
    (re.compile(r" @([-,.])@ "), r"\1"),  # numbers and hyphens that were taken apart: 1 @,@ 000, well @-@ known
    (re.compile(r" ([,.;:!?%)\]}])"), r"\1"),
    (re.compile(r"([(\[{$£]) "), r"\1"),
    (re.compile(r" (n't|'(?:s|re|ve|ll|d|m)\b)"), r"\1"),
    (re.compile(r" '(?=[ ,.\n])"), "'"),
    (re.compile(r"\" ([^\"\n]*?) \""), r'"\1"'),
    (re.compile(r"(?m)^ (= .* =) $"), r"\1"),  # headings
    (re.compile(r"(?m)^ +| +$"), ""),
]


def detokenise(text: str, rule: Detokenise) -> str:
    """Return the text as people write it.

    wikitext: WikiText's " @-@ ", its spaces before punctuation, inside brackets and double quotes, before clitics and
    at both ends of a line are taken out; <unk> stays as it is. A single quote reads as an apostrophe (the dogs ' bowl),
    since WikiText writes both alike; an opening one is thus joined to the word before it.
    """
    match rule:
        case "none":
            return text
        case "wikitext":
            for pattern, written in _WIKITEXT:
                text = pattern.sub(written, text)
            return text
        case _:
            assert_never(rule)
