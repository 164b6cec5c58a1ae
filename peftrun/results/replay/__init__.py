"""A record run again: what it stood on then and now, and how far what comes out is from what came out."""
