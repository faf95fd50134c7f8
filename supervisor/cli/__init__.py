"""The command line `mmsup`, with a sub-package for each command."""
