"""Prometheus metrics of the web process, and of the queue that all processes share."""

import logging
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from smart_audit.documents import Backlog
from smart_audit.errors import Unavailable

log = logging.getLogger(__name__)

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAIT_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)


class _QueueCollector(Collector):
    """Asks Postgres and Valkey when Prometheus asks us, and says so if they do not answer."""

    def __init__(self, backlog: Callable[[], Backlog], stream_length: Callable[[], int]) -> None:
        self._backlog = backlog
        self._stream_length = stream_length

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("smart_audit_dependency_up", "Whether a service answered this scrape.", labels=["service"])
        try:
            backlog = self._backlog()
        except Unavailable as error:
            log.warning("no queue depth from the database", extra={"fields": {"error": str(error)}})
            up.add_metric(["database"], 0)
        else:
            up.add_metric(["database"], 1)
            yield from _families(backlog)
        try:
            length = self._stream_length()
        except Unavailable as error:
            log.warning("no stream length from Valkey", extra={"fields": {"error": str(error)}})
            up.add_metric(["valkey"], 0)
        else:
            up.add_metric(["valkey"], 1)
            yield GaugeMetricFamily("smart_audit_stream_length", "Messages in the stream not dealt with.", value=length)
        yield up


def _families(backlog: Backlog) -> Iterable[Metric]:
    documents = GaugeMetricFamily("smart_audit_documents", "Documents by state.", labels=["status"])
    for status, count in backlog.documents_by_status.items():
        documents.add_metric([status], count)
    yield documents
    outbox = GaugeMetricFamily("smart_audit_outbox_due", "Outbox rows that are due, by kind.", labels=["kind"])
    for kind, count in backlog.outbox_by_kind.items():
        outbox.add_metric([kind], count)
    yield outbox
    yield GaugeMetricFamily(
        "smart_audit_queue_depth",
        "Documents that are accepted and not finished.",
        value=backlog.documents_by_status["queued"] + backlog.documents_by_status["processing"],
    )
    yield GaugeMetricFamily(
        "smart_audit_oldest_unfinished_document_seconds",
        "Age of the oldest document that is not finished.",
        value=backlog.oldest_unfinished_seconds,
    )


class Metrics:
    """The registry and what is counted in it."""

    def __init__(self, backlog: Callable[[], Backlog], stream_length: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "smart_audit_http_request_duration_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ["method", "route", "status"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge("smart_audit_http_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.pool_wait = Histogram(
            "smart_audit_database_pool_wait_seconds",
            "Time that a use of the database waited for its connection.",
            buckets=_WAIT_BUCKETS,
            registry=self.registry,
        )
        self.login_failures = Counter("smart_audit_login_failures", "Logins refused since the process started.", registry=self.registry)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_QueueCollector(backlog, stream_length))
