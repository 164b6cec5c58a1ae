"""Preview of training rows: text with the learned part marked, tokens, and counts of dropped rows. No torch."""
