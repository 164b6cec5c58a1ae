"""peftrun"""
