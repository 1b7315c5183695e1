"""Hypothesis without chance: the same inputs in every run, no deadline, nothing kept."""

from hypothesis import HealthCheck, settings


def repeatable(examples):
    return settings(
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        max_examples=examples,
        report_multiple_bugs=False,
    )
