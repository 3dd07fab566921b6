"""What every test session needs."""

from __future__ import annotations

import importlib.util

from google.protobuf import descriptor_pool


def _import_tritonclient_apart() -> None:
    """Import tritonclient.grpc with a descriptor pool of its own.

    KServe's package and tritonclient's both register the messages of package `inference` in protobuf's default pool, and the
    second to be imported fails: no program can use both. The tests use both, as peers of ours, in one process.
    """
    if importlib.util.find_spec("tritonclient") is None:
        return
    apart, default = descriptor_pool.DescriptorPool(), descriptor_pool.Default
    descriptor_pool.Default = lambda: apart
    try:
        import tritonclient.grpc  # noqa: F401
    finally:
        descriptor_pool.Default = default


_import_tritonclient_apart()


def _let_examples_take_their_time() -> None:
    """How long one takes to draw or to run is the machine's doing, and no property is about time."""
    if importlib.util.find_spec("hypothesis") is None:  # MLServer's environment
        return
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


_let_examples_take_their_time()
