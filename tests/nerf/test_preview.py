"""A first look at a scene while it is trained."""

import copy

import pytest
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from PIL import Image

from loe_field.adapter.network import LoEConfig
from loe_field.methods import loe_nerf
from loe_field.nerf import trainer as trainer_module

pytestmark = pytest.mark.slow


def test_previews_grow_and_come_at_doubling_times(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer_module.NerfTrainer, "first_preview", 1e-3)
    monkeypatch.setattr(trainer_module, "_PREVIEW_RAYS", 500)
    seen = []
    write = trainer_module.NerfTrainer._write_preview

    def written(self):
        write(self)
        seen.append((self.record.seconds_here, Image.open(self.base_dir / "preview.png").size))

    monkeypatch.setattr(trainer_module.NerfTrainer, "_write_preview", written)
    config = copy.deepcopy(loe_nerf.config)
    config.pipeline.datamanager.data = scene
    config.pipeline.datamanager.dataparser.downscale_factor = 1
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    config.pipeline.model.loe = LoEConfig(num_layers=3, layer_width=16, tile_size=2, num_frequencies=3)
    config.output_dir, config.max_num_iterations, config.machine.device_type = tmp_path, 12, "cpu"
    config.set_timestamp()
    trainer = config.setup()
    trainer.setup()
    trainer.train()
    assert [size for _, size in seen][:3] == [(25, 20), (35, 28), (50, 40)]
    assert all(seconds >= 1e-3 * 2**number for number, (seconds, _) in enumerate(seen))
    printed = capsys.readouterr().out.replace("\n", "")
    assert printed.count("a first look after") == 1
    assert str(trainer.base_dir / "preview.png") in printed
