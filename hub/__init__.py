"""What lies on the Hugging Face Hub, and how does it get here?

``names`` knows a repository's name when it sees one, ``repository`` lists, reads and fetches what
one holds at one commit, and ``pull`` chooses a model that is a GGUF already, and brings all that
belongs to it. Nothing is imported here: the hub's client takes longer to load than all of llama4.
"""
