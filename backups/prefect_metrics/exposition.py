"""Prometheus' text format (0.0.4). Pure.

The official prometheus_client would be one more locked package on every server for these lines; its strict parser, and
promtool, read what is made here in the tests.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from .catalogue import ALL, BY_NAME, Metric

#: Labels of one sample: names and values, in the metric's order.
Labels = tuple[tuple[str, str], ...]
#: Characters of a label's value: names in Prefect may be of any length.
LONGEST = 120


@dataclass(frozen=True)
class Sample:
    """One line."""

    metric: Metric
    value: float
    labels: Labels = ()
    #: _bucket, _sum or _count of a histogram or summary.
    ending: str = ""


def sample(short: str, value: float, ending: str = "", le: str = "", **labels: str) -> Sample:
    """One line of a metric of the catalogue. Raises KeyError for a metric or label that is not in it.

    Args:
        short: the metric's name without the prefix.
        le: the upper bound of a histogram's bucket.
    """
    metric = BY_NAME[short]
    if set(labels) != set(metric.labels):
        raise KeyError(f"{metric.name} has the labels {metric.labels}, not {tuple(labels)}")
    pairs = [(name, labels[name]) for name in metric.labels]
    return Sample(metric, value, tuple(pairs + ([("le", le)] if le else [])), ending)


def short_enough(value: str) -> str:
    """A label's value, cut where it is too long."""
    return value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"


def escaped(value: str) -> str:
    """A label's value between its quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def number(value: float) -> str:
    """A value, or the bound of a bucket; whole numbers without a point."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    whole = float(value).is_integer() and abs(value) < 2**53
    return str(int(value)) if whole else repr(float(value))


def line(one: Sample) -> str:
    """A sample as it is written."""
    labels = ",".join(f'{name}="{escaped(value)}"' for name, value in one.labels)
    return f"{one.metric.name}{one.ending}{f'{{{labels}}}' if labels else ''} {number(one.value)}"


def text(samples: Iterable[Sample]) -> str:
    """The whole file: families in the order of the catalogue, each with HELP and TYPE.

    Of two samples with the same labels the later is taken: a scrape with both would be refused whole.
    """
    families: dict[str, dict[tuple[str, Labels], Sample]] = defaultdict(dict)
    for one in samples:
        labels = tuple((name, short_enough(value)) for name, value in one.labels)
        families[one.metric.name][one.ending, labels] = Sample(one.metric, one.value, labels, one.ending)
    lines = []
    for metric in ALL:
        if found := families.get(metric.name):
            meaning = metric.meaning.replace("\\", "\\\\").replace("\n", "\\n")
            lines += [f"# HELP {metric.name} {meaning}", f"# TYPE {metric.name} {metric.kind}"]
            lines += [line(one) for one in found.values()]
    return "".join(f"{one}\n" for one in lines)
