"""Convert configs of other tools into experiments."""
