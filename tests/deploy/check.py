"""Checks deploy/ as far as it can be without a cluster and a container engine; what cannot be is said.

    check.py PROGRAMS      the directory with the services' programs, as cargo built them

tests/run deploy makes the environment and the programs, and calls this."""

import shutil
import sys
import tempfile
from pathlib import Path

import chart
import compose
import metrics
import tree
import units
from report import Report


def main():
    programs = Path(sys.argv[1]).resolve()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="kiln-deploy-") as name:
        directory = Path(name)
        # The services run as another user, who has to reach it.
        directory.chmod(0o755)
        composed = directory / "compose"
        composed.mkdir()
        report.run("every YAML file can be read", compose.all_yaml)
        report.run("dashboards and alerts", metrics.check)
        report.run("Containerfile", tree.checked_containerfile)
        made = tree.Tree(programs, directory / "rootfs")
        report.run("the image's tree", tree.check, made)
        report.run("compose", compose.check, made, composed)
        report.run("chart", chart.check, made)
        report.run("systemd", units.check, made, programs, directory)
        shutil.rmtree(made.at, ignore_errors=True)
    print(f"tests/deploy: {len(report.problems)} problems, {len(report.left_out)} things that were not checked here")
    return 1 if report.problems else 0


sys.exit(main())
