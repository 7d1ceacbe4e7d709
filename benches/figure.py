#!/usr/bin/env python3
"""Extracts a plot from a report as an SVG file.

    benches/figure.py REPORT.html [NUMBER] > plot.svg

NUMBER is the plot's place on the page, from 0. The file includes the page's style. Shown as a document, it follows the reader's
theme; elsewhere it is light.
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
