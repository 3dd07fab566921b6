"""These tests run in the environment with MLServer (see tests/hosts/test_mlserver.py); in any other there is nothing to collect."""

from __future__ import annotations

import importlib.util

HAS_MLSERVER = importlib.util.find_spec("mlserver") is not None
collect_ignore_glob = [] if HAS_MLSERVER else ["*"]
if HAS_MLSERVER:
    from shared_servers import empty, framework_models, frameworks, model_file, ours, stock  # noqa: F401 # fixtures
