"""Text for a terminal: tables, views of JSON results, progress."""
