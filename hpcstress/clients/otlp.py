"""Spans as OpenTelemetry's protocol carries them, for MLflow's traces."""

from __future__ import annotations

from hpcstress.content import Trace
from hpcstress.errors import Refusal


def require() -> None:
    """Refuse to send spans where their encoding is not installed; import it before the load begins."""
    try:
        import opentelemetry.proto.collector.trace.v1.trace_service_pb2  # noqa: F401
    except ImportError as error:
        raise Refusal(f"Traces need {error.name}: run `pip install 'hpcstress[traces]'`.") from None


def spans_body(trace: Trace) -> bytes:
    """Return the protobuf of an ExportTraceServiceRequest: one root span, all others its children."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(trace.spans):
        span = scope.spans.add(
            trace_id=bytes.fromhex(trace.number),
            span_id=(number + 1).to_bytes(8, "big"),
            parent_span_id=(1).to_bytes(8, "big") if number else b"",
            name=f"span-{number}",
            start_time_unix_nano=trace.start_ns + number * 1000,
            end_time_unix_nano=trace.start_ns + trace.spans * 1000,
        )
        span.attributes.add(key="hpcstress.session").value.string_value = trace.session
    return bytes(request.SerializeToString())
