"""Sweeps: many runs planned, grouped on one base, run, resumed and summed up."""
