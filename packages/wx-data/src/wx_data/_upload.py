"""Batches on their way to a device: copied on a stream of their own while the model computes."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Uploader:
    """Copies tensors to a device beside what its current stream does.

    Args:
        device: a device with streams.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module = torch.get_device_module(device)
        self._stream = self._module.Stream(device)

    def copy(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Copies on the device, complete when this returns: the tensors given may be written again."""
        with self._module.stream(self._stream):
            moved = [None if t is None else t.to(self.device, non_blocking=True) for t in tensors]
        self._stream.synchronize()
        return moved

    def hand_over(self, tensors: Sequence[Tensor | None]) -> None:
        """Call in the thread that uses the copies: their memory is not reused before its stream is done."""
        stream = self._module.current_stream(self.device)
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(stream)
