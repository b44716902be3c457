"""Structural metrics of the code: `python jobs/benchmark.py structure [--tree FOLDER]`.

one step of a run in this process ──sys.setprofile──► project functions between the command and each loss
every file of a tree ──ast──► functions that receive the whole config, long files, functions and classes
"""

from __future__ import annotations

import ast
import io
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from jobs import ROOT

PACKAGES = ("jobs", "pipeline", "snps3_model", "cluster")
CONFIG = "PretrainConfig"
LOSSES = "snps3_model/losses.py"
MAX_LINES = {"file": 400, "function": 50, "class": 200}
INLINE = ("<listcomp>", "<dictcomp>", "<setcomp>")
"""Comprehensions: Python 3.11 gives them frames of their own, 3.12 does not, so they are not counted."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def structure(tree: str | None = None) -> dict[str, Any]:
    """Return the figures of this tree; of another tree, such as an earlier version, only those of its source files."""
    figures = source_figures(Path(tree) if tree else ROOT)
    return figures if tree else {**hops(), **figures}


# --- from a command to a loss -----------------------------------------------------------------------------------------


class LossStacks:
    """A profile function that keeps, for each function of losses.py, its longest stack of project functions."""

    def __init__(self) -> None:
        self.stacks: dict[str, list[str]] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not frame.f_code.co_filename.endswith(LOSSES):  # millions of calls
            return
        if frame.f_code.co_name == "<module>":  # its import
            return
        if not (names := list(project_functions(frame))) or not names[0].startswith(LOSSES):
            return
        names = names[: next(i for i, name in enumerate(names) if name.endswith(":main")) + 1]
        between, name = names[1:-1], names[0].partition(":")[2]
        is_inner = any(outer.startswith(LOSSES) for outer in between)
        if not is_inner and len(between) >= len(self.stacks.get(name, ())):
            self.stacks[name] = between[::-1]


def project_functions(frame: FrameType | None) -> Iterator[str]:
    """Yield file and name of the functions of this project on the stack, the innermost first."""
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and frame.f_code.co_name not in INLINE:
            relative = path.relative_to(ROOT)
            if relative.parts[0] in PACKAGES:
                yield f"{relative.as_posix()}:{frame.f_code.co_name}"
        frame = frame.f_back


def hops() -> dict[str, Any]:
    """Pre-train one step in this process and return the number of project functions between `main` of the command and
    each function of losses.py. The rank's entry function counts as called by the submit."""
    from jobs import pretrain
    from jobs.benchmarks.support.one_process import in_one_process, make_clips, small_options

    stacks = LossStacks()
    with tempfile.TemporaryDirectory() as folder, in_one_process():
        words = small_options(make_clips(Path(folder)), Path(folder, "runs"), num_steps=1)
        sys.setprofile(stacks)
        try:
            status = pretrain.main(words)
        finally:
            sys.setprofile(None)
    if status or not stacks.stacks:
        raise RuntimeError(f"the measured run ended with status {status} and {len(stacks.stacks)} losses")
    longest = max(stacks.stacks.values(), key=len)
    by_function = {name: len(stack) for name, stack in sorted(stacks.stacks.items())}
    return {"hops": len(longest), "longest": longest, "hops_by_function": by_function}


# --- source files -----------------------------------------------------------------------------------------------------


def source_figures(tree: Path) -> dict[str, Any]:
    """Return receivers of the whole config, definitions and files longer than `MAX_LINES`, and the share of
    comments."""
    sources = {path.relative_to(tree).as_posix(): path.read_text() for path in source_files(tree)}
    modules = {path: ast.parse(source) for path, source in sources.items()}
    receivers = whole_config_receivers(modules)
    num_lines, num_comments = (
        sum(len(text.splitlines()) for text in sources.values()),
        sum(map(comments, sources.values())),
    )
    return {
        "receivers": len(receivers),
        "receivers_by_package": dict(Counter(name.split("/")[0] for name in receivers)),
        "receivers_list": receivers,
        "long_files": {path: n for path, text in sources.items() if (n := len(text.splitlines())) > MAX_LINES["file"]},
        "long_functions": long_definitions(modules, Function, MAX_LINES["function"]),
        "long_classes": long_definitions(modules, ast.ClassDef, MAX_LINES["class"]),
        "comment_share": num_comments / num_lines,
        "lines": num_lines,
    }


def source_files(tree: Path) -> list[Path]:
    """Return the Python files of the packages in a tree."""
    return sorted(path for package in PACKAGES for path in (tree / package).rglob("*.py"))


def comments(source: str) -> int:
    """Return the number of lines with a comment."""
    return sum(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(source).readline))


