"""What is in a model's files, as far as it can be read without running code; for `mmsup check`."""
