import dataclasses
import math
import tomllib

import pytest

from fullspectrum_ext.experiments.config import TrainConfig, load_config, to_toml


def test_every_kind_of_value_survives_toml():
    values = {
        "text": 'quote " backslash \\ tab \t line \n delete \x7f ünï \N{PILE OF POO}',
        "whole": -3,
        "real": 1e-300,
        "large": 1e22,
        "truth": True,
        "no": False,
        "list": [1, 2.5, "a,b", True],
        "empty": [],
        "infinite": math.inf,
    }

    assert tomllib.loads(to_toml(values)) == values


def test_settings_survive_a_file(tmp_path):
    settings = TrainConfig(methods=("dense",), seeds=(3,), learning_rate=1e-05, threads=1)
    file = tmp_path / "c.toml"
    file.write_text(to_toml(dataclasses.asdict(settings)))

    assert load_config(file) == settings


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("epochs = 7\nbatch_size = 5\n")

    settings = load_config(file, epochs=9, model=None)

    assert (settings.epochs, settings.batch_size, settings.model) == (9, 5, "mlp")


def test_unknown_keys_are_refused_with_the_nearest(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("learning_rat = 0.1\n")

    with pytest.raises(ValueError, match=r"c\.toml: unknown key 'learning_rat' .*'learning_rate'"):
        load_config(file)


def test_a_wrong_value_in_a_file_names_the_file_even_where_a_flag_replaces_it(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("epochs = 0\n")

    with pytest.raises(ValueError, match=r"c\.toml: epochs: expected at least 1, got 0"):
        load_config(file, epochs=3)


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    file = tmp_path / "c.toml"
    file.write_bytes(b"epochs: 3\n")
    with pytest.raises(ValueError, match="expected a TOML file"):
        load_config(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected a TOML file"):
        load_config(file)


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ({"data": "digit"}, ValueError, "data: expected one of digits, .*, got 'digit' .*'digits'"),
        ({"model": "conv"}, ValueError, "model: expected one of mlp, "),
        (
            {"model": "lstm"},
            ValueError,
            "'lstm' takes text, not images; expected one of mlp",
        ),
        ({"data": "text"}, ValueError, "model: 'mlp' takes .*, not text; expected one of lstm"),
        (
            {"data": "teacher-mlp", "model": "vit"},
            ValueError,
            "'vit' takes images, not teacher-mlp",
        ),
        ({"augment": 1}, TypeError, "augment: expected true or false, got 1"),
        ({"optimizer": "adam"}, ValueError, "did you mean 'adamw'"),
        ({"methods": []}, ValueError, "methods: expected at least one"),
        ({"methods": ["dense", "dense"]}, ValueError, "methods: expected each one once"),
        ({"methods": "dense"}, TypeError, "methods: expected a list, got 'dense'"),
        ({"methods": ["no such"]}, ValueError, "no such"),
        ({"seeds": [1, 2, 1]}, ValueError, "seeds: expected each one once, got 1 twice"),
        ({"seeds": [-1]}, ValueError, r"seeds: expected values in \[0, "),
        ({"seeds": [True]}, TypeError, "seeds: expected a whole number, got True"),
        ({"sparsity": 1.0}, ValueError, r"sparsity: expected a fraction in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, ValueError, "sparsity: expected a fraction"),
        ({"sparsity": math.nan}, ValueError, "sparsity: expected a fraction"),
        ({"sparsity": "0.9"}, TypeError, "sparsity: expected a number, got '0.9'"),
        ({"epochs": 0}, ValueError, "epochs: expected at least 1, got 0"),
        ({"epochs": 1.0}, TypeError, "epochs: expected a whole number, got 1.0"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
        ({"candidates": 0}, ValueError, "candidates: expected at least 1"),
        ({"threads": -1}, ValueError, "threads: expected at least 0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate: expected a number > 0"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate: expected a number > 0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay: expected a number >= 0"),
        ({"device": "tpu9"}, ValueError, "device: expected cpu or cuda, got 'tpu9'"),
        ({"device": "meta"}, ValueError, "device: expected cpu or cuda, got 'meta'"),
    ],
)
def test_wrong_settings_are_refused_in_words(setting, error, words):
    with pytest.raises(error, match=words):
        TrainConfig(**({"methods": ["dense"]} | setting))


def test_digest_follows_every_setting():
    one = TrainConfig(methods=("dense",))
    others = [dataclasses.replace(one, epochs=2), dataclasses.replace(one, seeds=(0, 2, 1))]

    digests = {settings.digest() for settings in [one, *others]}

    assert len(digests) == 3
    assert one.digest() == TrainConfig(methods=["dense"]).digest()


def test_differences_name_both_values():
    one, other = TrainConfig(methods=("dense",)), TrainConfig(methods=("dense",), epochs=2)

    assert one.differences(one) == []
    assert other.differences(one) == [f"epochs = 2, not {one.epochs}"]
