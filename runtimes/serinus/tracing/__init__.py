"""Traces of requests: W3C Trace Context in and out, spans to an OTLP collector; nothing of it is loaded where it is off."""
