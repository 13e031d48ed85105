"""One level in Triton, cut in different ways: which entries `kernels.level` should have in its tables.

    python -m benchmarks.kernel_blocks --precision bf16 --width 64 --experts 4

Needs a CUDA GPU. Every cut is checked against the first one before it is timed; times are medians with the cache
emptied in between, and the bytes that must move (x and y; x, grad_y and grad_x) divided by them.
"""

import argparse
import itertools

import torch
from triton.testing import do_bench

from loe_field.network.kernels import level
from loe_field.network.rows import expert_rows
from loe_field.network.shape import Arithmetic


def main() -> None:
    """Time all cuts and print them, the fastest last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512 * 512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16", "tf32", "tf32x3", "ieee"])
    options = parser.parse_args()
    width, precision = options.width, options.precision

    torch.manual_seed(0)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    x, grad_y = (torch.randn(options.rows, width, device="cuda").to(dtype) for _ in range(2))
    weight, bias = torch.randn(options.experts, width, width, device="cuda") / width**0.5, torch.randn(width).cuda()
    rows = expert_rows(torch.randint(options.experts, (1, options.rows), device="cuda"), options.experts)
    arguments = (x, weight, bias, rows.order[0], rows.starts[0], Arithmetic("sine", 1.0, precision, dtype))
    kernels = {
        "forward": ("level_blocks", 2, lambda: (level.level_forward(*arguments),)),
        "backward": ("backward_blocks", 3, lambda: level.level_backward(grad_y, *arguments)),
    }
    for name, (table, passes, call) in kernels.items():
        default = getattr(level, table)
        expected, results = call(), []
        for block_rows, warps, stages, programs in itertools.product((32, 64, 128), (4, 8), (2, 3, 4), (1, 2, 3, 4, 8)):
            blocks = default(width, width, precision)
            if blocks is None:
                continue
            blocks = blocks._replace(rows=block_rows, warps=warps, stages=stages, programs=programs)
            setattr(level, table, lambda *_, blocks=blocks: blocks)
            try:
                for got, wanted in zip(call(), expected):
                    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2 * wanted.abs().max().item())
                results.append((do_bench(call, warmup=5, rep=20, return_mode="median"), blocks))
            except Exception as error:  # a cut that does not fit is no result
                print(name, blocks, type(error).__name__)
            finally:
                setattr(level, table, default)
        results.append((do_bench(call, return_mode="median"), "as it is"))
        for milliseconds, blocks in sorted(results, key=lambda result: -result[0])[-12:]:
            rate = passes * x.numel() * x.element_size() / milliseconds / 1e6
            print(f"{name:8s} {milliseconds * 1e3:8.1f} us {rate:6.0f} GB/s  {blocks}")


if __name__ == "__main__":
    main()
