#!/usr/bin/env python3
"""Checks results of top_words.py against a second count that shares no code with it.

The second count is a pipeline of tr, sed, sort and uniq. As a program it compares a directory of results with the texts
they were made from; the clients import `expected` and `compare`.
"""

import argparse
import itertools
import pathlib
import subprocess
import sys

PIPELINE = r"""tr 'A-Z' 'a-z' | tr -cs "a-z'" '\n' | sed -e "s/^'*//" -e "s/'*$//" -e '/^$/d' | sort | uniq -c \
    | sort -k1,1nr -k2,2 | head -n "$TOP" """

DATA = pathlib.Path(__file__).resolve().parent / "data"


def expected(text_file, top):
    """The right result for one text, in the format of top_words.py."""
    with open(text_file, "rb") as text:
        done = subprocess.run(
            ["sh", "-c", PIPELINE], stdin=text, stdout=subprocess.PIPE, check=True,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TOP": str(top)},
        )
    rows = (line.split() for line in done.stdout.decode().splitlines())
    return "".join(f"{int(count):7} {word}\n" for count, word in rows)


def compare(results, top):
    """Compares {stem: text of the result} with all texts; returns what is wrong, as lines for people."""
    texts = {path.stem: path for path in sorted(DATA.glob("*.txt"))}
    problems = [f"{stem}: there is no such text" for stem in sorted(set(results) - set(texts))]
    for stem, path in texts.items():
        right = expected(path, top)
        if stem not in results:
            problems.append(f"{stem}: no result")
        elif results[stem] != right:
            problems.append(f"{stem}: {difference(results[stem], right)}")
    return problems


def difference(result, right):
    pairs = itertools.zip_longest(result.splitlines(), right.splitlines(), fillvalue="(nothing)")
    line, (found, wanted) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return f"line {line} is {found!r}, the second count has {wanted!r}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="directory of results, one .txt per text")
    parser.add_argument("--top", type=int, default=10)
    arguments = parser.parse_args()
    found = {path.stem: path.read_text() for path in pathlib.Path(arguments.results).glob("*.txt")}
    problems = compare(found, arguments.top)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"check: {len(found)} results, {len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
