"""Make sure that there are a RabbitMQ, a PgBouncer, Node and Chromium for the tests: `make test` runs this first, naming the packages.
What is there is taken as it is.

Only the programs are wanted. A package would start a service of the machine's own as it is installed; Debian asks
/usr/sbin/policy-rc.d for leave to do so, and for as long as the installation takes that file says no.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kit import broker, chromium, node, pooler

POLICY = Path("/usr/sbin/policy-rc.d")
PACKAGES: dict[str, tuple[Callable[[], Path | None], str]] = {
    "rabbitmq-server": (broker.programs, "RABBITMQ=skip"),
    "pgbouncer": (pooler.program, "PGBOUNCER=skip"),
    "npm": (node.program, "NODE=skip"),
    "chromium": (chromium.program, "CHROMIUM=skip"),
}
"""Of each package, where its programs are, and what leaves its tests out."""


@contextlib.contextmanager
def no_services(policy: Path = POLICY) -> Iterator[None]:
    """Let no package start a service. A policy that the machine has already is left alone."""
    try:
        with policy.open("x") as file:
            file.write("#!/bin/sh\nexit 101\n")
    except FileExistsError:
        yield
        return
    try:
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink()


def install(package: str) -> None:
    # Another process may be installing: wait for it instead of failing.
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Lists that can't be renewed may do still; the installation decides.
    subprocess.run([*apt, "update"], env=env, check=False)
    with no_services():
        done = subprocess.run(
            [*apt, "install", "-y", "--no-install-recommends", package],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)


def main(packages: Sequence[str]) -> None:
    for package in packages:
        there, skip = PACKAGES[package]
        if there() is None and os.geteuid() == 0 and shutil.which("apt-get"):
            print(f"the tests need {package}: apt-get install {package}", file=sys.stderr)
            install(package)
        if there() is None:
            sys.exit(f"the tests need {package}: install it (apt, dnf, brew), or leave them out: make test {skip}")


if __name__ == "__main__":
    # An end in the middle must not leave the policy behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    main(sys.argv[1:])
