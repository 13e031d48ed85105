"""What is left open, by the numbers of devices."""

import pytest

from loe_field.errors import InputError
from loe_field.training.defaults import Device, check_precision, defaults_for, device_of, remark

GIB = 2**30
CPU = Device("cpu")
H100, A100, T4, OLD = (
    Device("cuda", capability, memory * GIB)
    for capability, memory in (((9, 0), 80), ((8, 0), 40), ((7, 5), 15), ((6, 1), 3))
)


@pytest.mark.parametrize(
    ("device", "precision", "rays"),
    [(CPU, "fp32", 1024), (H100, "tf32", 4096), (A100, "tf32", 4096), (T4, "fp32", 4096), (OLD, "fp32", 1024)],
)
def test_values(device, precision, rays):
    found = defaults_for(device)
    assert (found.precision, found.rays_per_batch) == (precision, rays)
    assert found.evaluates_by_time == (device.kind == "cuda")
    assert (found.steps_per_iteration > 1) == (device.kind == "cuda")
    check_precision(found.precision, device)


@pytest.mark.parametrize(("device", "precision"), [(T4, "tf32"), (T4, "bf16"), (OLD, "bf16")])
def test_what_an_older_card_has_not(device, precision):
    major, minor = device.capability
    with pytest.raises(InputError, match=rf"--precision {precision} is for .* has {major}.{minor}: give fp32"):
        check_precision(precision, device)
    assert f"and this one has {major}.{minor}" in remark(device)


def test_what_is_there():
    for precision in ("fp32", "tf32", "bf16"):
        check_precision(precision, H100)
    check_precision("bf16", CPU)
    with pytest.raises(InputError, match="--precision tf32 is an NVIDIA GPU's: give fp32 or bf16 on a CPU"):
        check_precision("tf32", CPU)
    assert remark(H100) is remark(CPU) is None
    assert device_of("cpu") == CPU
