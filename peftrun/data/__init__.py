"""Reads rows from files, installed packages and the Hub, with values as they are spelled there. Needs no torch."""
