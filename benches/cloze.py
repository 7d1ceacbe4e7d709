#!/usr/bin/env python3
"""Makes multiple-choice questions from any plain text, for machines that cannot fetch ARC, PIQA or StoryCloze.

    benches/cloze.py TEXT [QUESTIONS] > cloze.jsonl

A question has a context, two consecutive sentences of a paragraph, and four choices: the sentence that follows, and three sentences
of nearby paragraphs with a similar length. The output has the format of docs/tasks.md. The shuffle is seeded, so the same text
gives the same questions.
"""

import json
import random
import re
import sys

SHORTEST, LONGEST = 40, 160


def sentences(paragraph):
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph) if part.strip()]


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        paragraphs = [sentences(line) for line in file if len(line) > 200]
    wanted = int(sys.argv[2]) if len(sys.argv) == 3 else 200
    fits = lambda sentence: SHORTEST <= len(sentence) <= LONGEST
    places = [(p, s) for p, parts in enumerate(paragraphs) for s in range(2, len(parts)) if fits(parts[s])]
    if len(places) < 8:
        sys.exit(f"{sys.argv[1]}: found {len(places)} sentences to ask for, expected at least 8; use a longer text")
    dice = random.Random(0)
    dice.shuffle(places)
    for paragraph, place in places[:wanted]:
        true = paragraphs[paragraph][place]
        near = sorted((abs(p - paragraph), p, s) for p, s in places if p != paragraph)[:24]
        others = [paragraphs[p][s] for _, p, s in near]
        others.sort(key=lambda sentence: abs(len(sentence) - len(true)))
        choices = [true, *others[:3]]
        dice.shuffle(choices)
        context = " ".join(paragraphs[paragraph][place - 2 : place])
        line = {"context": context, "choices": [" " + choice for choice in choices], "answer": choices.index(true)}
        print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
