"""What must survive: desired state, checkpoint, atomic files."""
