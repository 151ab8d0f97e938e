"""The image's file tree, as deploy/image/rootfs makes it, to run the services in: `--check-config` with the environment
and the files that a container or a machine would give them. This is what tells a key that no service knows."""

import os
import shutil
import subprocess
from pathlib import Path

from report import DEPLOY

PROGRAMS = ["gateway", "storage-svc", "pool-svc", "job-svc", "monitor-svc", "kiln"]
USER = "10001"


class Tree:
    def __init__(self, programs: Path, at: Path):
        self.at = at
        subprocess.run(
            [DEPLOY / "image/rootfs", at, *[programs / name for name in PROGRAMS]], check=True, capture_output=True, text=True
        )
        at.chmod(0o755)
        if os.geteuid() == 0:
            self.enter = [shutil.which("chroot"), f"--userspec={USER}:{USER}", str(at)]
        else:
            self.enter = [shutil.which("unshare"), "--user", "--map-root-user", shutil.which("chroot"), str(at)]
        tried = subprocess.run([*self.enter, "/usr/local/bin/kiln", "--version"], capture_output=True, text=True)
        self.broken = tried.returncode != 0 and (tried.stderr.strip() or f"exit code {tried.returncode}")

    def check_config(self, command, environment, files):
        """What the service says against its settings; None if it takes them. `files`: absolute path to text."""
        made = []
        try:
            for path, text in files.items():
                target = self.at / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
                target.chmod(0o644)
                made.append(target)
            told = self.run([*command, "--check-config"], environment)
            return told or None
        finally:
            for target in made:
                target.unlink()


    def run(self, command, environment):
        """What a program in the tree says when it refuses; nothing if it does not."""
        command = [*self.enter, f"/usr/local/bin/{command[0]}", *command[1:]]
        environment = {"PATH": "/usr/local/bin", **environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return "" if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")

    def certificates(self):
        """A certificate, its key and their authority, as files of a Secret of Kubernetes."""
        at = self.at / "tmp/certs"
        made = [self.run(["kiln", "certs", *words, "--dir", "/tmp/certs"], {}) for words in (["init"], ["issue", "service", "--name", "a"])]
        assert not any(made), made
        return {"tls.crt": (at / "a.crt").read_text(), "tls.key": (at / "a.key").read_text(), "ca.crt": (at / "ca.crt").read_text()}


def check(report, tree):
    """The image's tree holds what the programs need: each of them runs in it, as the image's user."""
    if tree.broken:
        report.problem(f"programs do not run in the image's tree: {tree.broken}")
        return None
    for name in PROGRAMS:
        done = subprocess.run([*tree.enter, f"/usr/local/bin/{name}", "--version"], capture_output=True, text=True)
        report.expect(done.returncode == 0, f"{name} --version: {done.stderr.strip()}")
    told = tree.check_config(["job-svc"], {"KILN_JOB_NO_SUCH_KEY": "1"}, {})
    report.expect(told and "no_such_key" in told, f"a key that nobody knows must be refused, but: {told}")
    extra = [path for path in tree.at.rglob("*") if path.name in ("sh", "bash", "busybox")]
    report.expect(not extra, f"the image needs no shell: {extra}")
    megabytes = sum(path.stat().st_size for path in tree.at.rglob("*") if path.is_file() and not path.is_symlink()) // 2**20
    return f"{len(PROGRAMS)} programs, {megabytes} MiB as they were built for this test"


def checked_containerfile(report):
    """Sources of COPY exist and pass the ignore file, which starts from nothing."""
    text = (DEPLOY / "image/Containerfile").read_text()
    ignored = (DEPLOY / "image/Containerfile.dockerignore").read_text().split("\n")
    kept = {line[1:].split("/")[0] for line in ignored if line.startswith("!")}
    members = (DEPLOY.parent / "Cargo.toml").read_text().split("members = [")[1].split("]")[0]
    needed = {line.strip().strip('",').split("/")[0] for line in members.split("\n") if line.strip().startswith('"')}
    needed |= {"Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "deploy"}
    report.expect(needed <= kept, f"the build needs what the ignore file leaves out: {needed - kept}")
    stages = [line.split()[-1] for line in text.split("\n") if line.startswith("FROM ")]
    for line in text.split("\n"):
        for word in line.split():
            if word.startswith("--from="):
                report.expect(word[7:] in stages, f"there is no stage for: {line}")
    for name in PROGRAMS:
        report.expect(f"/{name}" in text, f"the image lacks {name}")
    report.not_checked("building the images (needs a container engine)")
    return f"{len(stages)} stages"


