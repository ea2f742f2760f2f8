"""A rank that dies or is late: the others get an error that names the operation, and none waits forever."""

import json
import multiprocessing
import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from shardtensor import CommunicationError, ShardSpec, ShardTensor


def _dies(x, w):
    if dist.get_rank() == 1:
        os._exit(0)
    F.conv2d(x, w, padding=1)


def _dies_in_backward(x, w):
    y = F.conv2d(x, w, padding=1)
    if dist.get_rank() == 1:
        os._exit(0)
    y.local.sum().backward()


def _is_late(x, _w):
    if dist.get_rank() == 1:
        time.sleep(8)
        os._exit(0)
    torch.fft.fft(x, dim=2)


SCENES = {
    "dies": (_dies, ["conv2d", "all_to_all", "ranks [0, 1]"]),
    "dies in the backward": (_dies_in_backward, ["conv2d (backward)"]),
    "is late": (_is_late, ["fft", "all_to_all"]),
}


def _rank(rank: int, folder: str, scene: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=3),
    )
    mesh = DeviceMesh("cpu", [0, 1])
    spec = ShardSpec.create(mesh, [Shard(2)], (1, 2, 6, 4))
    x = ShardTensor(torch.ones(spec.local_shape, requires_grad=True), spec)
    (x * 2).sum()  # both are there
    begin = time.monotonic()
    try:
        SCENES[scene][0](x, torch.ones(2, 2, 3, 3, requires_grad=True))
        report = {"error": "none"}
    except CommunicationError as error:
        report = {"error": str(error), "op": error.op}
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(report | {"seconds": time.monotonic() - begin}, file)
    os._exit(0)


@pytest.mark.parametrize("scene", SCENES)
def test_survivors_name_what_they_waited_for(scene, tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path), scene)) for rank in range(2)]
    for process in ranks:
        process.start()
    ranks[0].join(60)
    alive = ranks[0].is_alive()
    for process in ranks:
        process.kill()
        process.join()
    assert not alive, "the surviving rank still waits"
    report = json.loads((tmp_path / "0.json").read_text())
    for words in SCENES[scene][1]:
        assert words in report["error"]
    assert report["op"]
    assert report["seconds"] < 30
