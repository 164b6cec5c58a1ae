"""Completion scripts for `peftrun` and how to unload them. Hydra's own work in bash alone, and change how bash splits every command's words."""

# A shell passes the command up to the cursor in COMP_LINE; the answer has one line per candidate: `candidate<tab>description`.
BASH = r"""_peftrun_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" breaks="${COMP_WORDBREAKS//[^=:]}" typed kept='' one
    typed="${line##*[[:space:]]}"
    # bash puts a reply in the place of what follows the last of its word breaks, not of the whole word.
    [[ -n $breaks ]] && kept="${typed%"${typed##*[$breaks]}"}"
    COMPREPLY=()
    while IFS= read -r one; do
        COMPREPLY+=("${one#"$kept"}")
    done < <(COMP_LINE="$line" "${COMP_WORDS[0]/#\~/$HOME}" -sc query=bash 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} != *[=./] ]] && compopt +o nospace 2>/dev/null
    return 0
}
complete -o nospace -F _peftrun_complete peftrun"""
ZSH = r"""#compdef peftrun
_peftrun() {
    local -a lines open closed open_shown closed_shown
    local line
    lines=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" ${~words[1]} -sc query=zsh 2>/dev/null)}")
    for line in $lines; do
        if [[ ${line%%$'\t'*} == *[=./] ]]; then
            open+=("${line%%$'\t'*}"); open_shown+=("${line//$'\t'/  }")
        elif [[ -n $line ]]; then
            closed+=("${line%%$'\t'*}"); closed_shown+=("${line//$'\t'/  }")
        fi
    done
    compadd -l -d closed_shown -a closed
    compadd -l -S '' -d open_shown -a open
}
if [[ ${funcstack[1]} == _peftrun ]]; then
    _peftrun "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
    compdef _peftrun peftrun
fi"""
FISH = r"""function __peftrun_complete
    set -l typed (commandline -cpo) (commandline -ct)
    set -lx COMP_LINE (string join ' ' -- $typed)
    eval (string escape -- $typed[1]) -sc query=fish 2>/dev/null
end
complete -c peftrun -f -a '(__peftrun_complete)'"""
INSTALL = {"bash": BASH, "zsh": ZSH, "fish": FISH}
UNINSTALL = {
    "bash": "complete -r peftrun; unset -f _peftrun_complete",
    "zsh": "compdef -d peftrun; unfunction _peftrun",
    "fish": "complete -e -c peftrun; functions -e __peftrun_complete",
}
