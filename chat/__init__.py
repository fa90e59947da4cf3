"""From messages to a prompt, and from tokens to text.

``conversation`` is what was said, and its file. ``template`` and ``vocabulary`` turn messages into
token ids; ``prompt`` joins the two. ``messages`` is what a template may be given, ``rendering`` is
Jinja, and ``template_process`` the process in which it renders what is not known. ``options`` is
what an answer is asked for with, ``answer`` is what a model returns, ``events`` is what happens
meanwhile, and ``streaming`` releases text as soon as it is certain.

``structure`` holds an answer to a form that ``forms`` asked for: a JSON Schema is read by
``schema`` and what is called like it (``disjoint``, ``least``, ``values``), a grammar by ``gbnf``
and cut by ``lexemes`` (``automaton``), a regular expression by ``regex``.
"""
