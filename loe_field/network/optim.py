"""Muon for stacks of expert matrices, and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import Optimizer

from loe_field.network.checks import check_at_least, check_choice
from loe_field.network.kernels import cpu, triton_installed
from loe_field.network.modes import needs_operators, needs_plain


def orthogonalize(matrices: Tensor, num_iterations: int = 5, *, dtype: torch.dtype | None = None) -> Tensor:
    """Push all singular values of every matrix towards 1 by the quintic Newton-Schulz iteration of Muon.

    `X <- a X + (b A + c A^2) X` with A = X X^T and (a, b, c) = (3.4445, -4.7750, 2.0315) (Jordan et al., "Muon: An
    optimizer for hidden layers in neural networks", 2024). The result is within about 30 % of orthogonal, which is all
    that an update direction needs. One batched product serves the whole stack; one kernel does all iterations of fp32
    matrices up to 64 x 64 on a GPU, up to 128 x 128 on a CPU where cpu.c can be compiled.

    Args:
        matrices: [..., rows, columns], floating point; a zero matrix stays zero.
        num_iterations: >= 1.
        dtype: the coarsest numbers that products of fp32 matrices may have. None: the matrices' own. torch.bfloat16:
            bf16 with fp32 sums where that is quicker, on processors with AVX-512 BF16; fp32 elsewhere.

    Returns:
        The same shape and dtype as matrices.

    Raises:
        ValueError: dtype is something else.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    _check_dtype(dtype)
    x = matrices.flatten(0, -3) if matrices.dim() > 2 else matrices[None]
    numbers = not (torch.is_grad_enabled() and x.requires_grad) and not needs_plain(x) and not needs_operators()
    if numbers and x.is_cuda and x.dtype == torch.float32 and max(x.shape[1:]) <= 64 and triton_installed():
        from loe_field.network.kernels.newton_schulz import newton_schulz

        return newton_schulz(x, num_iterations).reshape(matrices.shape)
    if numbers and _fits_cpu_kernel(x):
        bf16 = dtype == torch.bfloat16
        return cpu.orthogonalize(x.contiguous(), num_iterations, bf16=bf16).reshape(matrices.shape)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"dtype is {dtype}: it must be torch.bfloat16 or None")


def _fits_cpu_kernel(matrices: Tensor) -> bool:
    """Whether kernels/cpu.c can compute these [..., rows, columns]."""
    return (
        not needs_plain(matrices)
        and not needs_operators()
        and matrices.dtype == torch.float32
        and matrices.device.type == "cpu"
        and matrices.numel() > 0
        and max(matrices.shape[-2:]) <= cpu.LARGEST_MATRIX
        and cpu.available()
    )


def _side_by_side(weight: Tensor, grad: Tensor, momentum: Tensor, row_scale: Tensor) -> bool:
    """Whether a parameter, its gradient and its state lie in memory as the CPU kernel takes them."""
    shapes = (weight.shape, weight.shape, weight.shape, weight[..., :1].shape)
    return all(
        t.shape == shape and t.is_contiguous() and t.dtype == torch.float32 and t.is_cpu
        for t, shape in zip((weight, grad, momentum, row_scale), shapes)
    )


Spread = Callable[[Sequence[Callable[[Tensor], Tensor]], Sequence[Tensor]], list[Tensor]]
"""Functions and stacks of matrices to functions[i](stacks[i])."""


