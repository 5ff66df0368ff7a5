"""Chat templates that write one conversation in two ways, for cases worked out by hand."""

from __future__ import annotations

# Reasoning and calls in tags; the reasoning of earlier turns is dropped.
TAGGED = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if m.reasoning_content and loop.last %}{{ '<r>' + m.reasoning_content + '</r>' }}{% endif %}"
    "{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ':' + c.function.arguments | tojson }}{% endfor %}"
    "{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Reasoning after a word, calls before the text.
WORDED = (
    "{% for m in messages %}{{ '[' + m.role + ']' }}"
    "{% if m.reasoning_content %}{{ 'so: ' + m.reasoning_content + '\n' }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '{' + c.function.name }}"
    "{% for k, v in c.function.arguments | items %}{{ ' ' + k + '=' + (v if v is string else v | tojson) }}{% endfor %}"
    "{{ '}' }}{% endfor %}{{ m.content or '' }}{{ '!' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Knows content alone, and nobody but a user and an assistant.
PLAIN = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('Roles are user and assistant, not ' + m.role) }}{% endif %}"
    "{{ '<' + m.role + '>' + m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
