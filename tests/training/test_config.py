"""Options that every run has: refused in one line, before anything is built."""

import copy
import socket

import pytest

from loe_field.errors import InputError
from loe_field.methods import loe_image
from loe_field.training.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow


def config(**options):
    made = copy.deepcopy(loe_image.config)
    made.machine.device_type = "cpu"
    for name, value in options.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("port", [70000, 0, -1])
def test_a_port_that_is_none(port):
    made = config(vis="viewer")
    made.viewer.websocket_port = port
    with pytest.raises(InputError, match=f"websocket-port is {port}: give 1 to 65535"):
        made.check()


def test_a_port_in_use_and_a_host_that_is_none():
    made = config(vis="viewer")
    made.check()
    with socket.create_server(("127.0.0.1", 0)) as other:
        made.viewer.websocket_port = other.getsockname()[1]
        with pytest.raises(InputError, match="cannot be listened on"):
            made.check()
    made.viewer.websocket_host, made.viewer.websocket_port = "256.0.0.1", None
    with pytest.raises(InputError, match="cannot be listened on"):
        made.check()


@pytest.mark.parametrize(
    "option", ["experiment_name", "timestamp", "output_dir", "relative_model_dir", "data", "load_dir"]
)
@pytest.mark.parametrize("name", ["x" * 300, "a/" * 2500])
def test_names_that_no_file_can_have(option, name):
    made = config(**{option: name})
    if option == "data":
        made.pipeline.datamanager.data = made.data
    with pytest.raises(InputError, match="is too long, at "):
        made.set_timestamp()


@pytest.mark.parametrize("content", [None, b"- 1", b"\xff\xfe\0", b""])
def test_load_config_is_looked_at_before_the_host_opens_it(content, tmp_path):
    path = tmp_path / "[red]config.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"--load-config .*config\.yml"):
        type(loe_image.config)(method_name="loe-image", load_config=path)


def test_a_checkpoint_that_would_run_code_is_refused_without_torchs_advice(tmp_path):
    import os

    import torch

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "step-000000001.ckpt"
    torch.save({"step": 1, "pipeline": {}, "optimizers": {}, "more": Evil()}, path)
    with pytest.raises(InputError, match="more than tensors, numbers and text") as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
