"""Co-location groups: worker processes that several models share."""
