"""`python -m mmsup.supervisor.keeper settings=FD`."""

import sys

from mmsup.supervisor.keeper.bootstrap import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
