"""A Ray cluster of two simulated nodes in a process of its own. It prints its address, and does what standard input
says: ``kill-node`` kills the second node with all that runs there, ``workers`` prints the process ids of graph workers.
"""

from __future__ import annotations

import os
import sys
import warnings

import psutil

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
warnings.simplefilter("ignore")

from ray.cluster_utils import Cluster  # noqa: E402


def workers() -> list[int]:
    running = psutil.process_iter(["cmdline"])
    return [process.pid for process in running if "MapWorker" in " ".join(process.info["cmdline"] or [])]


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
