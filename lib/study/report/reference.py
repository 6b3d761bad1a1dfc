"""The API reference: every public name of ffmerge, from its docstring.

    python -m study.report.reference

writes docs/api.md anew; a test tells when it is older than the docstrings.
"""

import ast
from pathlib import Path

import ffmerge
from study.config import find_root

HEAD = """\
# ffmerge

Every public name, from its docstring (`python -m study.report.reference` writes this page). All
are had from `import ffmerge`; shapes and units are in the arguments. From a command line:
`python -m ffmerge --help`. What the words mean, the [README](../README.md) says.
"""
WIDTH = 90  # of a signature in one line
Definition = ast.FunctionDef | ast.ClassDef


def write_reference() -> str:
    """The page: one section per public name, in the order of the alphabet."""
    return "\n".join([HEAD, *(_describe(name, ffmerge._FACE[name]) for name in ffmerge.__all__)])


def _describe(name: str, module: str) -> str:
    path = Path(ffmerge.__path__[0], *module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (node,) = (n for n in tree.body if isinstance(n, Definition) and n.name == name)
    what, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
    source = f"lib/ffmerge/{path.relative_to(ffmerge.__path__[0]).as_posix()}"
    parts = [f"## {name}\n", f"```python\n{_print_signature(node)}\n```\n"]
    parts += [f"{' '.join(what.split())} ([source](../{source}))\n"]
    parts += [f"```text\n{rest}\n```\n"] if rest else []
    if isinstance(node, ast.ClassDef):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]
        parts += [f"- `{_print_signature(n)}`: {_find_sentence(n)}" for n in methods]
        parts += [""] * bool(methods)
    return "\n".join(parts)


def _print_signature(node: Definition) -> str:
    """A function's arguments with their types, or what an instance of a class is made from."""
    if isinstance(node, ast.ClassDef):
        arguments = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
        tail = ""
    else:
        every = ast.unparse(node.args)
        arguments, tail = _split(every), f" -> {ast.unparse(node.returns)}" if node.returns else ""
        arguments = [a for a in arguments if a not in ("self", "cls")]
    line = f"{node.name}({', '.join(arguments)}){tail}"
    if len(line) <= WIDTH:
        return line
    return f"{node.name}(\n" + "".join(f"    {a},\n" for a in arguments) + f"){tail}"


def _split(text: str) -> list[str]:
    """Arguments at the commas that no bracket holds."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _find_sentence(node: ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def main() -> None:
    """Write docs/api.md."""
    path = find_root() / "docs" / "api.md"
    path.write_text(write_reference(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
