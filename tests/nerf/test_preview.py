"""A first look at a scene while it is trained."""

import copy
import io
import threading

import msgspec
import pytest
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from nerfstudio.utils.writer import GLOBAL_BUFFER, EventName
from PIL import Image
from processes import free_port
from websockets.sync.client import connect

from loe_field.adapter.network import LoEConfig
from loe_field.methods import loe_nerf
from loe_field.nerf import trainer as trainer_module

pytestmark = pytest.mark.slow


def trainer_of(scene, folder, **options):
    config = copy.deepcopy(loe_nerf.config)
    config.pipeline.datamanager.data = scene
    config.pipeline.datamanager.dataparser.downscale_factor = 1
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    config.pipeline.model.loe = LoEConfig(num_layers=3, layer_width=16, tile_size=2, num_frequencies=3)
    config.output_dir, config.max_num_iterations, config.machine.device_type = folder, 12, "cpu"
    for name, value in options.items():
        setattr(config, name, value)
    config.set_timestamp()
    trainer = config.setup()
    trainer.setup()
    return trainer


def test_who_looks_on_gets_small_pictures_while_training_goes_on(scene, tmp_path):
    viewer = copy.deepcopy(loe_nerf.config.viewer)
    viewer.websocket_port = free_port()
    trainer = trainer_of(scene, tmp_path, vis="viewer", viewer=viewer, max_num_iterations=100_000)
    pictures = []  # the training's step, and the picture's longer side

    def look():
        camera = {"wxyz": (1, 0, 0, 0), "position": (0, 0, -3), "fov": 0.8, "aspect": 1.5}
        camera |= {"type": "ViewerCameraMessage", "look_at": (0, 0, 0), "up_direction": (0, 1, 0)}
        try:
            with connect(f"ws://127.0.0.1:{viewer.websocket_port}", max_size=None) as server:
                server.send(msgspec.msgpack.encode(camera))
                while not pictures or pictures[-1][1] < 200:
                    found = msgspec.msgpack.decode(server.recv(timeout=60))
                    for message in found if isinstance(found, list) else [found]:
                        if message["type"] == "BackgroundImageMessage":
                            size = Image.open(io.BytesIO(message["rgb_bytes"])).size
                            pictures.append((trainer.step, max(size)))
        finally:
            trainer.stop_training = True

    looking = threading.Thread(target=look)
    looking.start()
    trainer.train()
    looking.join(60)
    assert pictures[-1][1] == trainer_module._VIEW_SIDE_ON_CPU
    assert pictures[-1][0] > 1
    assert GLOBAL_BUFFER["events"][EventName.TRAIN_RAYS_PER_SEC.value]["avg"] > 0


def test_previews_grow_and_come_at_doubling_times(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer_module.NerfTrainer, "first_preview", 1e-3)
    monkeypatch.setattr(trainer_module, "_PREVIEW_RAYS", 500)
    seen = []
    write = trainer_module.NerfTrainer._write_preview

    def written(self):
        write(self)
        seen.append((self.record.seconds_here, Image.open(self.base_dir / "preview.png").size))

    monkeypatch.setattr(trainer_module.NerfTrainer, "_write_preview", written)
    trainer = trainer_of(scene, tmp_path)
    trainer.train()
    assert [size for _, size in seen][:3] == [(25, 20), (35, 28), (50, 40)]
    assert all(seconds >= 1e-3 * 2**number for number, (seconds, _) in enumerate(seen[:-1])), "but that of the end"
    printed = capsys.readouterr().out.replace("\n", "")
    assert printed.count("a first look after") == 1
    assert str(trainer.base_dir / "preview.png") in printed
