"""Counts how often a call waits for the device: on a GPU by torch's own check, and without one by tensors that claim to be on
CUDA while they lie on the CPU.

Without a GPU (`Counter`): tensors made by `to` say that they are on cuda:0. A mode sees every operator, runs it on the CPU
tensors inside, and notes those that on a GPU would hold the host up until the device has done what it was given:

- what gives the host a value, or a shape that depends on values: item, bool, tolist, nonzero, a boolean mask as index, unique,
  equal, and their like;
- copies to the CPU;
- uploads: copies of pageable memory from the CPU, torch.tensor(..., device="cuda") and a CPU index among them. torch makes
  these on the stream and waits for it. Copies from pinned memory with non_blocking=True do not wait.

The package's own operators are run by the emulated CUDA kernels where these are built (`make emulate`), else by those for the
CPU; what either reads on the host counts for nothing, since both lie on the CPU. It does not see waits inside of torch's CUDA
kernels that the list below does not know, nor `torch.cuda.synchronize`; and host and device are one, so it cannot show that a
copy was read too early. The test on a GPU does: the same tests run there, marked cuda.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

EMULATED = Path(__file__).parents[1] / "build/emulation/libprunefuse_emulated.so"

aten = torch.ops.aten
# Operators that give the host a value, or tensors whose shape depends on values.
READS = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.equal,
    aten.allclose,
    aten.nonzero,
    aten.masked_select,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.unique_dim_consecutive,
    aten.bincount,
    aten.histc,
    aten.multinomial,
}


class Counter(TorchDispatchMode):
    """`waits` and `uploads`: the operators that waited, by name."""

    def __init__(self) -> None:
        super().__init__()
        # torch does not look for a driver in this mode.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        self.waits: list[str] = []
        self.uploads: list[str] = []
        self.pinned: list[Tensor] = []

    def to(self, tensor: Tensor) -> Tensor:
        """`tensor`, on the device from the start."""
        return OnDevice(tensor.clone())

    def host(self, tensor: Tensor) -> Tensor:
        """`tensor` on the CPU, which counts for nothing."""
        return inner(tensor)

    @property
    def count(self) -> int:
        return len(self.waits) + len(self.uploads)

    def __enter__(self) -> Counter:
        torch._C._ensureCUDADeviceGuardSet()
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # or torch.tensor would make a copy of its own
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifts)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(isinstance(tensor, OnDevice) for tensor in given)
        operator, name = func.overloadpacket, str(func)
        if operator is aten.is_pinned:
            return self._is_pinned(args[0])
        if operator is aten._pin_memory:
            return self._pin(args[0].clone())
        if operator is aten.copy_ and on_device:
            return self._copy(args[0], args[1], len(args) > 2 and args[2], name)
        moves = "device" in kwargs and kwargs["device"] is not None
        to_device = moves and torch.device(kwargs["device"]).type == "cuda"
        if moves:
            kwargs["device"] = torch.device("cpu")
        pin = bool(kwargs.pop("pin_memory", False))
        if operator is aten._to_copy and moves:
            if on_device and not to_device:
                self.waits.append(name)
            if to_device and not on_device:
                self._upload(args[0], kwargs.get("non_blocking", False), name)
        elif on_device:
            self._look(operator, name, args, given)
        result = self._run(func, args, kwargs)
        if pin:
            return self._pin(result)
        inside = {id(tensor.inner): tensor for tensor in given if isinstance(tensor, OnDevice)}

        def outside(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return inside[id(value)] if id(value) in inside else OnDevice(value)

        return tree_map(outside, result) if to_device or (on_device and not moves) else result

    def _look(self, operator: Any, name: str, args: Any, given: list[Tensor]) -> None:
        """Notes what an operator on the device waits for; an error where its arguments lie on two devices."""
        indexing = operator in (aten.index, aten.index_put, aten.index_put_)
        if operator in READS or (operator is aten.repeat_interleave and len(given) == 1):
            self.waits.append(name)
        if indexing:
            for index in args[1]:
                if index is not None and not isinstance(index, OnDevice):
                    self.uploads.append(name)
            # A number for all that is masked is filled in without a look at the mask.
            fills = operator is not aten.index and not isinstance(args[2], OnDevice) and args[2].numel() == 1
            if not fills and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
                self.waits.append(name)
        elif any(not isinstance(tensor, OnDevice) and tensor.dim() > 0 for tensor in given):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map(inner, args), tree_map(inner, kwargs)
        if func.namespace == "prunefuse" and EMULATED.is_file():
            torch.ops.load_library(EMULATED)
            emulated = getattr(torch.ops.prunefuse_emulated, func._schema.name.split("::")[1]).default
            return emulated.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **kwargs)
        return func(*args, **kwargs)

    def _copy(self, to: Tensor, source: Tensor, non_blocking: bool, name: str) -> Tensor:
        if not isinstance(source, OnDevice) and source.dim() > 0:
            self._upload(source, non_blocking, name)
        elif not isinstance(to, OnDevice):
            self.waits.append(name)
        inner(to).copy_(inner(source))
        return to

    def _upload(self, source: Tensor, non_blocking: bool, name: str) -> None:
        if not (non_blocking and self._is_pinned(source)):
            self.uploads.append(name)

    def _pin(self, tensor: Tensor) -> Tensor:
        self.pinned.append(tensor)
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        """By memory, so that views of pinned tensors are pinned."""
        if isinstance(tensor, OnDevice):
            return False
        where = tensor.untyped_storage().data_ptr()
        return any(one.untyped_storage().data_ptr() == where for one in self.pinned)


class OnDevice(Tensor):
    """Claims to be on cuda:0; its values lie in `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="cuda:0",
        )
        made.inner = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of a Counter was used outside of it")

    def tolist(self) -> Any:
        """As torch's own, which refuses subclasses."""
        return self.cpu().tolist()


def inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


class Gpu:
    """What `Counter` does, on a GPU: waits and uploads are one."""

    count = 0

    def to(self, tensor: Tensor) -> Tensor:
        return tensor.cuda()

    def host(self, tensor: Tensor) -> Tensor:
        return tensor.cpu()


@contextmanager
def counting(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter | Gpu]:
    """Counts while it is open; `count` of what it gives is complete when it is closed."""
    if device != "cuda":
        from prunefuse.ops import loader

        monkeypatch.setattr(loader, "why_no_cuda", "")
        with Counter() as counter:
            yield counter
        return
    gpu, before = Gpu(), torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield gpu
        finally:
            torch.cuda.set_sync_debug_mode(before)
    gpu.count = sum("synchronizing CUDA operation" in str(one.message) for one in caught)
