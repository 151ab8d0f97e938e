#!/usr/bin/env python3
"""Prints the most frequent words of a text file with their counts.

This is what runs as a task, once per file. A word is a run of letters, with apostrophes inside; capital letters do not
matter. Words with the same count come in alphabetical order, so that the output is the same on every node.

With --upload the result also goes to a blob container, as Batch tasks did it themselves before there were output files.
"""

import argparse
import os
import re
import sys

WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


def top_words(text, number):
    counts = {}
    for word in WORD.findall(text.lower()):
        counts[word] = counts.get(word, 0) + 1
    ranking = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "".join(f"{count:7} {word}\n" for word, count in ranking[:number])


def upload(container_url, name, content):
    """Writes one blob with nothing but the container's URL and its SAS."""
    # Loading these takes longer than counting.
    import urllib.parse
    import urllib.request

    base, sas = container_url.split("?", 1)
    request = urllib.request.Request(
        f"{base}/{urllib.parse.quote(name)}?{sas}",
        data=content.encode(),
        method="PUT",
        headers={"x-ms-blob-type": "BlockBlob", "Content-Type": "text/plain"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        print(f"uploaded {name}: {answer.status}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--top", type=int, default=10, help="how many words (default 10)")
    parser.add_argument("--upload", metavar="CONTAINER_URL", help="also store the result here; the URL includes a SAS")
    arguments = parser.parse_args()
    with open(arguments.file, encoding="utf-8") as text:
        result = top_words(text.read(), arguments.top)
    sys.stdout.write(result)
    if arguments.upload:
        stem = os.path.splitext(os.path.basename(arguments.file))[0]
        upload(arguments.upload, f"{stem}.txt", result)


if __name__ == "__main__":
    main()
