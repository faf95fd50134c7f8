"""`mmsup serve`: flags, checks of the configuration, exec of the keeper."""
