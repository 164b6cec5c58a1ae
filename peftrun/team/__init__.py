"""Packages of configs that a team shares: where they are found, what they ask for, whether they resolve. Light."""
