"""The flags of `tfddl-train`, its presets, and which values are valid."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import app, flags
from absl.testing import flagsaver

from tests.configs import default_config
from tfddl.errors import UnsupportedError
from tfddl.segmentation import train
from tfddl.segmentation.config import TrainConfig, parse_filters, parse_image_size, parse_names
from tfddl.segmentation.presets import PRESETS, describe

FLAGS = [
    "augment",
    "batch_size",
    "batchnorm_momentum",
    "between_hosts",
    "checkpoint_dir",
    "collective",
    "data_dir",
    "epochs",
    "filters",
    "image_size",
    "in_channels",
    "inter_op_threads",
    "intra_op_threads",
    "keep",
    "learning_rate",
    "learning_rate_decay",
    "loss",
    "num_examples",
    "output_dir",
    "preset",
    "progress",
    "resume",
    "save_every_steps",
    "seed",
    "skip_bad",
    "tensorboard_dir",
    "validation_split",
    "verbose",
    "virtual_workers",
]


def _own_flags() -> list[Any]:
    return flags.FLAGS.get_key_flags_for_module(train.__name__)


def test_flags_and_config_fields_are_these() -> None:
    assert sorted(flag.name for flag in _own_flags()) == FLAGS
    assert sorted(field.name for field in dataclasses.fields(TrainConfig)) == FLAGS


def test_flags_are_grouped_and_explained() -> None:
    groups = (
        "[preset]",
        "[data]",
        "[model]",
        "[training]",
        "[checkpoints]",
        "[runtime]",
        "[output]",
    )
    for flag in _own_flags():
        assert sum(group in flag.help for group in groups) == 1, flag.name
    assert all(len(flag.help) > 30 for flag in _own_flags())


@pytest.mark.parametrize(
    ("text", "size"), [("96", (96, 96)), ("96x128", (96, 128)), ("64 X 32", (64, 32))]
)
def test_image_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "96x", "1x2x3", "-96", "9.6", "large"])
def test_bad_image_sizes(text: str) -> None:
    with pytest.raises(UnsupportedError, match=r"--image_size is '.*'; it must be one number \(96"):
        parse_image_size(text)


def test_names() -> None:
    assert parse_names(["flip", " shift "]) == ("flip", "shift")
    assert parse_names([""]) == parse_names([]) == ()


def test_filters() -> None:
    assert parse_filters(["8", " 16"]) == (8, 16)
    with pytest.raises(UnsupportedError, match=r"--filters is '8,a'; it must be numbers between"):
        parse_filters(["8", "a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (0, 8)}, r"--image_size is \(0, 8\); it must be positive\."),
        ({"validation_split": 0.0}, r"--validation_split is 0\.0; it must be in \(0, 1\)\."),
        ({"validation_split": 1.0}, r"--validation_split is 1\.0; it must be in \(0, 1\)\."),
        ({"num_examples": 1}, r"--num_examples is 1; it must be at least 2\."),
        ({"seed": -1}, r"--seed is -1; it must be in 0\.\.2147483647\."),
        ({"filters": ()}, r"--filters is \(\); it must be one positive number for each level"),
        ({"filters": (8, 0)}, r"--filters is \(8, 0\); it must be one positive number"),
        ({"preset": "x"}, r"--preset is x; it must be one of default, source\."),
        ({"augment": ("spin",)}, r"--augment is spin; it must be some of flip,"),
        ({"loss": "x"}, r"--loss is x; it must be one of dice_crossentropy, dice, exact_dice\."),
        ({"save_every_steps": 0}, r"--save_every_steps is 0; it must be at least 1\."),
        ({"keep": 0}, r"--keep is 0; it must be at least 1\."),
        ({"in_channels": 2}, r"--in_channels is 2; it must be one of 1, 3, 4\."),
        ({"batchnorm_momentum": 1.0}, r"--batchnorm_momentum is 1\.0; it must be in \[0, 1\)\."),
        ({"epochs": 0}, r"--epochs is 0; it must be at least 1\."),
        ({"batch_size": 0}, r"--batch_size is 0; it must be at least 1\."),
        ({"learning_rate": 0.0}, r"--learning_rate is 0\.0; it must be positive\."),
        ({"learning_rate": float("nan")}, r"--learning_rate is nan; it must be positive\."),
        ({"learning_rate_decay": "x"}, r"--learning_rate_decay is x; it must be one of cosine, no"),
        ({"collective": "mpi"}, r"--collective is mpi; it must be one of auto, ring, nccl\."),
        ({"progress": "x"}, r"--progress is x; it must be one of bar, lines, none\."),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        dataclasses.replace(default_config(), **change)


def test_source_is_the_systems_network_and_training() -> None:
    default_config()
    with flagsaver.flagsaver(preset="source"):
        config = train.config_from_flags()
    assert (*config.image_size, config.in_channels) == (512, 512, 3)
    assert config.filters == (8, 16, 32, 64, 128, 256, 512, 1024)
    assert config.batchnorm_momentum == 0.99
    assert (config.batch_size, config.epochs) == (12, 50)
    assert (config.learning_rate, config.learning_rate_decay) == (0.00013, "none")
    assert config.loss == "dice"
    assert config.augment == ()


def test_a_flag_overrides_the_preset() -> None:
    default = default_config()
    with flagsaver.flagsaver(preset="source", epochs=default.epochs, filters=["4", "8"]):
        config = train.config_from_flags()
    assert config.epochs == default.epochs  # although it is the flag's own default
    assert config.filters == (4, 8)
    assert config.batch_size == 12


@pytest.mark.parametrize("preset", list(PRESETS))
def test_help_shows_presets_as_flags(preset: str) -> None:
    """What --help says of a preset, given as flags, is what it sets."""
    default_config()
    written = describe(preset).split()
    assert (preset == "default") == (written == [])
    names = [word[2:].partition("=")[0] for word in written]
    with flagsaver.flagsaver():
        flags.FLAGS(["tfddl-train", *written, f"--preset={preset}"])
        by_flags = train.config_from_flags()
    with flagsaver.flagsaver(preset=preset):
        assert train.config_from_flags() == by_flags
    assert describe(preset) in flags.FLAGS["preset"].help
    assert set(names) <= {field.name for field in dataclasses.fields(TrainConfig)}


def test_directories_are_in_the_output_directory_unless_given() -> None:
    config = default_config()
    assert config.checkpoint_dir == config.output_dir / "checkpoints"
    assert config.tensorboard_dir == config.output_dir / "tensorboard"
    with flagsaver.flagsaver(output_dir="x", checkpoint_dir="y", tensorboard_dir=""):
        config = train.config_from_flags()
    assert config.checkpoint_dir == Path("y")
    assert config.tensorboard_dir is None
    with flagsaver.flagsaver(checkpoint_dir="gs://bucket/a", tensorboard_dir="gs://bucket/b"):
        config = train.config_from_flags()
    assert (config.checkpoint_dir, config.tensorboard_dir) == ("gs://bucket/a", "gs://bucket/b")


@pytest.mark.parametrize("name", ["output_dir", "data_dir"])
def test_a_url_is_no_path_of_this_machine(name: str) -> None:
    with (
        flagsaver.flagsaver(**{name: "gs://bucket/a"}),
        pytest.raises(UnsupportedError, match="'gs://bucket/a'; expected a path on this machine"),
    ):
        train.config_from_flags()


def test_help_of_the_installed_command_lists_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that only calls `run()` has no flags of its own."""
    monkeypatch.setattr(sys, "argv", ["/bin/tfddl-train"])
    monkeypatch.setattr(app, "run", lambda main, argv: None)
    train.run()
    shown = flags.FLAGS.main_module_help().replace("--[no]", "--")
    assert [name for name in FLAGS if f"--{name}:" not in shown] == []
