"""What every process agrees on: messages, memory, names, errors."""
