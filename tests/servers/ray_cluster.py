"""Runs a Ray cluster of two simulated nodes. The script prints the cluster's address and then reads commands.

``kill-node`` kills the second node with all its processes, and prints "killed". ``workers`` prints the process ids of
the graph workers. The cluster ends when standard input is closed.
"""

from __future__ import annotations

import os
import sys
import warnings

import psutil

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
warnings.simplefilter("ignore")

from ray.cluster_utils import Cluster  # noqa: E402


def workers() -> list[int]:
    """The process ids of the graph workers of this cluster only; others may run on the same machine."""
    pids = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:  # the process has ended
            continue
        if "MapWorker" in " ".join(command):
            pids.append(process.pid)
    return pids


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
second = cluster.add_node(num_cpus=2)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "kill-node":
        cluster.remove_node(second, allow_graceful=False)
        print("killed", flush=True)
    elif line.strip() == "workers":
        print(*workers(), flush=True)
cluster.shutdown()
