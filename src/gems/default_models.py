"""The models of a run that names none: ``open``, or those that the operator's environment names."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["CHAT_MODEL", "GENERATOR"]

CHAT_MODEL: Final = os.environ.get("GEMS_MLLM") or "open"
GENERATOR: Final = os.environ.get("GEMS_GENERATOR") or "open"
