"""A chat template is a program of a stranger: it gets neither time nor memory without end."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.stages.untrusted import template_process, templates
from specpipe.stages.untrusted.templates import markers_of, render_template

CHAT = {"messages": [{"role": "user", "content": "hé\ud800"}], "bos_token": "<s>"}

BOMBS = {
    "grows": "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "multiplies": "{% set n = 10 ** 11 %}{{ 'a' * (n + messages | length) }}",
    "pads": "{{ 'a' | center(messages | length * 100000000000) }}",
    "is folded": "{{ 'a' * 10 ** 11 }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_takes_too_much_is_refused(name: str) -> None:
    with pytest.raises(
        (InputError, ConfigError), match=r"chat template (refuses it: it|takes more)"
    ) as told:
        render_template(BOMBS[name], CHAT)
    assert "\n" not in str(told.value)
    assert render_template("{{ messages[0].content }}", CHAT) == ("hé\ud800", [])


ENDLESS = "{% for i in range(100000) %}" * 5 + "{% endfor %}" * 5


@pytest.mark.slow
def test_a_template_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes more than 10 s or 1 GiB"):
        render_template(ENDLESS, CHAT)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same process with a limit of a second: after ten, it ends in the same way."""
    name, start = template_process.__name__, subprocess.Popen
    program = f"import {name} as process; process.MOST_SECONDS = 0; process.main()"

    def start_impatient(_: object, **options: Any) -> "subprocess.Popen[bytes]":
        return start([sys.executable, "-P", "-c", program], **options)

    monkeypatch.setattr(subprocess, "Popen", start_impatient)
    renderer = templates._Renderer()
    monkeypatch.setattr(templates, "_renderer", renderer)
    yield
    renderer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "template",
    [
        "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}"
        "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_another_template_without_end_is_refused(template: str) -> None:
    assert render_template("{{ messages[0].content }}", CHAT) == ("hé\ud800", [])
    with pytest.raises(ConfigError, match="takes more than 10 s or 1 GiB"):
        render_template(template, CHAT)


@pytest.mark.parametrize(
    "template",
    [
        "{% if x %}" * 5_000 + "{% endif %}" * 5_000,
        "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
        "{{ x | no_such_filter }}",
        "\n{% if x %}",
    ],
)
def test_a_template_that_cannot_be_compiled_is_wrong(template: str) -> None:
    told = "the chat template (is wrong|refuses it): "
    with pytest.raises((ConfigError, InputError), match=told):
        render_template(template, CHAT)
    with pytest.raises((ConfigError, InputError), match=told):
        markers_of(template)


def test_the_functions_that_transformers_gives() -> None:
    template = (
        "{{ bos_token }}{{ strftime_now('%d %b %Y') }} {{ {'b': '<é>', 'a': 1} | tojson }}"
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}no{% endfor %}"
        "{% generation %}{{ messages | length }}{% endgeneration %}\n"
    )
    text, spans = render_template(template, CHAT)
    assert text == '<s>26 Jul 2024 {"b": "<é>", "a": 1}1'
    assert [text[start:stop] for start, stop in spans] == ["1"]
    assert markers_of(template) == "sound"
    with pytest.raises(InputError, match="the chat template refuses it: no"):
        render_template("{{ raise_exception('no') }}", CHAT)


@pytest.mark.parametrize("template", ["{{ raise_exception('x' * 10000000) }}", "{% x%s %}"])
def test_no_more_is_told_of_an_error_than_a_person_reads(template: str) -> None:
    with pytest.raises((InputError, ConfigError)) as refused:
        render_template(template.replace("%s", "x" * 100_000), CHAT)
    assert 1000 < len(str(refused.value)) < 1200


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__self__.__class__ }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
    ],
)
def test_the_sandbox_holds(escape: str) -> None:
    try:
        text, _ = render_template(escape, CHAT)
    except InputError:
        return
    assert text == ""
