"""Prometheus metrics of a service. Replicas of a machine share a folder, so that each of them answers for all."""

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from urllib.parse import quote

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.service.request_log import GIVEN_HEADER, REQUEST_ID_HEADER, RequestLog, request_id
from serve_apps.service.reserved_file import reserve_metrics

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported
MODEL_HEADER = "x-rayrec-model"
ANSWERING = "rayrec.answering"  # in the scope of a request: name and version of the model that answers it
FAILED = "rayrec.failed"  # in the scope of a request that gets a 5xx: what kind of failure it was
_BATCH = (1, 2, 4, 8, 16, 32, 64)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class ServingMetrics:
    """shown_predicted over feedback_positives is the calibration of a task and version, as far as users have answered by now.
    predicted_probability over predictions is the mean prediction of a task over all that was ranked.
    unknown_values over predictions is the share of a category's values that training never saw.
    The rate of the sum of queue_seconds is how many requests wait on average (Little's law)."""

    def __init__(self) -> None:
        reserve_metrics()
        self._registry = CollectorRegistry()
        self._folder = os.environ.get(FOLDER_VARIABLE)
        r = self._registry
        self.requests = Counter("rayrec_requests", "Answered requests", ("path", "status"), registry=r)
        self.seconds = Histogram(
            "rayrec_request_seconds", "Time in the replica", ("path",), buckets=_SECONDS, registry=r
        )
        self.errors = Counter(
            "rayrec_errors",
            "Requests that a replica failed (5xx), by what stood in the way",
            ("path", "kind"),
            registry=r,
        )
        self.running = Gauge("rayrec_running_requests", "Requests in work", multiprocess_mode="livesum", registry=r)
        self.batch = Histogram("rayrec_batch_requests", "Requests in one forward pass", buckets=_BATCH, registry=r)
        self.queue_seconds = Histogram(
            "rayrec_queue_seconds", "Time that a request waited for its batch", buckets=_SECONDS, registry=r
        )
        self.predictions = Counter("rayrec_predictions", "Scored candidates", ("task",), registry=r)
        self.predicted_probability = Counter(
            "rayrec_predicted_probability", "Sum of predicted probabilities", ("task",), registry=r
        )
        self.unknown_values = Counter(
            "rayrec_unknown_values", "Values of candidates that a vocabulary lacks", ("feature",), registry=r
        )
        self.model = Gauge(
            "rayrec_model_replicas",
            "Replicas that serve a version",
            ("model",),
            multiprocess_mode="livesum",
            registry=r,
        )
        # Of a cascade. stage: "retrieve", "features", "early", "late".
        self.stage_seconds = Histogram(
            "rayrec_stage_seconds", "Time of a stage, as its asker sees it", ("stage",), buckets=_SECONDS, registry=r
        )
        self.stage_batch = Histogram(
            "rayrec_stage_batch_requests",
            "Requests in one forward pass of a stage",
            ("stage",),
            buckets=_BATCH,
            registry=r,
        )
        self.stage_queue_seconds = Histogram(
            "rayrec_stage_queue_seconds",
            "Time that a request waited in a stage for its batch",
            ("stage",),
            buckets=_SECONDS,
            registry=r,
        )
        self.stage_late = Counter(
            "rayrec_stage_late", "Requests whose deadline cut a stage short", ("stage",), registry=r
        )
        self.stage_errors = Counter(
            "rayrec_stage_errors", "Requests that a stage failed, by kind", ("stage", "kind"), registry=r
        )
        self.without_features = Counter(
            "rayrec_candidates_without_features", "Retrieved items that the feature table lacks", registry=r
        )
        self.log_lines_lost = Counter(
            "rayrec_request_log_lines_lost", "Requests whose line the log's disk did not take", registry=r
        )
        # Of the log of decisions.
        self.decisions = Counter(
            "rayrec_decisions",
            "Answers, by whether they are known to be on disk: kept, unkept",
            ("outcome",),
            registry=r,
        )
        self.shadow = Counter(
            "rayrec_shadow",
            "Answers that a shadow ranker was to score too: kept, unkept, failed, skipped",
            ("outcome",),
            registry=r,
        )
        self.feedback = Counter(
            "rayrec_feedback",
            "Events: accepted, duplicate, conflicting, late, unknown, wrong, unkept",
            ("outcome",),
            registry=r,
        )
        self.shown = Counter(
            "rayrec_shown_items", "Items in logged answers with a prediction", ("task", "model"), registry=r
        )
        self.shown_predicted = Counter(
            "rayrec_shown_predicted",
            "Sum of the probabilities, by which items in logged answers were expected to be positive",
            ("task", "model"),
            registry=r,
        )
        self.feedback_positives = Counter(
            "rayrec_feedback_positives", "Items of which feedback said yes", ("task", "model"), registry=r
        )
        self.load_failures = Counter("rayrec_model_load_failures", "Versions that could not be loaded", registry=r)

    def page(self) -> Response:
        """The exposition of all replicas on this machine."""
        if self._folder is None:
            return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
        for file in Path(self._folder).glob("gauge_live*_*.db"):
            process = int(file.stem.rpartition("_")[2])
            if not Path(f"/proc/{process}").exists():  # a killed replica
                mark_process_dead(process, self._folder)
        joint = CollectorRegistry()
        MultiProcessCollector(joint, self._folder)
        return Response(generate_latest(joint), media_type=CONTENT_TYPE_LATEST)


class Observed:
    """ASGI middleware: counts, times and logs requests, and names the request and the served model (URL-quoted) in headers of
    each reply.

    paths: those told apart in the metrics; "/v1/items/{item}" stands for all below "/v1/items/". label: the version
    in force, for replies that no version has answered.
    """

    def __init__(
        self, app: ASGIApp, metrics: ServingMetrics, paths: frozenset[str], label: Callable[[], str], log: RequestLog
    ) -> None:
        self._app, self._metrics, self._paths, self._label, self._log = app, metrics, paths, label, log
        self._below = {path.partition("{")[0]: path for path in paths if "{" in path}

    def _label_of(self, path: str) -> str:
        if path in self._paths:
            return path
        return next((named for below, named in self._below.items() if path.startswith(below)), "other")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = self._label_of(scope["path"])
        status, model = 500, ""
        name = request_id(Headers(scope=scope).get(GIVEN_HEADER))

        async def send_named(message: Message) -> None:
            nonlocal status, model
            if message["type"] == "http.response.start":
                status, model = message["status"], scope.get(ANSWERING) or self._label()
                headers = MutableHeaders(scope=message)
                headers[MODEL_HEADER], headers[REQUEST_ID_HEADER] = quote(model, safe="/ "), name
            await send(message)

        started = perf_counter()
        self._metrics.running.inc()
        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            scope[FAILED] = type(error).__name__
            raise
        finally:
            self._metrics.running.dec()
            seconds = perf_counter() - started
            self._metrics.seconds.labels(path).observe(seconds)
            self._metrics.requests.labels(path, str(status)).inc()
            failed = {"error": scope[FAILED]} if FAILED in scope else {}
            for kind in failed.values():
                self._metrics.errors.labels(path, kind).inc()
            line = {
                "id": name,
                "method": scope["method"],
                "path": path,
                "status": status,
                "ms": round(1e3 * seconds, 3),
            }
            self._log.write({**line, "model": model, **failed})
