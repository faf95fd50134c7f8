"""Settings of a compared server, from the environment variables that the harness sets."""

import os

NAMES = os.environ["NAMES"].split(",")
PORT = int(os.environ["PORT"])
SHAPE = tuple(int(each) for each in os.environ["SHAPE"].split(","))
BINARY = os.environ["BINARY"] == "1"
LARGE = os.environ["LARGE"] == "1"
MAX_BATCH = int(os.environ["MAX_BATCH"])
"""0: no batching."""
MAX_DELAY_S = float(os.environ["MAX_DELAY_S"])
LIMIT_S = float(os.environ["LIMIT_S"])
"""After so long a run counts as hung."""
