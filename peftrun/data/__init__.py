"""Rows as they are stored: files, installed packages, the Hub, each read to the values that were written. No torch."""
