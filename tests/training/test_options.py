"""What is typed and what a run has: the two lists agree, nothing stays open, and a configuration survives a file."""

import dataclasses
import typing

import pytest
import yaml

import datgan_fast as dat
from datgan_fast.errors import ConfigError
from datgan_fast.method import formulas
from datgan_fast.method.dispatch import BACKENDS
from datgan_fast.method.step_arguments import PENALTY_ON
from datgan_fast.training.baselines import BASELINES, BaselineName
from datgan_fast.training.config import BackendChoice, Config, PenaltyOn
from datgan_fast.training.options import GENERAL, KINDS, Options

TYPED, HAD = typing.get_type_hints(Options), typing.get_type_hints(Config)
# What a run has that is typed otherwise: 0 stands for points, and a switch of three positions for one that was not touched.
UNLIKE = {"channels": int, "cuda_graph": typing.Literal["must", "may", "no"]}


def test_the_lists_agree():
    assert [f.name for f in dataclasses.fields(Options)] == [f.name for f in dataclasses.fields(Config)]
    for name, kind in HAD.items():
        assert kind == UNLIKE.get(name) or TYPED[name] == kind | None, name


def test_all_that_is_typed_is_optional_and_nothing_that_a_run_has():
    assert all(value is None for value in vars(Options()).values())
    assert not any(type(None) in typing.get_args(kind) for kind in HAD.values())
    assert set(GENERAL) <= set(KINDS)


def test_literals_are_the_built_in_rows():
    for literal, rows in (
        (BaselineName, BASELINES),
        (formulas.ObjectiveName, formulas.OBJECTIVES),
        (formulas.FormulationName, formulas.FORMULATIONS),
        (formulas.NormName, formulas.NORMS),
        (BackendChoice, ("auto", *BACKENDS)),
        (PenaltyOn, PENALTY_ON),
    ):
        assert typing.get_args(literal) == tuple(rows)


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "ring"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_configuration_survives_a_file(baseline, dataset):
    config = dat.TrainConfig(baseline=baseline, dataset=dataset, formulation="batch_mean", device="cpu").resolved()
    assert None not in vars(config).values()
    again = Options.from_mapping(yaml.safe_load(yaml.safe_dump(config.typed())), "config.yaml")
    assert again.resolved() == config == again.recorded()


def test_a_record_that_is_older_than_an_option():
    record = dat.TrainConfig(device="cpu", penalty_on="both").resolved().typed()
    assert Options.from_mapping(record, "config.yaml").recorded().penalty_on == record.pop("penalty_on") == "both"
    assert Options.from_mapping(record, "config.yaml").recorded().penalty_on == "clean"


def test_a_record_of_another_machine_is_read_without_its_device():
    record = dat.TrainConfig(device="cpu").resolved().typed() | {
        "device": "cuda:7",
        "precision": "bf16",
        "cuda_graph": None,
    }
    config = Options.from_mapping(record, "config.yaml").recorded()
    assert (config.device, config.precision, config.cuda_graph) == ("cuda:7", "bf16", "may")


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ({}, "lr", 2e-4),  # the baseline's
        ({"dataset": "ring"}, "lr", 2e-3),  # the data set's wins
        ({"dataset": "ring", "lr": 0.5}, "lr", 0.5),  # what was typed wins
        ({"lr": 0.5}, "lr_d", 0.5),
        ({"lr": 0.5, "lr_d": 0.25}, "lr_d", 0.25),
        ({"norm": "linf"}, "eps", 0.03),  # the norm's
        ({"norm": "linf", "dataset": "ring"}, "eps", 0.1),
        ({"norm": "linf", "eps": 0.2, "steps_attack": 5}, "alpha", 0.1),  # what follows from them
        ({"eps": 0.2, "steps_attack": 5}, "alpha", 0.04),
        ({"eps": 0.2, "steps_attack": 5, "alpha": 1.0}, "alpha", 1.0),
        ({"baseline": "wgan-lp", "dataset": "grid"}, "penalty_weight", 0.1),
        ({"baseline": "wgan-alp", "dataset": "grid"}, "penalty_weight", 10.0),
        ({"formulation": "batch_mean", "batch_size": 10}, "eps", 10.0),
        ({"dat": False}, "name", "dcgan-digits"),
    ],
)
def test_the_order_of_defaults(typed, name, value):
    assert getattr(dat.TrainConfig(**typed, device="cpu").resolved(), name) == pytest.approx(value)


def test_it_shows_what_was_typed():
    assert repr(dat.TrainConfig(baseline="wgan", dat=False)) == "TrainConfig(baseline='wgan', dat=False)"


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dat.TrainConfig(device="cpu").resolved().lr = 1.0


@pytest.mark.parametrize("value", ["true", 1, 0.5])
def test_a_switch_is_true_or_false(value):
    with pytest.raises(ConfigError, match=r"--dat .*: must be true or false"):
        Options.from_mapping({"dat": value}, "options.yaml")
