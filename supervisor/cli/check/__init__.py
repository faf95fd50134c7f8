"""`mmsup check`: report on configuration and repositories."""
