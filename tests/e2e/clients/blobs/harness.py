"""Runs the checks of one generation of the Azure Storage SDK for Python.

checks.json has the names of all checks and the generations that can do each. A client has a function `check_<name>` for
each of its own; one that is missing, or that nobody asked for, is a problem like one that fails.

Run the clients with the variables that `kiln env` prints, or with AZURE_STORAGE_CONNECTION_STRING of any other server.
"""

import hashlib
import json
import os
import pathlib
import sys
import traceback
import urllib.request
import uuid

CONNECTION = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
SETTINGS = dict(part.split("=", 1) for part in CONNECTION.split(";") if part)
ACCOUNT, KEY = SETTINGS["AccountName"], SETTINGS["AccountKey"]
# With the account's name.
ENDPOINT = SETTINGS["BlobEndpoint"].rstrip("/")
MIB = 1024 * 1024
ODD_NAMES = ["a b", "ü/ö.txt", "100%", "a+b=c&d", "x'y", "(1)", "tilde~", "semi;colon", "deep/er/and/deeper.txt", "日本"]


def new_name(prefix="sdk"):
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def pattern(length, seed=0):
    """Bytes that are different at every place."""
    block = b"".join(hashlib.sha256(f"{seed}-{n}".encode()).digest() for n in range(2048))
    return (block * (length // len(block) + 1))[:length]


def equal(found, expected, what=""):
    if found != expected:
        def short(value):
            text = repr(value)
            return text if len(text) < 400 else text[:400] + "..."
        raise AssertionError(f"{what}: {short(found)} instead of {short(expected)}")


def holds(condition, what):
    if not condition:
        raise AssertionError(what)


def plain_get(url):
    """Status and body of a GET without credentials."""
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def main(generation, module):
    wanted = [name for name, where in json.loads((pathlib.Path(__file__).parent / "checks.json").read_text()).items()
              if generation in where]
    there = {name.removeprefix("check_"): function for name, function in module.items() if name.startswith("check_")}
    problems = [f"{name}: not in this client" for name in wanted if name not in there]
    # A client may be that of several generations.
    only = sys.argv[2:]
    done = 0
    for name in wanted:
        if name not in there or (only and name not in only):
            continue
        try:
            there[name]()
            done += 1
        except Exception:  # Every problem is told, not only the first.
            problems.append(f"{name}:\n{traceback.format_exc()}")
    for problem in problems:
        print(f"PROBLEM {problem}")
    print(f"{generation}: {done} checks, {len(problems)} problems")
    sys.exit(1 if problems else 0)
