"""Tools that run at whoever made a protocol, not at the client, and not here."""

from __future__ import annotations

import logging
from functools import lru_cache

logger = logging.getLogger(__name__)


@lru_cache(100)
def tell_left_out(kind: str) -> None:
    """Say once that a tool is not shown to the model."""
    logger.warning("requests have the tool %s, which does not run here: it is left out", kind)
