"""Models that are loaded when somebody asks for them, and put to sleep when nobody does."""
