"""An experiment directory as train.py leaves it: its settings in config.json, and its tokenizer beside them.

Nothing in it depends on where it lies: moved to another directory or machine, it decodes as before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from kdstream.config.distillation import DistillConfig
from kdstream.config.flags import from_dict, to_dict
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.errors import UserError, option
from kdstream.files import write_text

CONFIG_FILE = "config.json"
CONFIG_VERSION = 1  # files without a version are older, and read alike
BPE_MODEL_FILE = "bpe.model"
TOKENS_FILE = "tokens.txt"
VOCABULARY_FILE = "bpe.vocab"  # with which sherpa-onnx spells hotwords


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that made an experiment, as kept in its config.json."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()

    def save(self, exp_dir: str | Path) -> None:
        """Writes `exp_dir`/config.json, whole or not at all."""
        sections = {name: to_dict(section) for name, section in vars(self).items()}
        text = json.dumps({"version": CONFIG_VERSION, **sections}, indent=2) + "\n"
        write_text(Path(exp_dir) / CONFIG_FILE, text)

    @staticmethod
    def load(exp_dir: str | Path, prefix: str = "") -> ExperimentConfig:
        """Reads `exp_dir`/config.json; --bpe-model is the tokenizer in `exp_dir` itself, where there is one.

        Args:
          prefix: of the flag in messages, e.g. "teacher_" where the user typed --teacher-exp-dir.
        Raises:
          UserError: there is no config.json, a newer version wrote it, or it does not parse.
        """
        config = ExperimentConfig.as_written(exp_dir, prefix)
        return replace(config, data=replace(config.data, bpe_model=find_bpe_model(exp_dir, config.data)))

    @staticmethod
    def as_written(exp_dir: str | Path, prefix: str = "") -> ExperimentConfig:
        """Reads `exp_dir`/config.json word for word: its paths are as seen from where train.py ran.  See `load`."""
        path = Path(exp_dir) / CONFIG_FILE
        if not path.is_file():
            fix = f"{option(prefix + 'exp_dir')} must name a directory that train.py wrote"
            raise UserError(f"{path}: no such file", fix=fix)
        try:
            sections = json.loads(path.read_text())
            version = sections.get("version", 0)
            if version > CONFIG_VERSION:
                raise UserError(
                    f"{path}: a newer kdstream wrote it (version {version}; this one reads up to {CONFIG_VERSION})",
                    fix="update kdstream",
                )
            return ExperimentConfig(
                model=from_dict(ModelConfig, sections["model"]),
                data=from_dict(DataConfig, sections["data"]),
                train=from_dict(TrainConfig, sections["train"]),
                distill=from_dict(DistillConfig, sections["distill"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{path}: not a config.json of this project ({error})"
            raise UserError(problem, fix="train again or mend it") from error


def find_bpe_model(exp_dir: str | Path, data: DataConfig) -> str:
    """The sentencepiece model of an experiment; tokens.txt lies beside it.

    It is the copy that train.py keeps in the directory.  An older directory has none: there config.json names the file.
    """
    own = Path(exp_dir) / BPE_MODEL_FILE
    return str(own) if own.is_file() else data.bpe_model
