"""The command line: `mmsup serve`, `check`, `ctl`."""
