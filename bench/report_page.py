"""The picture of a report's beginning, for the README: what a browser shows, with nothing cut out.

    python bench/report_page.py [RUN] [FILE]

RUN is a run of `make compare` whose report.html is there (by default the last one).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from web_page import photograph

PICTURE = Path("docs/images/report.png")
SIZE = (1100, 2900)  # the answer, the table and the first drawing


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=Path("results/latest"))
    parser.add_argument("file", nargs="?", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    page = (arguments.run / "report.html").resolve()
    if not page.exists():
        sys.exit(f"{page}: no report; expected a run with one (loadgen report {arguments.run})")
    photograph(page.as_uri(), arguments.file, SIZE, 1.0)
    print(arguments.file)


if __name__ == "__main__":
    main()
