"""What is in this checkpoint, and how does it become a GGUF?

``checkpoint`` reads headers, ``config`` and ``names`` say what must be there, ``tokenizer`` and
``metadata`` what is said about it, ``shards`` and ``hub`` bring the files, ``slabs`` cuts tensors,
``pipeline`` moves the numbers, ``numbers`` and ``forms`` know how they are stored, ``output``
writes the file, and ``converter`` is the job from top to bottom. `llama4_edge.convert` calls it,
and hides this package of the same name.

Promises that importing it loads none of them.
"""
