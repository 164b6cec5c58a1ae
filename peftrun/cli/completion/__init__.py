"""Tab completion in bash, zsh and fish: the text that a shell reads once, and the answers to its questions. Light."""
