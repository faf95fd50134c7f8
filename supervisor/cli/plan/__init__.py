"""`mmsup plan`: which models fit, and who would have to go."""
