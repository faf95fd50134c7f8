"""`python -m mmsup.supervisor.cli`: the same as the command `mmsup`."""

from mmsup.supervisor.cli.main import main

if __name__ == "__main__":
    main(prog_name="mmsup")
