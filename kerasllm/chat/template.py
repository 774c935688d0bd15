"""Chat templates: Jinja2 in a sandbox, as transformers runs them. A template comes with a model, from anybody."""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from kerasllm.tokenizers import MAX_TEMPLATE_CHARACTERS

# Of a tokenizer without a template. Its end token ends every turn, so any tokenizer that has one can be used, and a
# line ends each header, so that no token reaches from it into the content.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
MAX_CHARACTERS = 1 << 22  # of a rendered conversation
MAX_STEPS = 200_000  # turns of loops and calls in one rendering: a second or two

# Unicode's noncharacters, which no text has: they go around what `{% generation %}` encloses.
BEGIN, END = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"[{BEGIN}{END}]")
_BUDGET = "_budget"


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        text: the characters.
        answers: `(start, stop)` of what `{% generation %}` blocks enclose; `None` if the template has none.
    """

    text: str
    answers: list[tuple[int, int]] | None


def render_template(
    source: str,
    messages: Sequence[dict],
    variables: Mapping[str, str] | None = None,
    add_generation_prompt: bool = False,
) -> Rendered:
    """Makes text of a conversation, as a template says.

    The template sees `messages`, `add_generation_prompt` and the variables, and of Jinja2's functions `range`, `dict`
    and `namespace`; `raise_exception(message)` and `strftime_now(format)` are transformers'. It cannot reach Python,
    and is stopped when it does not end.

    Args:
        source: the template.
        messages: what `check_messages` returns.
        variables: special tokens, such as `{"eos_token": "</s>"}`.
        add_generation_prompt: end with what the assistant's turn begins with.

    Raises:
        ValueError: the template is too large, is not Jinja2, reaches into Python, fails, refuses the
            conversation, or does not end.

    Example:

    ```python
    template = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    assert render_template(template, [{"role": "user", "content": "Hi"}]).text == "user: Hi\\n"
    ```
    """
    template, marks_answers = _compiled(source)
    arguments = {
        **(variables or {}),
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        _BUDGET: _Budget(),
    }
    parts, size = [], 0
    try:
        for part in template.generate(arguments):
            parts.append(part)
            size += len(part)
            if size > MAX_CHARACTERS:
                raise SecurityError(f"it writes more than {MAX_CHARACTERS:,} characters")
    except SecurityError as error:
        raise ValueError(f"The chat template was stopped: {error}. Use one that you trust.") from None
    except _Refusal as error:
        raise ValueError(f"The chat template refuses this conversation: {error}") from None
    except Exception as error:  # It is a program of somebody else's, and may fail in any way.
        raise ValueError(f"The chat template failed. {type(error).__name__}: {error}") from None
    text = "".join(parts)
    return _unmarked(text) if marks_answers else Rendered(text, None)


@functools.lru_cache(maxsize=16)
def _compiled(source: str):
    """The template, and whether it marks answers."""
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise ValueError(
            f"A chat template has at most {MAX_TEMPLATE_CHARACTERS:,} characters. Received: {len(source):,}"
        )
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters |= {"tojson": _to_json, "counted": _counted}
    environment.globals = {
        "range": environment.globals["range"],  # of at most 100,000 numbers
        "dict": lambda *arguments, **values: dict(*arguments, **values),
        "namespace": _namespace,
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    try:
        tree = environment.parse(source)
        for reference in tree.find_all((nodes.Getattr, nodes.NSRef)):
            _check_name(reference.attr)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return environment.from_string(tree), _GENERATION.search(source) is not None
    except TemplateSyntaxError as error:
        raise ValueError(f"The chat template is not Jinja2: {error.message} in line {error.lineno}") from None
    except (SecurityError, RecursionError) as error:
        raise ValueError(f"The chat template was refused: {error}. Use one that you trust.") from None


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, where what is forbidden is an error at once, and the steps are counted."""

    intercepted_binops = frozenset({"*", "**"})

    def unsafe_undefined(self, obj, attribute):
        raise SecurityError(f"it reaches into Python ({attribute!r} of a {type(obj).__name__})")

    def call(self, context, function, /, *arguments, **keywords):
        context.parent[_BUDGET].spend()
        return super().call(context, function, *arguments, **keywords)

    def call_binop(self, context, operator, left, right):
        factors = [len(value) if isinstance(value, str | list | tuple) else value for value in (left, right)]
        if operator == "**" or abs(factors[0] * factors[1]) > MAX_CHARACTERS:
            raise SecurityError(f"it computes something too large with {operator}")
        return super().call_binop(context, operator, left, right)


class _Budget:
    """Counts what one rendering does."""

    def __init__(self):
        self._left = MAX_STEPS

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise SecurityError(f"it does not end within {MAX_STEPS:,} steps")


class _Refusal(TemplateError):
    """What a template says with `raise_exception`."""


_GENERATION = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`: what is between them is the assistant's."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body, lineno=line)

    def _marked(self, caller) -> str:
        return f"{BEGIN}{caller()}{END}"


def _unmarked(text: str) -> Rendered:
    """The text without its marks, and where they were."""
    pieces, answers, size = [], [], 0
    start = 0
    for match in _MARKS.finditer(text):
        pieces.append(text[start : match.start()])
        size, start = size + len(pieces[-1]), match.end()
        if match.group() == BEGIN:
            answers.append((size, size))
        elif answers:
            answers[-1] = (answers[-1][0], size)
    return Rendered("".join([*pieces, text[start:]]), answers)


@pass_context
def _counted(context, items) -> Iterator:
    for item in items:
        context.parent[_BUDGET].spend()
        yield item


def _namespace(*arguments, **attributes) -> Namespace:
    values = dict(*arguments, **attributes)
    for name in values:
        _check_name(name)
    return Namespace(values)


def _check_name(name: str) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"it reaches into Python ({name!r})")


def _raise_exception(message: str):
    raise _Refusal(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja2's own escapes for HTML, which is not written here.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
