"""Lists the configurations of a long run: versions, modes, and which faults."""

from __future__ import annotations

from .cast import Config
from .nemesis import FAILING_OVER

PROCESSES = (
    "kill-points",
    "kill-9",
    "deploy",
    "renamed-status",
    "freeze",
    "relay-frozen",
    "buried",
    "hung-threads",
    "blocked-loop",
    "reckless-handlers",
)
POSTGRES = ("postgres-restart", "postgres-kill", "sessions", "notify-lost", "held-rows", "touched-data", "refused-rows")
NETWORK = ("cut-at-commit", "black-hole", "half-open", "read-only", "broker-lines")
BROKER = ("broker-restart", "broker-frozen", "broker-alarm", "broker-refuses", "broker-unbound")

CONFIGS = (
    Config("kill-points", faults=("kill-points",)),
    Config("kill-points-16", postgres="16", faults=("kill-points",)),
    Config("kill-points-pipelined", faults=("kill-points",), strict=False),
    Config("processes", faults=PROCESSES),
    Config("processes-polling", faults=PROCESSES, notify=False),
    Config("postgres", faults=(*POSTGRES, "kill-points")),
    Config("postgres-15", postgres="15", faults=(*POSTGRES, "kill-9")),
    Config("network", faults=NETWORK),
    Config("network-and-kills", faults=(*NETWORK, *PROCESSES)),
    Config("disk", disk=800, server={"max_wal_size": "96MB", "min_wal_size": "80MB"}, faults=("disk-full", "kill-9")),
    Config("pooler", pooler=True, faults=("kill-9", "sessions", "cut-at-commit", "black-hole", "postgres-restart")),
    Config("broker", faults=(*BROKER, "broker-lines")),
    Config("broker-pipelined", faults=(*BROKER, "broker-lines", "kill-points"), strict=False),
    Config("cluster", cluster=True, faults=("broker-nodes-killed", "broker-node-frozen", "broker-unbound", "kill-9")),
    Config("failover", failover=True, faults=(*FAILING_OVER, "kill-9")),
    Config("everything"),
    Config("everything-16", postgres="16", workers=2),
    Config("everything-pipelined", strict=False, notify=False),
)
