"""Benchmarks: scripts that are run by path, and the package `benchmarks.gpu`."""