class Muon(Optimizer):
    """Muon with per-neuron scaling for parameters that are stacks of matrices [..., rows, columns].

    Every matrix of a stack is orthogonalised on its own; matrices of equal size from all parameters go through one
    batched product, or, where `orthogonalize` has a CPU kernel, one call does their whole update. `torch.optim.Muon`
    takes single 2D matrices only.

    Per matrix, with gradient G: momentum M <- m M + (1 - m) G, Nesterov direction D = m M + (1 - m) G, then
    O = orthogonalize(D); then NorMuon's scaling (Li et al., 2025): v <- beta2 v + (1 - beta2) mean(O^2 over columns)
    per row, O <- O / sqrt(v), brought back to its Frobenius norm; W <- W - lr sqrt(max(1, rows / columns)) O.

    Args:
        params: parameters or groups, each parameter with at least 2 axes.
        lr: step size, >= 0: the update's root mean square per singular direction. A tensor works too, so that a CUDA
            graph of the step reads it anew at every replay.
        momentum: m, 0 <= m < 1.
        beta2: decay of v, 0 <= beta2 < 1; 0 turns the scaling off (plain Muon).
        num_iterations: Newton-Schulz iterations, >= 1.
        eps: added to sqrt(v).
        dtype: of `orthogonalize`: None or torch.bfloat16.

    Attributes:
        spread: where several processes take the same steps: computes the functions of the stacks [matrices, rows,
            columns] with the others, each matrix in one process.

    Raises:
        ValueError: a value is out of range or a parameter has fewer than 2 axes.
    """

    spread: Spread | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.015,
        *,
        momentum: float = 0.95,
        beta2: float = 0.95,
        num_iterations: int = 5,
        eps: float = 1e-8,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"lr is {lr}: it must be 0 or more")
        for name, value in (("momentum", momentum), ("beta2", beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}: it must lie in [0, 1)")
        check_at_least(1, num_iterations=num_iterations)
        _check_dtype(dtype)
        defaults = {"lr": lr, "momentum": momentum, "beta2": beta2, "num_iterations": num_iterations, "eps": eps}
        super().__init__(params, defaults | {"dtype": dtype})
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() < 2:
                    raise ValueError(
                        f"Muon got a parameter of shape {tuple(p.shape)}: it takes matrices and stacks of matrices; "
                        "give biases to Adam"
                    )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a saved state; older ones have no dtype."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("dtype", None)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stacks: list[tuple[list[Tensor], dict[str, Any]]] = []
        for group in self.param_groups:
            by_size: dict[tuple[Any, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_size.setdefault((p.shape[-2:], p.dtype, p.device), []).append(p)
            stacks += [(params, group) for params in by_size.values()]
        if self.spread is None:
            for params, group in stacks:
                self._update(params, group)
        elif stacks:
            functions = [
                partial(orthogonalize, num_iterations=group["num_iterations"], dtype=group["dtype"])
                for _, group in stacks
            ]
            directions = [self._directions(params, group) for params, group in stacks]
            for (params, group), update in zip(stacks, self.spread(functions, directions)):
                self._apply(params, update, group)
        return loss

    def _gathered(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Gradients, momenta and scales of parameters."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
                self.state[p]["row_scale"] = torch.zeros_like(p[..., :1])
        momenta, scales = ([self.state[p][name] for p in params] for name in ("momentum", "row_scale"))
        return [p.grad for p in params if p.grad is not None], momenta, scales

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters whose matrices have one size, all matrices in one stack."""
        grads, momenta, scales = self._gathered(params)
        if _fits_cpu_kernel(params[0]) and all(map(_side_by_side, params, grads, momenta, scales)):
            cpu.muon_step(params, grads, momenta, scales, group, step_size=float(_step_size(params[0], group)))
            return
        update = orthogonalize(self._directions(params, group), group["num_iterations"], dtype=group["dtype"])
        self._apply(params, update, group)

    def _directions(self, params: list[Tensor], group: dict[str, Any]) -> Tensor:
        """Nesterov's directions, [matrices, rows, columns]; the momenta change."""
        grads, momenta, _ = self._gathered(params)
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        directions = torch._foreach_lerp(grads, momenta, group["momentum"])
        return torch.cat([d.flatten(0, -3) if d.dim() > 2 else d[None] for d in directions])

    def _apply(self, params: list[Tensor], update: Tensor, group: dict[str, Any]) -> None:
        """Scale orthogonal matrices [matrices, rows, columns] row by row, and add them to the parameters."""
        scales = [self.state[p]["row_scale"] for p in params]
        rows, columns = params[0].shape[-2:]
        sizes = [p.numel() // (rows * columns) for p in params]
        step_size = _step_size(params[0], group)
        if group["beta2"] > 0:
            mean_square = update.square().mean(-1, keepdim=True).split(sizes)
            torch._foreach_lerp_(scales, [m.view(s.shape) for m, s in zip(mean_square, scales)], 1 - group["beta2"])
            stacked = torch.cat([s.reshape(-1, rows, 1) for s in scales])
            scaled = update / (stacked.sqrt() + group["eps"])
            norm, scaled_norm = (torch.linalg.matrix_norm(u, keepdim=True) for u in (update, scaled))
            update = scaled * (norm / (scaled_norm + group["eps"]) * step_size)
        else:
            update = update * step_size
        torch._foreach_add_(params, [u.view(p.shape) for u, p in zip(update.split(sizes), params)])


def _step_size(matrix: Tensor, group: dict[str, Any]) -> Any:
    """What orthogonal matrices [..., rows, columns] are multiplied by."""
    rows, columns = matrix.shape[-2:]
    return -group["lr"] * max(1.0, rows / columns) ** 0.5


Decay = Literal["linear", "constant", "exponential", "cosine"]
"""The way of a learning rate from its start to final_factor of it."""


def decay_factor(step: int, max_steps: int, *, kind: Decay, final_factor: float) -> float:
    """Learning rate at a step, as a part of the first: 1 up to step 0, final_factor from max_steps on."""
    if kind == "constant":
        return 1.0
    done = min(1.0, max(0.0, step / max(1, max_steps)))
    if kind == "exponential":
        return final_factor**done
    if kind == "cosine":
        done = 0.5 * (1 - math.cos(math.pi * done))
    return 1.0 + (final_factor - 1.0) * done


def decay(
    optimizer: Optimizer, max_steps: int, *, kind: Decay = "linear", warmup_steps: int = 0, final_factor: float = 0.0
) -> LambdaLR:
    """Learning rates rise linearly over warmup_steps, then fall to final_factor of themselves at max_steps.

    All factors are Python floats, so that checkpoints load under torch.load(weights_only=True).

    Args:
        optimizer: whose groups are scheduled.
        max_steps: steps of the run, >= 1; the factor stays final_factor after it.
        kind: "linear", "cosine" (half a period), "exponential" (final_factor above 0) or "constant" (no fall).
        warmup_steps: 0 or more; step k of the warm-up has factor (k + 1) / (warmup_steps + 1).
        final_factor: 0 to 1.

    Raises:
        ValueError: a value is out of range.
    """
    check_choice("decay", kind, Decay)
    check_at_least(1, max_steps=max_steps)
    if warmup_steps < 0 or not 0 <= final_factor <= 1:
        raise ValueError(f"warmup_steps is {warmup_steps}, final_factor {final_factor}: >= 0 and 0 to 1 are wanted")
    if kind == "exponential" and final_factor == 0:
        raise ValueError("final_factor is 0: an exponential decay never gets there, give something above")

    def factor(step: int) -> float:
        warmup, steps = min(1.0, (step + 1) / (warmup_steps + 1)), max_steps - warmup_steps
        return warmup * decay_factor(step - warmup_steps, steps, kind=kind, final_factor=final_factor)

    return LambdaLR(optimizer, factor)
