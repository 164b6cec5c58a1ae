"""Catalog of runs and adapters: an index of their records, filter queries, tables, and a web page. Light."""
