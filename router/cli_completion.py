"""Completion scripts for bash, zsh and fish, made from the parser itself, so that they know what it knows.

Names of nodes and models are asked of the running router when a word is completed, quietly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

SHELLS = ("bash", "zsh", "fish")
# What stands for a value, by the placeholder that the help shows for it.
ASKED = {"NODE": "nodes", "MODEL": "models"}
FILES = frozenset({"FILE", "FILE.svg", "SCENARIO.yaml"})


@dataclass(frozen=True, slots=True)
class Value:
    """`choices` are all there are; `asks` is a command whose --names are completed; else files, or anything."""

    placeholder: str
    choices: tuple[str, ...] = ()
    asks: str = ""
    is_file: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    flags: tuple[str, ...]
    text: str
    value: Value | None  # None for a switch


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    text: str
    options: tuple[Option, ...]
    argument: Value | None


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    return _SCRIPTS[shell](parser.prog, _commands(parser))


def _commands(parser: argparse.ArgumentParser) -> list[Command]:
    (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    texts = {choice.dest: choice.help or "" for choice in group._choices_actions}
    return [_command(name, texts.get(name, ""), found) for name, found in group.choices.items()]


def _command(name: str, text: str, parser: argparse.ArgumentParser) -> Command:
    options = tuple(
        Option(tuple(action.option_strings), action.help or "", None if action.nargs == 0 else _value(action))
        for action in parser._actions
        if action.option_strings
    )
    argument = next((_value(action) for action in parser._actions if not action.option_strings), None)
    return Command(name, text, options, argument)


def _value(action: argparse.Action) -> Value:
    placeholder = action.metavar if isinstance(action.metavar, str) else action.dest
    choices = tuple(map(str, action.choices or ()))
    return Value(placeholder, choices, ASKED.get(placeholder, ""), placeholder in FILES)


# --- bash

# Words are split here and not by bash, which takes the colon of llama3.2:3b for the end of one; what stands before the
# last colon is taken off again, since bash replaces only what follows it. Nothing that a router answers is expanded.
_BASH = """\
# bash completion for {prog}:  source <({prog} completion bash)
_{function}() {{
    local line=${{COMP_LINE:0:COMP_POINT}} cur prev command= name
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur=${{words[${{#words[@]}}-1]}}
    prev=${{words[${{#words[@]}}-2]}}
    [[ ${{#words[@]}} -gt 2 ]] && command=${{words[1]}}
    COMPREPLY=()
    case $command:$prev in
{values}
    esac
    if [[ $cur == -* ]]; then
        case $command in
{options}
        esac
        return
    fi
    case $command in
{arguments}
    esac
}}
_{function}_words() {{
    local cur=$1 word
    while IFS= read -r word; do
        [[ -n $word && $word == "$cur"* ]] && COMPREPLY+=("$(printf %q "${{word#"${{cur%"${{cur##*:}}"}}"}}")")
    done
}}
complete -F _{function} {prog}
"""


def _bash(prog: str, commands: list[Command]) -> str:
    function = prog.replace("-", "_")
    values = [line for command in commands for line in _bash_values(function, command)]
    options = [
        f"            {command.name}) {_bash_list(function, [flag for o in command.options for flag in o.flags])} ;;"
        for command in commands
    ]
    first = [f"        '') {_bash_list(function, [command.name for command in commands])} ;;"]
    arguments = [
        f"        {command.name}) {_bash_value(function, command.argument)} ;;"
        for command in commands
        if command.argument is not None
    ]
    return _BASH.format(
        prog=prog,
        function=function,
        values="\n".join(values),
        options="\n".join(options),
        arguments="\n".join(first + arguments),
    )


def _bash_values(function: str, command: Command) -> Iterator[str]:
    """What follows an option that takes a value."""
    for option in command.options:
        if option.value is not None:
            cases = "|".join(f"{command.name}:{flag}" for flag in option.flags)
            yield f"        {cases}) {_bash_value(function, option.value)}; return ;;"


def _bash_value(function: str, value: Value) -> str:
    if value.choices:
        return _bash_list(function, list(value.choices))
    if value.asks:
        return f'_{function}_words "$cur" < <("${{words[0]}}" {value.asks} --names 2>/dev/null)'
    return f'_{function}_words "$cur" < <(compgen -f -- "$cur")' if value.is_file else ":"


def _bash_list(function: str, words: list[str]) -> str:
    return f"_{function}_words \"$cur\" < <(printf '%s\\n' {' '.join(words)})"


# --- zsh

_ZSH = """\
#compdef {prog}
# zsh completion for {prog}:  {prog} completion zsh > "${{fpath[1]}}/_{prog}"
_{function}_names() {{
    local -a names
    names=("${{(@f)$({prog} $1 --names 2>/dev/null)}}")
    compadd -a names
}}
_{function}() {{
    local context state line
    local -a commands
    commands=(
{commands}
    )
    _arguments -C '1:command:->command' '*::argument:->argument'
    case $state in
        command) _describe -t commands command commands ;;
        argument)
            case $words[1] in
{arguments}
            esac
            ;;
    esac
}}
if [[ $funcstack[1] == _{prog} ]]; then
    _{function} "$@"
else
    compdef _{function} {prog}
fi
"""


def _zsh(prog: str, commands: list[Command]) -> str:
    function = prog.replace("-", "_")
    names = [f"        {_quoted(f'{command.name}:{command.text}')}" for command in commands]
    arguments = [
        f"                {command.name}) _arguments {' '.join(_zsh_arguments(function, command))} ;;"
        for command in commands
    ]
    return _ZSH.format(prog=prog, function=function, commands="\n".join(names), arguments="\n".join(arguments))


def _zsh_arguments(function: str, command: Command) -> Iterator[str]:
    for option in command.options:
        text = option.text.translate(_ZSH_ESCAPES)
        for flag in option.flags:
            value = "" if option.value is None else _zsh_value(function, option.value)
            yield _quoted(f"*{flag}[{text}]{value}")
    if command.argument is not None:
        yield _quoted(f"1{_zsh_value(function, command.argument)}")


def _zsh_value(function: str, value: Value) -> str:
    action = " "
    if value.choices:
        action = f"({' '.join(value.choices)})"
    elif value.asks:
        action = f"{{_{function}_names {value.asks}}}"
    elif value.is_file:
        action = "_files"
    return f":{value.placeholder}:{action}"


_ZSH_ESCAPES = str.maketrans({"[": "\\[", "]": "\\]", ":": "\\:", "\\": "\\\\"})


# --- fish


def _fish(prog: str, commands: list[Command]) -> str:
    lines = [
        f"# fish completion for {prog}:  {prog} completion fish > ~/.config/fish/completions/{prog}.fish",
        f"complete -c {prog} -f",
    ]
    lines += [
        f"complete -c {prog} -n __fish_use_subcommand -a {command.name} -d {_fish_quoted(command.text)}"
        for command in commands
    ]
    for command in commands:
        within = f"complete -c {prog} -n '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            value = "" if option.value is None else f" -r{_fish_value(prog, option.value)}"
            lines.append(f"{within} {flags}{value} -d {_fish_quoted(option.text)}")
        if command.argument is not None:
            lines.append(f"{within}{_fish_value(prog, command.argument)}")
    return "\n".join(lines) + "\n"


def _fish_value(prog: str, value: Value) -> str:
    if value.choices:
        return f" -f -a {_fish_quoted(' '.join(value.choices))}"
    if value.asks:
        return f" -f -a '({prog} {value.asks} --names 2>/dev/null)'"
    return " -F" if value.is_file else " -f"


def _quoted(text: str) -> str:
    """For bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS: Mapping[str, Callable[[str, list[Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
