"""Untrusted Jinja: an honest template gives what Jinja and transformers give, and every other is stopped in one line."""

from __future__ import annotations

import ast
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deltamend.machine import templates
from deltamend.machine.templates import (
    TemplateLimitError,
    TemplateTextError,
    check_template,
    limited_templates,
    render_texts,
)

SOURCE = Path(__file__).parents[2] / "src" / "deltamend"
LOOP = "{% for a in range(99999) %}"
ENDLESS = {
    "loops in loops": LOOP * 4 + "{{ a }}" + "{% endfor %}" * 4,
    "loops that write nothing": LOOP * 4 + "{% endfor %}" * 4,
    "a long power": "{{ 9 ** (9 ** 9) }}",
    "a power of powers": "{{ (7 ** 999999) % 3 }}{{ (7 ** 9999999) % 3 }}{{ (7 ** 99999999) % 3 }}",
    "a long text": "{{ 'x' * 999999999 }}",
    "a text that doubles": "{% set n = namespace(t='x') %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}",
    "a list that doubles": "{% set n = namespace(t=[1]) %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "a macro that calls itself": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "a wide format": "{{ '%999999999d' % 1 }}",
    "a long pad": "{{ 'x'.ljust(999999999) }}",
    "centred": "{{ 'x' | center(999999999) }}",
    "indented": "{{ ('x\n' * 99999) | indent(99999) }}",
    "replaced": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "joined": "{{ (['a' * 99999] * 99999) | join(',') }}",
    "lorem ipsum": "{{ lipsum(n=99999) }}{{ lipsum(n=99999) }}{{ lipsum(n=99999) }}",
    "a long output of short parts": LOOP + "{{ 'xxxxxxxxxx' }}{% endfor %}",
    "nested text": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "nested blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "itself": "{% include 'x' %}",
    "Python's objects": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changed fields": "{{ q.append(1) }}",
}  # fmt: skip
HONEST = [
    "{{ question }}",
    "Q: {{ question | trim }}\n{% for c in choices %}{{ loop.index }}. {{ c }}\n{% endfor %}A:",
    "{{ number + 1 }} {{ 'ü 😀' if yes else none }} {{ nested.deep[0] }}",
    "{% set left = namespace(of=number) %}{% for v, s in [(5, 'V'), (1, 'I')] %}{{ s * (left.of // v) }}{% set left.of = left.of % v %}{% endfor %}",
]  # fmt: skip
FIELDS: dict[str, Any] = {"question": " Why? </s> \u2028\x00", "choices": ["a", "b\n"], "number": 7, "yes": True, "nested": {"deep": [1.5]}}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    """A child that allows half a second, so that the tests are quick."""
    child = templates._Child(0.5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(templates, "_shared_child", lambda: child)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_stopped_in_one_line(text: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises((TemplateLimitError, TemplateTextError)) as caught:
        render_texts(text, [{"q": [1]}])
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert "\n" not in str(caught.value)
    assert render_texts("{{ q }}", [{"q": "still here"}]) == ["still here"]


@pytest.mark.parametrize("text", HONEST)
def test_an_honest_template_gives_what_jinja_gives(text: str) -> None:
    expected = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(text).render(FIELDS)
    assert render_texts(text, [FIELDS] * 3) == [expected] * 3


def test_the_item_that_a_template_fails_on_is_named_by_its_place() -> None:
    items = [{"a": 1}] * 1_500 + [{"b": 1}] + [{"a": 1}]
    with pytest.raises(TemplateTextError, match="'a' is undefined") as caught:
        render_texts("{{ a }}", items)
    assert caught.value.item == 1_500
    with pytest.raises(TemplateTextError) as caught:
        check_template("{{ a ")
    assert caught.value.item is None


def test_short_renders_may_take_longer_together_than_one_may() -> None:
    text = "{% for a in range(3000) %}{% set b = a * a %}{% endfor %}{{ x }}"
    started = time.process_time()
    assert len(render_texts(text, [{"x": number} for number in range(600)])) == 600
    assert time.process_time() - started < 1  # it is the child that works


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<s>": 0, "</s>": 1}, "<s>")), bos_token="<s>", eos_token="</s>"
    )


CHATS = [
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{%- for m in messages if m.role != 'system' -%}{{ m | tojson }}{%- if loop.first %}{% continue %}{% endif -%}{{ greeting }}{%- endfor -%}",
]


@pytest.mark.slow
@pytest.mark.parametrize("template", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
def test_a_chat_template_gives_what_transformers_gives(tokenizer: Any, template: str, prompt: bool) -> None:
    messages = [{"role": "user", "content": " Grüße <&> \n"}, {"role": "assistant", "content": "Yes."}]
    how = {"chat_template": template, "add_generation_prompt": prompt, "tokenize": False, "greeting": "hi"}
    expected = tokenizer.apply_chat_template(messages, **how)
    with limited_templates():
        assert tokenizer.apply_chat_template(messages, **how) == expected
        assert tokenizer.apply_chat_template([messages, messages], **how) == [expected, expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loops in loops", "a text that doubles", "a macro that calls itself", "a long power"])
def test_a_chat_template_without_end_is_stopped(tokenizer: Any, name: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    with limited_templates(), pytest.raises(TemplateLimitError, match=r"^the chat template was stopped: it "):
        tokenizer.apply_chat_template(messages, chat_template=ENDLESS[name], tokenize=False)


@pytest.mark.slow
def test_a_chat_template_fails_as_it_does_in_transformers(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "x"}]
    with limited_templates(), pytest.raises(jinja2.TemplateError, match="no system role"):  # which lm-eval goes by
        tokenizer.apply_chat_template(messages, chat_template="{{ raise_exception('no system role') }}", tokenize=False)


@pytest.mark.slow
def test_only_the_child_compiles_jinja_of_others() -> None:
    found = {
        path.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("from_string", "ImmutableSandboxedEnvironment")
    }
    assert found == {"template_child.py", "model_card.py"}  # a model card's template is ours


def test_every_use_of_a_chat_template_is_limited() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "apply_chat_template(" in text:
            assert "with limited_templates():\n" in text, path
