"""The report of a training run: one HTML page, written from the run folder's files. Light."""
