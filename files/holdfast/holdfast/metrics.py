"""Metrics for node_exporter's textfile collector: one file a topic, replaced as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from holdfast import durable
from holdfast.failure import Failure

FOLDER = Path("/var/lib/prometheus/node-exporter")


@dataclass(frozen=True)
class Gauge:
    """One metric.

    Attributes:
        name: its full name, with the unit at the end.
        help: what it measures, in one sentence.
        value: the value, where it has no labels.
        labelled: values by labels, where it has some; each key is a tuple of (label, value) pairs.
    """

    name: str
    help: str
    value: float | None = None
    labelled: Mapping[tuple[tuple[str, str], ...], float] = field(default_factory=dict)

    def samples(self) -> Iterable[tuple[str, float]]:
        """Give each sample as its name with labels, and its value."""
        if self.value is not None:
            yield self.name, self.value
        for labels, value in self.labelled.items():
            inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
            yield f"{self.name}{{{inner}}}", value


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def path_of(topic: str) -> Path:
    """Say where a topic's metrics lie."""
    return FOLDER / f"holdfast_{topic}.prom"


def write(topic: str, gauges: Iterable[Gauge]) -> None:
    """Replace a topic's metrics, at once for whoever reads them.

    Raises:
        Failure: the folder can't be written.
    """
    lines = []
    for gauge in gauges:
        if samples := list(gauge.samples()):
            lines += [f"# HELP {gauge.name} {gauge.help}", f"# TYPE {gauge.name} gauge"]
            lines += [f"{name} {value:.17g}" for name, value in samples]
    try:
        durable.write(path_of(topic), ("\n".join(lines) + "\n").encode(), 0o644)
    except OSError as error:
        raise Failure(
            f"The metrics of {topic} can't be written to {FOLDER} ({error.strerror}): run `ansible-playbook site.yml --tags holdfast`."
        ) from error


def read(topic: str) -> dict[str, float]:
    """Return what a topic's file holds, by name with labels; nothing where there is none or it is damaged."""
    try:
        lines = path_of(topic).read_text(encoding="utf-8").splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line and line[0] != "#")}
    except (OSError, ValueError):
        return {}
