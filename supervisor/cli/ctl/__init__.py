"""`mmsup ctl`: commands to a running server over its control socket."""
