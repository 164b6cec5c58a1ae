"""Merges an adapter into its base model, and verifies the merged model."""
