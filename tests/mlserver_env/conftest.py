"""These tests run in the environment with MLServer (see tests/test_hosts_mlserver.py); in any other there is nothing to collect."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("mlserver") else ["*"]
