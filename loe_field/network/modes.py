"""What torch may want of a computation beside its numbers: its operations, its shapes, a graph of it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

_ORDINARY = {Tensor, torch.nn.Parameter}


def needs_plain(*tensors: Tensor) -> bool:
    """Whether every operation must be torch's own, and none may depend on the values.

    So it is under torch.func, for forward-mode derivatives and batches of gradients, under torch.jit.trace and
    torch.export, and for tensors without content or of a class with operations of its own.
    """
    if transformed():
        return True
    if torch.compiler.is_compiling():
        return _exporting()
    if torch.jit.is_tracing():
        return True
    # Asked at every forward pass of some twenty tensors: what is cheap and settles most cases comes first.
    for t in tensors:
        if t.is_meta or (type(t) not in _ORDINARY and type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__):  # pyright: ignore[reportAttributeAccessIssue]
            return True
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def transformed(*tensors: Tensor) -> bool:
    """Whether a transform of torch.func is under way, or one of the tensors is a batch of gradients."""
    return _under_way() or any(map(is_legacy_batchedtensor, tensors))


def _under_way() -> bool:
    return torch._C._are_functorch_transforms_active()


def _exporting() -> bool:
    return torch.compiler.is_exporting()


for _function in (_under_way, _exporting):  # torch.compile of torch 2.7 would not ask them, and take them for true
    _function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def gradients_by_torch(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], need: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradient of function(*inputs) for each needed input, in torch operations; None for the others.

    It can be differentiated again where torch wants a graph of it. The function gets views, so that a gradient counts
    the ways through it only, should one input depend on another.
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [None if t is None else t.view_as(t) for t in inputs]
        out = function(*inputs)
    wanted = [t for t, needed in zip(inputs, need) if needed and t is not None]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=graph))
    return [next(found) if needed else None for needed in need]


def needs_operators() -> bool:
    """Whether kernels must be operators of torch, which torch.compile, make_fx and other modes can see."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
