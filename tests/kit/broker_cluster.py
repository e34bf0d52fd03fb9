"""Three RabbitMQ nodes on loopback that are one cluster."""

from __future__ import annotations

from kit.broker import Broker


class BrokerCluster:
    """Nodes that a test may kill, freeze and start again."""

    def __init__(self, size: int = 3) -> None:
        self.nodes = [Broker() for _ in range(size)]
        for node in self.nodes:
            node.cluster_with(self.nodes)

    def start(self) -> BrokerCluster:
        """Start the nodes; return when each answers AMQP. The first one makes the cluster, the others join it."""
        self.nodes[0].start()
        self.recover()
        return self

    def recover(self) -> None:
        """Have all nodes run, and none frozen."""
        for node in self.nodes:
            node.launch()
            node.thaw()
        for node in self.nodes:
            node.start()

    def new_vhost(self) -> str:
        """Return the name of a virtual host that no other test uses."""
        return self.nodes[0].new_url().rpartition("/")[2]

    def urls(self, vhost: str, first: Broker | None = None, options: str = "?heartbeat=2") -> str:
        """Return the URLs of all nodes, one after the other from `first`."""
        start = 0 if first is None else self.nodes.index(first)
        return ",".join(node.url_of(vhost) + options for node in self.nodes[start:] + self.nodes[:start])

    def remove(self) -> None:
        for node in reversed(self.nodes):
            node.remove()
