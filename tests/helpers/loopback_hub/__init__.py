"""A Hub on loopback for the tests: enough of huggingface.co for the real client to publish to and load from."""

from .server import LoopbackHub
from .store import Repo, Store

__all__ = ["LoopbackHub", "Repo", "Store"]
