"""ModelConfig, TrainConfig, presets, files of settings. Read model, training, presets, settings_file; fields."""

from rdn_fast.config.model import ESPCN, SCALES, ModelConfig
from rdn_fast.config.presets import PRESETS, make_configs
from rdn_fast.config.training import DEGRADATION_HELP, TrainConfig

__all__ = ["DEGRADATION_HELP", "ESPCN", "PRESETS", "SCALES", "ModelConfig", "TrainConfig", "make_configs"]
