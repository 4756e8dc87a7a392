# Only this file knows OpenTelemetry. Nothing of it is imported, and a call pays one comparison, until start() found it wanted.
"""Spans of what wardens do, below the spans that the MCP SDK makes of calls, and of calls that do not come by MCP.

Names and codes only, never arguments.

Configured by OpenTelemetry's own variables (opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ghost_mcp.errors import GhostError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

__all__ = ["begin", "calling", "end", "flush", "start", "started"]

_FLUSH_MS = 5_000
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_log = logging.getLogger(__name__)
_tracer: Tracer | None = None
_provider: TracerProvider | None = None


def start() -> None:
    """Export spans, when the variables ask for it and the extra ``otel`` is installed. Once for a process."""
    global _provider, _tracer
    wanted = _wanted()
    if wanted is None or _provider is not None:
        return
    try:
        exporter = _exporter(wanted)
    except ImportError:
        _log.warning("tracing is configured, but not installed: pip install 'ghost-mcp[otel]'")
        return
    from opentelemetry import trace
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({SERVICE_NAME: "ghost"}).merge(OTELResourceDetector().detect())
    _provider = TracerProvider(resource=named)
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(_provider)
    _tracer = _provider.get_tracer("ghost_mcp")


def started() -> bool:
    """Whether anybody wants spans."""
    return _tracer is not None


def flush() -> None:
    """Send what is waiting to be sent; returns within _FLUSH_MS."""
    if _provider is not None:
        _provider.force_flush(_FLUSH_MS)


def begin(op: str, cave: str) -> Span | None:
    """The span of a warden's operation, below what is under way; None when nobody wants it."""
    if _tracer is None:
        return None
    return _tracer.start_span(f"warden {op}", attributes={"ghost.cave": cave})


def end(span: Span, exc: BaseException | None) -> None:
    """End a span; ``exc`` is what ended the operation, if it did not end well."""
    if exc is not None:
        _blame(span, exc)
    span.end()


@contextmanager
def calling(name: str, headers: Mapping[str, str]) -> Iterator[Callable[[object], None]]:
    """A call of a tool that did not come by MCP, below the span that its headers name (W3C Trace Context).

    Gives a function to be told the outcome.
    """
    if _tracer is None:
        yield _nobody
        return
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    with _tracer.start_as_current_span(
        f"tools/call {name}",
        context=extract(headers),
        kind=SpanKind.SERVER,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield lambda outcome: _blame(span, outcome) if isinstance(outcome, GhostError) else None


def _nobody(outcome: object) -> None:
    """Nobody wants to know."""


def _blame(span: Span, exc: BaseException) -> None:
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR)
    kind = exc.code if isinstance(exc, GhostError) else type(exc).__name__
    span.set_attribute("error.type", kind)


def _wanted() -> str | None:
    """The exporter's name, None for none."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if named:
        return None if named == "none" else named
    return "otlp" if any(os.environ.get(name) for name in _ENDPOINTS) else None


def _exporter(name: str) -> SpanExporter:
    """Raises ImportError when the extra is missing."""
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        # Standard output may be a protocol's.
        return ConsoleSpanExporter(
            out=sys.stderr, formatter=lambda span: span.to_json(indent=None) + "\n"
        )
    if name != "otlp":
        _log.warning(
            "OTEL_TRACES_EXPORTER is %r; known are otlp, console and none: taking otlp", name
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
