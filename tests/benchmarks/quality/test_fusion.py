"""What the benchmark of the words' weight asks: queries with one typing error, over names as the packages have them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from rapidfuzz.distance import DamerauLevenshtein

from benchmarks.quality.fusion import misspelt


def test_one_error_in_the_longest_word() -> None:
    rng = np.random.default_rng(0)
    texts = [misspelt("a thunder storm", rng) for _ in range(200)]
    for text in texts:
        assert text.startswith("a t") and text.endswith(" storm")
        assert DamerauLevenshtein.distance(text, "a thunder storm") == 1
    lengths = Counter(map(len, texts))
    assert min(lengths[n] for n in (14, 15, 16)) > 20, "letters are missing, wrong or exchanged, and doubled"
    assert misspelt("ox", rng) != "ox"
