"""Chat templates of both generations, equal to the original prompt builders wherever a template can be.

Turns are marked by two reserved pieces, ids 195 (user) and 196 (assistant), whose names differ between generations.
"""

from __future__ import annotations


USER_TOKEN_ID, ASSISTANT_TOKEN_ID = 195, 196

# Baichuan-13B-Chat: no system role; the assistant's turns end with </s>; what precedes the first user turn is dropped;
# an assistant mark always closes the prompt.
FIRST_GENERATION = """\
{%- set state = namespace(started=false) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- set state.started = true -%}
{{- 'USER_TOKEN' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{%- if state.started -%}
{{- 'ASSISTANT_TOKEN' -}}{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- else -%}
{{- raise_exception('Baichuan-13B-Chat knows the roles user and assistant only, not ' + message['role'] + '.') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT_TOKEN' -}}{%- endif -%}
"""

# Baichuan2: the system text stands first, unmarked; no </s>; an assistant mark follows unless the assistant spoke
# last.
SECOND_GENERATION = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- if not loop.first -%}
{{- raise_exception('A system message must stand first.') -}}
{%- endif -%}
{{- message['content'] -}}
{%- elif message['role'] == 'user' -%}
{{- 'USER_TOKEN' + message['content'] -}}
{%- else -%}
{{- 'ASSISTANT_TOKEN' -}}{%- generation -%}{{- message['content'] -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}{{- 'ASSISTANT_TOKEN' -}}{%- endif -%}
"""
TEMPLATES = {1: FIRST_GENERATION, 2: SECOND_GENERATION}


def chat_generation(user_token: str | None) -> int | None:
    """The generation, 1 or 2, of a vocabulary by the name of its piece 195, or None if it is none of Baichuan's."""
    return {"<reserved_102>": 1, "<reserved_106>": 2}.get(user_token or "")


def default_chat_template(user_token: str | None, assistant_token: str | None) -> str | None:
    """The template for a vocabulary by its pieces 195 and 196, or None if those are no chat pieces of Baichuan."""
    generation = chat_generation(user_token)
    if generation is None or user_token is None or assistant_token is None:
        return None
    return TEMPLATES[generation].replace("ASSISTANT_TOKEN", assistant_token).replace("USER_TOKEN", user_token)
