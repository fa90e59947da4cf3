"""The server: a model over HTTP, for programs that speak OpenAI's or Anthropic's protocol.

Each protocol is one file that gives a list of routes, which `app` joins; what it reads and writes
are the models of its file in `schema/`. Needs the extra ``[server]``.
"""
