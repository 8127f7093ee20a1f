"""Lets what stands in `over_http` be imported from here: the made version, and who sends requests."""

import sys
from pathlib import Path

OVER_HTTP = Path(__file__).parents[1] / "over_http"
sys.path.insert(0, str(OVER_HTTP))
