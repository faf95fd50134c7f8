"""The controller process: the control loop, recovery, shutdown, upgrade."""
