"""Over which network a lane's workers talk to one another."""

import os
from dataclasses import dataclass

import psutil
import ray
from ray.train.torch.config import TorchConfig, _TorchBackend


def choose_network() -> None:
    """Has gloo use the network interface by which Ray reaches this node, unless `GLOO_SOCKET_IFNAME` names another.

    Gloo itself takes the address that the machine's own name has, which Debian makes 127.0.1.1: then workers on
    different nodes wait for each other in vain. Ours always talk over gloo, on GPUs beside NCCL.

    Source: PyTorch, "Choosing the network interface to use" (torch.distributed).
    """
    here = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if here in (one.address.partition("%")[0] for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(_TorchBackend):
    def on_start(self, worker_group, backend_config) -> None:
        worker_group.execute(choose_network)
        super().on_start(worker_group, backend_config)


@dataclass
class LaneTorchConfig(TorchConfig):
    """TorchConfig, but that all workers have chosen their network before they look for each other."""

    @property
    def backend_cls(self):
        return _Backend
