"""A small server: what a production engine does with the pages of `einfuse.serving`, in a few hundred lines to read and to test with.

    cd examples && python -m serve --port 8000
    curl localhost:8000/v1/completions -d '{"prompt": "once upon", "max_tokens": 20, "temperature": 0, "stream": true}'

`pages` gives pages out and counts who holds them, `prefixes` remembers the pages of finished prompts, `engine` decides what each step
computes, `model` computes it, `api` speaks HTTP.
"""
