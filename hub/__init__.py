"""What lies on the Hugging Face Hub, and how does it get here?

``repository`` lists, reads and fetches what a repository holds at one commit; ``pull`` chooses a
model that is a GGUF already, and brings all that belongs to it.
"""

from __future__ import annotations

from .pull import Pulled, pull
from .repository import parse_repository

__all__ = ["Pulled", "parse_repository", "pull"]
