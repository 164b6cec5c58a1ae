"""What is learned: rows and metrics, one file a kind."""
