# Completes options, groups and files with TAB, for the shell that has read it:   source src/completion.bash
#   python -m src.train model=<TAB>
_complete_entry_point() {
    local words=($COMP_LINE) last="" choices
    [[ ${words[1]} == -m && ${words[2]} =~ ^[a-z_]+\.(train|eval|predict|export|sample)$ ]] || return
    [[ $COMP_LINE == *" " ]] || last=${words[-1]}
    choices=$(COMP_LINE="python ${words[2]} ${COMP_LINE#*"${words[2]}"}" "${words[0]}" -m "${words[2]}" -sc query=bash 2> /dev/null)
    COMPREPLY=($(compgen -W "$choices" -- "$last"))
    COMPREPLY=("${COMPREPLY[@]#"${last%"${last##*=}"}"}") # bash completes what stands behind the last =
}
complete -o default -o nospace -F _complete_entry_point python python3 .venv/bin/python
