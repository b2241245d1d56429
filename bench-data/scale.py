#!/usr/bin/env python3
"""How long 2.5 billion observations of a month take on larger machines, and what bounds them.

    scale.py                    computes the tables of docs/scale.md again, and writes them there
    scale.py --check            only says whether they are up to date, with exit code 1 if not
    scale.py --take RESULTS     first takes the figures of a results.json that `make bench` left

The figures are in benchmark-figures.json, each with its source. What is computed stands in the document
between `<!-- scale.py: NAME -->` and `<!-- end -->`; all else there is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from scaling import figures
from scaling.figures import Figures
from scaling.tables import BLOCKS

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "benchmark-figures.json"
DOCUMENT = HERE.parent / "docs" / "scale.md"
MARKED = re.compile(r"(<!-- scale\.py: (?P<name>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Writes the tables, or checks them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--take", metavar="RESULTS", type=Path, help="results of the benchmark")
    parser.add_argument("--figures", metavar="FILE", type=Path, default=FIGURES)
    parser.add_argument("--document", metavar="FILE", type=Path, default=DOCUMENT)
    arguments = parser.parse_args()
    if arguments.take:
        take(arguments.figures, arguments.take)
    try:
        given = figures.read(arguments.figures)
        written = arguments.document.read_text(encoding="utf-8")
        computed = with_blocks(written, given)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"The tables cannot be computed: {error}")
    if written == computed:
        print(f"{arguments.document} is up to date.")
    elif arguments.check:
        sys.exit(
            f"{arguments.document} is not what {arguments.figures} makes of it. Run 'make scale'."
        )
    else:
        arguments.document.write_text(computed, encoding="utf-8")
        print(f"{arguments.document} is written.")


def take(path: Path, results: Path) -> None:
    """Takes what a run of the benchmark measured."""
    try:
        taken = figures.take(path, json.loads(results.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{results} cannot be taken: {error}")
    print(f"{len(taken)} figures are those of {results}: {', '.join(taken)}")


def with_blocks(document: str, given: Figures) -> str:
    """The document with all blocks as they are computed. Raises ValueError where one has no place."""
    places = [match["name"] for match in MARKED.finditer(document)]
    if sorted(places) != sorted(BLOCKS):
        lacking = ", ".join(sorted(set(BLOCKS).symmetric_difference(places))) or "each but once"
        raise ValueError(f"the document must have a place for each block, not so: {lacking}")
    return MARKED.sub(lambda m: f"{m[1]}\n{BLOCKS[m['name']](given)}\n\n{m[3]}", document)


if __name__ == "__main__":
    main()
