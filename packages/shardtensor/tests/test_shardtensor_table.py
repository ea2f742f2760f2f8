"""Every operation of the table, sharded and not: generated from the samples."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_ranks import names, registry
from shard_samples import Sample, check
from torch.distributed.device_mesh import DeviceMesh

SAMPLES: list[Sample] = [
    sample
    for file in sorted(Path(__file__).parent.glob("shard_samples_*.py"))
    for sample in importlib.import_module(file.stem).SAMPLES
]
CASES, case = registry()


def _checked(sample: Sample, name: str) -> Callable[[DeviceMesh], None]:
    def run(mesh: DeviceMesh) -> None:
        check(sample, mesh)

    run.__name__ = name
    return run


for _number, _sample in enumerate(SAMPLES):
    _meshes = (("1", "2", "3", "4") if _sample.dims else ()) + (("2x2", "1x2") if _sample.grid else ())
    case(*_meshes)(_checked(_sample, f"{_sample.op}-{_number}"))


@pytest.mark.parametrize("name", names(CASES))
def test_table(name, outcome):
    assert name in outcome.passed, outcome.trouble
