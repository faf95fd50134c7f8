"""The controller under the name by which a keeper of version 0.1 starts it; goes with the next release."""

import sys

from mmsup.supervisor.controller.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