def long_definitions(modules: Mapping[str, ast.Module], kind: Any, max_lines: int) -> dict[str, int]:
    """Return the definitions of a kind with more than `max_lines` lines, decorators not counted."""
    return {
        f"{path}:{node.name}": lines
        for path, module in modules.items()
        for node in map(_any, ast.walk(module))
        if isinstance(node, kind) and (lines := node.end_lineno - node.lineno + 1) > max_lines
    }


def _any(node: Any) -> Any:
    return node


def whole_config_receivers(modules: dict[str, ast.Module]) -> list[str]:
    """Return the functions that receive the whole config of a run.

    A function receives it through a parameter annotated with `PretrainConfig` or a class with such a field, through
    `self` of such a class, or through an unspecific parameter (`Any`, `**options`, no annotation) to which a receiver
    passes it.
    """
    holders = holding_names(modules)
    functions = dict(all_functions(modules))
    receivers = {
        name
        for name, (function, owner) in functions.items()
        if owner in (known := holders[name.partition(":")[0]]) - {CONFIG}
        or any(names_any(known, part) for _, part in parameters(function))
    }
    by_name: dict[str, list[str]] = {}
    for name in functions:
        by_name.setdefault(name.rpartition(":")[2].rpartition(".")[2], []).append(name)
    while passed := {
        callee
        for name in receivers
        for callee in passed_on(functions[name][0], holders[name.partition(":")[0]], by_name, functions)
        if callee not in receivers
    }:
        receivers |= passed
    return sorted(receivers)


def holding_names(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Return by file the names, defined or imported there, of the config class and of classes that hold a config."""
    defined = {path: holding_classes(module) for path, module in modules.items()}
    names = {path: {CONFIG} | classes for path, classes in defined.items()}
    for path, module in modules.items():
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom):
                home = str(node.module).replace(".", "/")
                names[path] |= {part.name for part in node.names if part.name in defined.get(f"{home}.py", ())}
                for part in node.names:  # `from jobs.room import module` makes `module.Class` possible
                    classes = defined.get(f"{home}/{part.name}.py", set())
                    names[path] |= {f"{part.asname or part.name}.{name}" for name in classes}
    return names


def holding_classes(module: ast.Module) -> set[str]:
    """Return the classes that hold a whole config in a field, or in an attribute that `__init__` sets."""
    holders = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            fields = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
            starts = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
            fields += [annotation for start in starts for _, annotation in parameters(start) if annotation]
            if any(names_any({CONFIG}, field) for field in fields):
                holders.add(node.name)
    return holders


def all_functions(modules: dict[str, ast.Module]) -> Iterator[tuple[str, tuple[Function, str | None]]]:
    """Yield path and name of each function, with its node and the class that it is a method of."""

    def below(node: ast.AST, path: str, owner: str | None) -> Iterator[tuple[str, tuple[Function, str | None]]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield f"{path}:{f'{owner}.' if owner else ''}{child.name}", (child, owner)
                yield from below(child, path, None)
            else:
                yield from below(child, path, child.name if isinstance(child, ast.ClassDef) else owner)

    for path, module in modules.items():
        yield from below(module, path, None)


def parameters(function: Function) -> list[tuple[str, ast.expr | None]]:
    """Return names and annotations of the parameters."""
    arguments = function.args
    extra = [part for part in (arguments.vararg, arguments.kwarg) if part]
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]
    return [(part.arg, part.annotation) for part in every]


def names_any(names: set[str], annotation: ast.expr | None) -> bool:
    """Return whether an annotation has one of `names` outside the result of a `Callable`."""
    if annotation is None:
        return False
    text = annotation.value if isinstance(annotation, ast.Constant) else None
    try:
        node = ast.parse(text, mode="eval").body if isinstance(text, str) else annotation
    except SyntaxError:  # a shape of jaxtyping
        return False
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Callable"):
        return False
    if isinstance(node, ast.Name | ast.Attribute):
        name = ast.unparse(node)
        return name in names or name.rpartition(".")[2] == CONFIG
    return any(names_any(names, child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))


def passed_on(
    function: Function,
    holders: set[str],
    by_name: dict[str, list[str]],
    functions: dict[str, tuple[Function, str | None]],
) -> Iterator[str]:
    """Yield the functions that receive a receiver's parameter unchanged through an unspecific parameter."""
    receiving = {name for name, annotation in parameters(function) if names_any(holders, annotation)}
    for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
        callees = by_name.get(ast.unparse(call.func).rpartition(".")[2], [])
        if len(callees) != 1:
            continue
        takes = [pair for pair in parameters(functions[callees[0]][0]) if pair[0] not in ("self", "cls")]
        arguments = dict(zip([name for name, _ in takes], call.args, strict=False))
        arguments |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        for name, annotation in takes:
            value = arguments.get(name)
            is_unspecific = annotation is None or ast.unparse(annotation) in ("Any", "object")
            if is_unspecific and isinstance(value, ast.Name) and value.id in receiving:
                yield callees[0]
