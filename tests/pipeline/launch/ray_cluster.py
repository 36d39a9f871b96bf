"""A real Ray cluster of two nodes of one core each, on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from specpipe.pipeline.launch.ray import OBJECT_STORE_BYTES
from tests.processes import children, command_line

NUM_NODES = 2


class RayCluster:
    def __init__(self, cluster: Any) -> None:
        self.address: str = cluster.address
        self._cluster = cluster

    def engines(self) -> list[int]:
        """Process ids of the actors that hold an engine."""
        raylets = [
            node.all_processes["raylet"][0].process.pid for node in self._cluster.list_all_nodes()
        ]
        workers = [pid for raylet in raylets for pid in children(raylet)]
        return [pid for pid in workers if command_line(pid).startswith(b"ray::Engine")]


@contextmanager
def two_nodes() -> Iterator[RayCluster]:
    """Commands reach it by RAY_ADDRESS."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(NUM_NODES - 1):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield RayCluster(cluster)
    finally:
        cluster.shutdown()
