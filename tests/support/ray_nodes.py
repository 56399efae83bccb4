"""A cluster of Ray with three nodes, on this machine."""

import os
from contextlib import contextmanager
from pathlib import Path

import embag

ADDRESSES = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
# A node that is killed is noticed after a second, not after half a minute; one that is only slow
# is left alone.
CONFIG = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}
_OPTIONS = {"num_cpus": 8, "object_store_memory": 100 << 20}


class RayNodes:
    """The nodes of a cluster beside the first, which can be killed."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._nodes = {}

    def add(self, address):
        self._nodes[address] = self._cluster.add_node(node_ip_address=address, **_OPTIONS)

    def connect(self):
        """Connect this process to the cluster."""
        import ray  # noqa: PLC0415

        address = self._cluster.address
        ray.init(address=address, _node_ip_address=ADDRESSES[0], log_to_driver=False)

    def kill(self, address):
        """Kill all processes of a node."""
        self._cluster.remove_node(self._nodes.pop(address), allow_graceful=False)


@contextmanager
def running_nodes():
    """Start three nodes and connect to them; yield a `RayNodes`."""
    import ray  # noqa: PLC0415
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    # Workers import the embag under test.
    root = str(Path(embag.__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    head = {"node_ip_address": ADDRESSES[0], "include_dashboard": False, "_system_config": CONFIG}
    cluster = Cluster(initialize_head=True, head_node_args=head | _OPTIONS)
    try:
        nodes = RayNodes(cluster)
        for address in ADDRESSES[1:]:
            nodes.add(address)
        nodes.connect()
        yield nodes
    finally:
        ray.shutdown()
        cluster.shutdown()
