"""From messages to a prompt, and from tokens to text.

``conversation`` holds what was said and its file, ``template`` writes a prompt, ``vocabulary``
turns text into token ids and back, ``streaming`` releases text as it becomes certain, and
``answer`` is what a model returns. Nothing here calls llama.cpp.
"""
