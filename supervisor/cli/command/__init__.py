"""What every command is built from: lazy import, failure with an exit code."""
