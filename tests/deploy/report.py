"""What a check says: problems, and what could not be checked here and why."""

import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


class Report:
    def __init__(self):
        self.problems = []
        self.left_out = []
        self._now = []

    def problem(self, text):
        self._now.append(text)

    def expect(self, condition, text):
        if not condition:
            self.problem(text)
        return condition

    def not_checked(self, text):
        self.left_out.append(text)
        print(f"  not checked: {text}")

    def run(self, name, check, *arguments):
        """Runs one check; what it raises is a problem, too."""
        self._now = []
        try:
            count = check(self, *arguments)
        except Exception:  # noqa: BLE001 - a check that breaks has not passed
            self.problem(traceback.format_exc())
            count = None
        if self._now:
            print(f"FAILED {name}")
            for problem in self._now:
                print("  " + problem.rstrip().replace("\n", "\n  "))
            self.problems += self._now
        else:
            print(f"ok     {name}" + (f" ({count})" if count else ""))
        sys.stdout.flush()
