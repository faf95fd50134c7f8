"""To which worker a request goes, what is in flight there, what happens when the worker dies."""
