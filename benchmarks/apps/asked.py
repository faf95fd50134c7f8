"""What is asked of a server, from the environment that the harness gives it."""

import os

NAMES = os.environ["NAMES"].split(",")
PORT = int(os.environ["PORT"])
SHAPE = tuple(int(each) for each in os.environ["SHAPE"].split(","))
BINARY = os.environ["BINARY"] == "1"
LARGE = os.environ["LARGE"] == "1"
MAX_BATCH = int(os.environ["MAX_BATCH"])
"""0 where it shall not batch."""
MAX_DELAY_S = float(os.environ["MAX_DELAY_S"])
LIMIT_S = float(os.environ["LIMIT_S"])
"""After which a run is taken for hung."""
