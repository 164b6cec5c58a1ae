"""What others load, made of an adapter and its record. Light."""
