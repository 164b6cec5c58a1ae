"""Where values come from, how two configs differ, and what was read of them. Light."""
