"""A stranger's chat template, tried in a process of its own with bounded time and memory.

transformers renders templates in Jinja's sandbox, which keeps them from files and from code but not
from looping or growing for ever. So a template that could is first rendered by a process whose
time and memory the system bounds. Only whether it ends is asked; its text is never used.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes

from mental_r1_jax.errors import UserError

# Real templates take some milliseconds and megabytes.
_CPU_SECONDS, _WALL_SECONDS, _MEMORY_BYTES = 5, 60, 2**30

_BOUNDED_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr),
    *(nodes.Getitem, nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or),
    *(nodes.Not, nodes.Test, nodes.Concat, nodes.Add, nodes.Neg),
)
_BOUNDED_FILTERS = {"trim", "upper", "lower", "length", "string", "first", "last", "default"}

_TRIAL = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({_CPU_SECONDS}, {_CPU_SECONDS}))
if sys.platform == "linux":  # others do not keep to it
    resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY_BYTES}, {_MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
class Generation(Extension):
    tags = {{"generation"}}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)
def refuse(message):
    raise ValueError(message)
given = json.load(sys.stdin)
env = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
env.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
env.globals.update(raise_exception=refuse, strftime_now=lambda form: form)
for messages in given["chats"]:
    try:
        template = env.from_string(given["template"])
        text = template.render(given["tokens"], messages=messages, add_generation_prompt=True)
    except MemoryError:
        sys.exit(3)
    except Exception:
        continue
    if len(text) > {2**24}:
        sys.exit(3)
"""


def check_template_ends(
    template: str,
    chats: Sequence[Sequence[Mapping[str, str]]],
    special_tokens: Mapping[str, Any],
) -> None:
    """Return where rendering `template` comes to an end; what is wrong with it else shows later.

    Templates of a few plain parts are not tried: they cannot but end.

    Args:
        template: of a stranger's model folder.
        chats: like those that are going to be rendered.
        special_tokens: the tokenizer's special tokens by name, which templates use.

    Raises:
        UserError: it took more time or memory than any real template does.
    """
    if _is_bounded(template):
        return
    tokens = {name: str(token) for name, token in special_tokens.items()}
    given = json.dumps({"template": template, "chats": chats, "tokens": tokens})
    try:
        status = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL],
            input=given.encode("utf-8"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        status = 3
    if status != 0:
        raise UserError(
            what="The chat template does not end",
            expected=f"a chat in {_CPU_SECONDS} seconds and {_MEMORY_BYTES // 2**20} MiB at most",
            got="a template that takes more",
            remedy="Use the template that the model's authors published.",
        )


def _is_bounded(template: str) -> bool:
    """Whether `template` is made of parts that cannot take long: one plain loop over messages.

    Nothing is assigned, nothing called but `raise_exception`, and no loop stands in another.
    """
    try:
        tree = jinja2.Environment().parse(template)
    except jinja2.TemplateError:
        return True  # it is never rendered
    except RecursionError:
        return False
    return _all_bounded(tree, in_loop=False)


def _all_bounded(node: nodes.Node, in_loop: bool) -> bool:
    """Whether `node` and all below it are such parts."""
    if isinstance(node, nodes.For):
        if in_loop or node.recursive or not isinstance(node.iter, nodes.Name):
            return False
        in_loop = True
    elif isinstance(node, nodes.Filter):
        if node.name not in _BOUNDED_FILTERS:
            return False
    elif isinstance(node, nodes.Call):
        if not isinstance(node.node, nodes.Name) or node.node.name != "raise_exception":
            return False
    elif not isinstance(node, _BOUNDED_NODES):
        return False
    return all(_all_bounded(child, in_loop) for child in node.iter_child_nodes())
