"""Run a recorded run again: compare its inputs then and now, and its outcome with the recorded one."""
