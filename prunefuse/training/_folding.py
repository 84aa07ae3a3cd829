"""Batch norms that are part of the convolutions before them, while a network scores in bfloat16 on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_PARTS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def folded(model: nn.Module, run: Callable[[], Any]) -> Iterator[int]:
    """Batch norms of ``model`` folded, for a while, where they alone read a 2-d convolution; gives how many.

    Convolutions have weights in bfloat16 then. Parameters and buffers themselves are not written.

    Args:
        model: In evaluation mode.
        run: Runs it once. What reads which output is seen there.
    """
    pairs = _pairs(model, run)
    with ExitStack() as stack, torch.no_grad():
        for conv, norm in pairs:
            own = dict(conv._parameters)
            stack.callback(conv._parameters.update, own)
            stack.callback(norm.__dict__.pop, "forward")
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = (norm.running_var + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight
            bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
            bias = bias * scale if norm.bias is None else bias * scale + norm.bias
            weight = conv.weight * scale.view(-1, 1, 1, 1)
            for name, value in (("weight", weight), ("bias", bias)):
                conv._parameters[name] = nn.Parameter(value.bfloat16(), requires_grad=False)
            norm.__dict__["forward"] = _same
        yield len(pairs)


def _same(given: Tensor) -> Tensor:
    return given


class _Uses(TorchFunctionMode):
    """How often something is computed from each of the tensors that are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at: dict[int, Tensor] = {}  # kept, as another tensor could have the same id
        self.uses: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if any(isinstance(one, Tensor) for one in tree_leaves(found)):
            given = {id(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
            self.uses.update(given & self.looked_at.keys())
        return found


def _pairs(model: nn.Module, run: Callable[[], Any]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    seen, calls = _Uses(), Counter[int]()
    convolutions: dict[int, nn.Conv2d] = {}
    read_by: dict[int, nn.BatchNorm2d] = {}

    def wrote(module: nn.Module, _: Any, output: Any) -> None:
        calls[id(module)] += 1
        if isinstance(module, nn.Conv2d) and isinstance(output, Tensor):
            seen.looked_at[id(output)], convolutions[id(output)] = output, module

    def reads(module: nn.Module, given: Any) -> None:
        if isinstance(module, nn.BatchNorm2d) and len(given) == 1:
            read_by[id(given[0])] = module

    with ExitStack() as stack:
        for module in model.modules():
            if _plain(module):
                hooks = [module.register_forward_hook(wrote), module.register_forward_pre_hook(reads)]
                for hook in hooks:
                    stack.callback(hook.remove)
        with torch.no_grad(), seen:
            outputs = run()
    given_out = {id(one) for one in tree_leaves(outputs)}
    return [
        (conv, norm)
        for key, conv in convolutions.items()
        if (norm := read_by.get(key)) is not None
        and seen.uses[key] == 1
        and key not in given_out
        and calls[id(conv)] == calls[id(norm)] == 1
    ]


def _plain(module: nn.Module) -> bool:
    """A convolution or batch norm of torch itself, in evaluation mode, to which nobody listens."""
    if any(getattr(module, part) for part in _PARTS) or module.training:
        return False
    if type(module) is nn.BatchNorm2d:
        return module.running_mean is not None and module.running_var is not None
    return type(module) is nn.Conv2d and "forward" not in vars(module)
