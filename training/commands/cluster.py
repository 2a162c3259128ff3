"""`finelap cluster`: builds a phrase bank from label lists."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.data.phrase_bank import PhraseBank

HELP = "cluster the phrases of label lists, for sampling negatives"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("labels", nargs="+", type=Path, metavar="LABELS", help=".txt, .jsonl manifest, .csv or .tsv")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="phrase bank to write, JSON lines")
    parser.add_argument("--bank", type=Path, metavar="FILE", help="initial clusters (the bundled bank)")
    parser.add_argument("--centroids", type=Path, metavar="FILE", help="label list, each label an initial cluster")
    parser.add_argument("--embedder", metavar="MODEL", help="folder, package or name (all-MiniLM-L6-v2)")
    parser.add_argument("--column", metavar="NAME", help="column of .csv and .tsv files")
    parser.add_argument("--separator", metavar="TEXT", help="separator of phrases within a table cell")


def run(args: argparse.Namespace) -> None:
    """Reads the labels, assigns them to clusters, writes the bank, and prints cluster sizes."""
    from training.data.phrase_bank import SHIPPED, PhraseBank, PhraseError, read_labels
    from training.data.sentence_embeddings import embedder

    if args.bank and args.centroids:
        raise PhraseError("use either --bank or --centroids, not both")
    if args.centroids:
        bank = PhraseBank([[c] for c in dict.fromkeys(read_labels(args.centroids, args.column, args.separator))])
    else:
        bank = PhraseBank.read(args.bank or SHIPPED)
    phrases = [p for path in args.labels for p in read_labels(path, args.column, args.separator)]
    made, cosines = bank.extended(phrases, embedder(args.embedder))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    made.write(args.out)
    print(report(made, phrases, cosines))


def report(bank: PhraseBank, phrases: list[str], cosines: dict[str, float]) -> str:
    """A summary: the bank's size, the largest clusters, and the phrases that fit their cluster least."""
    unique = list(dict.fromkeys(phrases))
    counts: dict[int, int] = {}
    for phrase in unique:
        counts[bank.cluster_of[phrase]] = counts.get(bank.cluster_of[phrase], 0) + 1
    total = sum(map(len, bank.clusters))
    lines = [
        f"{len(unique)} phrases: {len(unique) - len(cosines)} known, {len(cosines)} assigned by embedding",
        f"{len(bank.clusters)} clusters of {total} phrases; {len(counts)} clusters contain the given phrases",
        "largest clusters, by given phrases:",
    ]
    for number in sorted(counts, key=lambda n: (-counts[n], n))[:10]:
        lines.append(f"  {counts[number]:5d}  {bank.clusters[number][0]}")
    if cosines:
        lines.append("farthest from their centroid, by cosine similarity:")
        for phrase in sorted(cosines, key=lambda p: cosines[p])[:5]:
            lines.append(f"  {cosines[phrase]:5.2f}  {phrase} → {bank.clusters[bank.cluster_of[phrase]][0]}")
    return "\n".join(lines)
