"""GLUE's RTE as a ranking task: a statement is the query, and the passage that it was made from is to be found.

    python data.py RTE_FOLDER OUT

writes train.csv and dev.csv (a few passages a statement) and queries.csv (100 passages a statement).
"""

import csv
import sys
from pathlib import Path

import numpy as np

TRAINED_ON, EVALUATED_ON, QUERIES = 700, 150, 50
FEW, MANY = 4, 100  # passages a statement


def pairs(file: Path) -> list[tuple[str, str]]:
    """Statement and passage of every row."""
    with file.open(encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence2"], row["sentence1"]) for row in rows]


def write(file: Path, rows: list[tuple[str, str]], count: int, seed: int) -> None:
    """Each statement with its passage, of relevance 1, and with others by chance, of relevance 0."""
    random, passages = np.random.default_rng(seed), sorted({passage for _, passage in rows})
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("text", "text_pair", "relevance"))
        for statement, passage in rows:
            others = [other for other in random.permutation(passages).tolist() if other != passage][: count - 1]
            documents = [(passage, 1), *((other, 0) for other in others)]
            writer.writerows((statement, *documents[place]) for place in random.permutation(len(documents)))


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    train, dev = pairs(folder / "train.tsv"), pairs(folder / "dev.tsv")
    write(out / "train.csv", train[:TRAINED_ON], FEW, 0)
    write(out / "dev.csv", dev[:EVALUATED_ON], FEW, 1)
    write(out / "queries.csv", dev[EVALUATED_ON:][:MANY], MANY, 2)


if __name__ == "__main__":
    main()
