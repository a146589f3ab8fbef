"""What the operating system and the C library know about this process."""
