"""Machine files: reading, checking and writing them, and the machines that come with blockc."""
