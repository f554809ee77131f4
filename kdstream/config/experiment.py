"""An experiment's settings as its config.json keeps them: written by train.py, read by every later command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kdstream.config.flags import from_dict, to_dict
from kdstream.config.sections import DataConfig, DistillConfig, ModelConfig, TrainConfig
from kdstream.errors import UserError, option

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that made an experiment, as kept in its config.json."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()

    def save(self, exp_dir: str | Path) -> None:
        """Writes `exp_dir`/config.json."""
        (Path(exp_dir) / CONFIG_FILE).write_text(
            json.dumps({name: to_dict(section) for name, section in vars(self).items()}, indent=2) + "\n"
        )

    @staticmethod
    def load(exp_dir: str | Path, prefix: str = "") -> ExperimentConfig:
        """Reads `exp_dir`/config.json.

        Args:
          prefix: of the flag in messages, e.g. "teacher_" where the user typed --teacher-exp-dir.
        Raises:
          UserError: there is none, or it does not parse.
        """
        path = Path(exp_dir) / CONFIG_FILE
        if not path.is_file():
            fix = f"{option(prefix + 'exp_dir')} must name a directory that train.py wrote"
            raise UserError(f"{path}: no such file", fix=fix)
        try:
            sections = json.loads(path.read_text())
            return ExperimentConfig(
                model=from_dict(ModelConfig, sections["model"]),
                data=from_dict(DataConfig, sections["data"]),
                train=from_dict(TrainConfig, sections["train"]),
                distill=from_dict(DistillConfig, sections["distill"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a config.json of this project ({error}); train again or mend it") from error
