"""One of two ranks on hosts of their own: an all-reduce by gloo as it comes, then after `bind_to_interface_of`."""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys

import torch
import torch.distributed as dist

from cluster.network import bind_to_interface_of


def reduced(rank: int, master: str, port: int) -> str:
    """Return the sum of 1 and 2 over both ranks, or the error in words."""
    store = dist.TCPStore(master, port, 2, rank == 0, datetime.timedelta(seconds=60))
    options = {"rank": rank, "world_size": 2, "timeout": datetime.timedelta(seconds=3)}
    try:
        dist.init_process_group("gloo", store=store, **options)
        value = torch.tensor([rank + 1.0])
        dist.all_reduce(value)
        dist.destroy_process_group()
    except RuntimeError as error:
        return f"error: {error}"
    return str(value.item())


if __name__ == "__main__":
    rank, master, address = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    before = reduced(rank, master, 29501)
    bind_to_interface_of(address)
    after = reduced(rank, master, 29502)
    names = {name: os.environ.get(name) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    resolved = socket.gethostbyname(socket.gethostname())
    print(json.dumps({"before": before, "after": after, "resolved": resolved} | names))
