"""Options of server and models: names, validation, units, the configuration file."""
