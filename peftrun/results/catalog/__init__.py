"""Runs and adapters found again: an index of their records, a language to ask it, tables, and a web page. Light."""
