#!/usr/bin/env python3
"""Takes a plot out of a report, as an SVG file of its own.

    benches/figure.py REPORT.html [NUMBER] > plot.svg

NUMBER counts the plots of the page from 0. The page's style comes along, so the file follows the reader's theme where it is shown
as a document, and is light elsewhere.
"""

import re
import sys


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        page = file.read()
    style = re.search(r"<style>.*?</style>", page, re.DOTALL).group(0)
    plots = re.findall(r'<svg class="plot" viewBox="0 0 (\d+) (\d+)"(.*?</svg>)', page, re.DOTALL)
    number = int(sys.argv[2]) if len(sys.argv) == 3 else 0
    if number >= len(plots):
        sys.exit(f"{sys.argv[1]}: found {len(plots)} plots, expected more than {number}")
    width, height, rest = plots[number]
    attributes, body = rest.split(">", 1)
    paper = f'<rect width="{width}" height="{height}" style="fill: var(--paper)"/>'
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" width="{int(width) // 10}" '
        f'height="{int(height) // 10}"{attributes}>{style}{paper}{body}'
    )


if __name__ == "__main__":
    main()
