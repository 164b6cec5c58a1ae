"""The process and the machine: determinism, environment, memory, packages, sockets."""
