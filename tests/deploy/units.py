"""deploy/systemd: installed into a tree, the units verified by systemd's own program, the settings by the services."""

import shutil
import subprocess

from report import DEPLOY

SERVICES = {"storage": "storage-svc", "job": "job-svc", "pool": "pool-svc", "monitor": "monitor-svc", "gateway": "gateway"}


def check(report, tree, programs, directory):
    into = directory / "installed"
    for _ in range(2):
        subprocess.run([DEPLOY / "systemd/install", "--root", into, programs], check=True, capture_output=True, text=True)
    units = into / "etc/systemd/system"
    files = {f"/etc/kiln/{path.name}": path.read_text() for path in (into / "etc/kiln").iterdir()}
    report.expect("ZXhhbXBsZS1j" not in "".join(files.values()), "the key of the examples was installed")
    for short, program in SERVICES.items():
        text = (units / f"kiln-{short}.service").read_text()
        command = next(line for line in text.split("\n") if line.startswith("ExecStart="))[len("ExecStart=") :].split()
        report.expect(command[0] == f"/usr/local/bin/{program}", f"kiln-{short} starts {command[0]}")
        # As installed, and with the examples that are commented out.
        lines = files[f"/etc/kiln/{program}.env"].split("\n")
        for all_of_them in (False, True):
            wanted = [line[2:] if all_of_them and line.startswith("# KILN_") else line for line in lines]
            environment = dict(line.split("=", 1) for line in wanted if line and not line.startswith("#"))
            told = tree.check_config([program, *command[1:]], environment, files)
            report.expect(told is None, f"{program} refuses its settings: {told}")
    verify(report, units, into, directory)
    return f"{len(list(units.iterdir()))} units, settings of {len(SERVICES)} services"


def verify(report, units, into, directory):
    if not shutil.which("systemd-analyze"):
        report.not_checked("the units by systemd-analyze verify (there is none here)")
        return
    # With the installed programs, since verify looks whether they are there.
    verified = directory / "units"
    verified.mkdir()
    for unit in units.iterdir():
        (verified / unit.name).write_text(unit.read_text().replace("/usr/local/bin/", f"{into}/usr/local/bin/"))
    command = ["systemd-analyze", "verify", "--man=no", *sorted(verified.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True)
    # It warns of keys that it does not know, and says nothing by its exit code; other units of the machine may be at fault.
    ours = [line for line in done.stderr.split("\n") if "kiln" in line]
    report.expect(not ours, "systemd-analyze verify:\n" + "\n".join(ours))
    report.expect(done.returncode == 0 or done.stderr, f"systemd-analyze verify: exit code {done.returncode}")
    report.not_checked("starting the units")
