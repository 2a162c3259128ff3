"""The two protocols of evaluation: `full`, and `published`, which computes what the released code of FineLAP does.

They differ in what a model hears, what it is asked, and what counts as right, by up to several points. Figures are
comparable only under the same protocol, so every report names its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Protocol:
    """How recordings are read, what the queries are, and what is scored."""

    name: Literal["full", "published"]
    equal_captions: Literal["merged", "separate"]  # one query of all their clips, or each with its own clip only
    seconds: float | None  # of each recording, from its start; None: all of it
    channel: Literal["mean", "first"]
    labels: Literal["spoken", "raw"]  # "dog bark", or "dog_bark" as annotated
    grounding_median: bool  # whether the sliding median also applies to grounding
    zero_length: Literal["reject", "skip"]  # segments of no length, except AudioGrounding's, which are always skipped
    empty_texts: Literal["reject", "query"]  # captions without a word
    silent_files: Literal["score", "drop"]  # recordings without events, in detection

    def about(self) -> str:
        """One line for reports."""
        heard = "all of each recording" if self.seconds is None else f"the first {self.seconds:g} s of each recording"
        channel = "channels averaged" if self.channel == "mean" else "channel 0"
        captions = "equal captions are one query" if self.equal_captions == "merged" else "each caption is a query"
        labels = "spoken labels" if self.labels == "spoken" else "raw labels"
        return f"{self.name} ({heard}, {channel}; {captions}; {labels})"


FULL = Protocol("full", "merged", None, "mean", "spoken", True, "reject", "reject", "score")
PUBLISHED = Protocol("published", "separate", 10.0, "first", "raw", False, "skip", "query", "drop")
PROTOCOLS = {p.name: p for p in (FULL, PUBLISHED)}
