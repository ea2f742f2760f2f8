"""Makes the harness importable for the test modules, which also run as scripts, one process per rank."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from shard_ranks import outcome

__all__ = ["outcome"]
