"""One module a phase: its cases, what a worker does for each, and its table. Nothing heavy is imported before a case runs.

SECONDS       limit of the whole phase
list_cases()  name → Case, in the order in which they run
run_case()    the figures of one case, computed in a worker
build_tables() Markdown of all figures; a phase without it gets a line a case
"""
