"""Tab completion for bash, zsh and fish: the script each shell loads, and the candidates it asks for. Light."""
