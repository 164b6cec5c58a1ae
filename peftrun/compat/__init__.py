"""What third-party libraries keep private and peftrun needs, under public names: a module a library, each named after the version it was read in."""
