"""What the operating system tells of this process."""
