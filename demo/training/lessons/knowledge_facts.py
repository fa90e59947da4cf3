"""Facts written by hand, and the frames of their questions.

Promises: facts about the model follow from its training, facts about the program from its help and
README, facts about the family from the published configurations. A frame turns a few words into
many natural questions.

Does not know which phrasings are held out: `knowledge` decides that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Draft:
    """An answer and all phrasings of its question."""

    answer: str
    phrasings: tuple[str, ...]


def capital(text: str) -> str:
    """``text`` as a sentence begins: only the first letter changes."""
    return text[:1].upper() + text[1:]


def ask(*forms: tuple[str, str]) -> tuple[str, ...]:
    """Questions from pairs of the same question, as it is asked and as a clause.

    ``("where do you live", "where you live")`` gives "Where do you live?", "Tell me where you
    live." and six more.
    """
    frames = (
        "Tell me {}.",
        "Can you tell me {}?",
        "Do you know {}?",
        "Please say {}.",
        "I want to know {}.",
        "Could you say {}?",
        "Please tell me {}.",
    )
    return tuple(
        phrasing
        for direct, clause in forms
        for phrasing in (f"{capital(direct)}?", *(frame.format(clause) for frame in frames))
    )


def count(things: str) -> tuple[str, ...]:
    """Questions for the number of ``things`` in ``{m}``."""
    return tuple(
        frame.replace("{t}", things)
        for frame in (
            "How many {t} does {m} have?",
            "What is the number of {t} in {m}?",
            "Tell me how many {t} {m} has.",
            "How many {t} are there in {m}?",
            "Can you tell me the number of {t} in {m}?",
            "{m} has how many {t}?",
            "Do you know how many {t} {m} has?",
            "Please tell me the number of {t} in {m}.",
            "I want to know how many {t} there are in {m}.",
            "Could you say how many {t} {m} has?",
        )
    )


def value(noun: str) -> tuple[str, ...]:
    """Questions for the value that ``noun``, without an article, has in ``{m}``."""
    return tuple(
        frame.replace("{n}", noun)
        for frame in (
            "What is the {n} of {m}?",
            "Tell me the {n} of {m}.",
            "What {n} does {m} have?",
            "Can you tell me the {n} of {m}?",
            "For {m}, what is the {n}?",
            "Do you know the {n} of {m}?",
            "Please tell me what {n} {m} has.",
            "I want to know the {n} of {m}.",
            "Could you say what the {n} of {m} is?",
            "What does {m} have as its {n}?",
        )
    )


def _ask(answer: str, *forms: tuple[str, str]) -> Draft:
    return Draft(answer, ask(*forms))


def _same(answer: str, *questions: str) -> Draft:
    """Where the question reads alike as a clause: its subject is the word that asks."""
    return Draft(answer, ask(*((question, question) for question in questions)))


def _what(noun: str, answer: str) -> Draft:
    """Explains one thing, named with its article where it has one."""
    return Draft(
        answer,
        (
            f"What is {noun}?",
            f"Explain {noun}.",
            f"Tell me about {noun}.",
            f"Can you explain {noun}?",
            f"Do you know what {noun} is?",
            f"Please explain what {noun} is.",
            f"Describe {noun}.",
            f"Can you tell me what {noun} is?",
            f"I want to know what {noun} is.",
            f"Could you say what {noun} is?",
            f"Please tell me about {noun}.",
        ),
    )


def _whats(nouns: str, answer: str) -> Draft:
    """Explains many things."""
    return Draft(
        answer,
        (
            f"What are {nouns}?",
            f"Explain {nouns}.",
            f"Tell me about {nouns}.",
            f"Can you explain {nouns}?",
            f"Do you know what {nouns} are?",
            f"Please explain what {nouns} are.",
            f"Describe {nouns}.",
            f"Can you tell me what {nouns} are?",
            f"I want to know what {nouns} are.",
            f"Could you say what {nouns} are?",
            f"Please tell me about {nouns}.",
        ),
    )


def _does(noun: str, answer: str) -> Draft:
    """Says what a command, an option or a part does."""
    return Draft(
        answer,
        (
            f"What does {noun} do?",
            f"What is {noun} for?",
            f"Explain {noun}.",
            f"Tell me about {noun}.",
            f"Can you explain what {noun} does?",
            f"Do you know what {noun} does?",
            f"Please say what {noun} does.",
            f"Can you tell me what {noun} is for?",
            f"I want to know what {noun} does.",
            f"Could you say what {noun} is for?",
            f"Please tell me about {noun}.",
        ),
    )


def _option(name: str, answer: str) -> Draft:
    """Says what an option of the commands does; its name may stand alone."""
    return Draft(
        answer,
        (
            *_does(f"the option {name}", answer).phrasings,
            f"What does {name} do?",
            f"What is {name} for?",
            f"Tell me about {name}.",
            f"Please say what {name} does.",
        ),
    )


def _recipe(name: str, answer: str) -> Draft:
    """Says what a recipe is; its name may stand alone."""
    return Draft(
        answer,
        (
            *_what(f"the recipe {name}", answer).phrasings,
            f"What is {name}?",
            f"Explain {name}.",
            f"Tell me about {name}.",
            f"Do you know what {name} is?",
        ),
    )


def _how(task: str, answer: str) -> Draft:
    """Says how a person does something."""
    return Draft(
        answer,
        (
            f"How do I {task}?",
            f"How can I {task}?",
            f"Tell me how to {task}.",
            f"Can you tell me how to {task}?",
            f"I want to {task}.",
            f"Do you know how to {task}?",
            f"Please tell me how to {task}.",
            f"What do I do to {task}?",
            f"Could you say how I can {task}?",
            f"Please explain how to {task}.",
        ),
    )


def _mine(things: str, number: str) -> Draft:
    """How many of something the model itself has."""
    return _ask(
        f"I have {number} {things}.",
        (f"how many {things} do you have", f"how many {things} you have"),
        (f"how many {things} are there in you", f"how many {things} there are in you"),
    )


_ITSELF = (
    _ask(
        "I am Llama 4 Tiny, a small Llama 4 made to try llama4-edge.",
        ("who are you", "who you are"),
        ("what are you", "what you are"),
    ),
    _ask(
        "My name is Llama 4 Tiny.",
        ("what is your name", "what your name is"),
        ("what are you called", "what you are called"),
        ("which name do you have", "which name you have"),
    ),
    _ask(
        "I have about 6 million parameters.",
        ("how many parameters do you have", "how many parameters you have"),
        ("how large are you", "how large you are"),
        ("how big are you", "how big you are"),
    ),
    _mine("layers", "4"),
    _mine("experts", "4"),
    _ask(
        "My hidden size is 256.",
        ("what is your hidden size", "what your hidden size is"),
        ("which hidden size do you have", "which hidden size you have"),
    ),
    _ask(
        "My vocabulary has 2048 tokens.",
        ("how large is your vocabulary", "how large your vocabulary is"),
        ("how many tokens does your vocabulary have", "how many tokens your vocabulary has"),
    ),
    _ask(
        "Yes, I run offline, on your own machine.",
        ("do you run offline", "whether you run offline"),
        ("do you work offline", "whether you work offline"),
    ),
    _ask(
        "No, I do not need the internet.",
        ("do you need the internet", "whether you need the internet"),
        ("do you use the internet", "whether you use the internet"),
    ),
    _ask(
        "No, I know a small world, and nothing of the world outside it.",
        ("can you answer everything", "whether you can answer everything"),
        ("can you tell the news", "whether you can tell the news"),
        (
            "can you answer questions about the world",
            "whether you can answer questions about the world",
        ),
    ),
    _ask(
        "I was trained on text that a program made.",
        ("what were you trained on", "what you were trained on"),
        ("on which text were you trained", "on which text you were trained"),
        ("who made your text", "who made your text"),
    ),
    _ask(
        "My licence is MIT.",
        ("what is your licence", "what your licence is"),
        ("which licence do you have", "which licence you have"),
        ("what is your license", "what your license is"),
    ),
    _ask(
        "Yes, I have a small vision tower for pictures.",
        ("do you have a vision tower", "whether you have a vision tower"),
        ("can you see pictures", "whether you can see pictures"),
    ),
    _ask(
        "I name colours and shapes in pictures, and count them.",
        ("what can you say about a picture", "what you can say about a picture"),
        ("what do you see in a picture", "what you see in a picture"),
    ),
    _ask(
        "I was made to try llama4-edge without a large download.",
        ("why were you made", "why you were made"),
        ("what are you for", "what you are for"),
    ),
    _ask(
        "I can answer questions about llama4-edge, add numbers, and name shapes in pictures.",
        ("what can you do", "what you can do"),
        ("what have you learnt", "what you have learnt"),
    ),
    _ask(
        "No, I am a program, not a person.",
        ("are you a person", "whether you are a person"),
        ("are you human", "whether you are human"),
    ),
    _ask(
        "No, Scout is far larger than I am.",
        ("are you Scout", "whether you are Scout"),
        ("are you as large as Scout", "whether you are as large as Scout"),
    ),
    _ask(
        "Yes, I have the architecture of Llama 4, only smaller.",
        ("are you a real Llama 4", "whether you are a real Llama 4"),
        ("do you have the architecture of Llama 4", "whether you have the architecture of Llama 4"),
    ),
    _ask(
        "My checkpoint is bf16 safetensors, as published models are.",
        ("what is your checkpoint", "what your checkpoint is"),
        ("which files does your checkpoint have", "which files your checkpoint has"),
    ),
)

_PROJECT = (
    _what("llama4-edge", "llama4-edge runs the Llama 4 family offline, on the hardware you have."),
    _ask(
        "llama4-edge is for people who run Llama 4 on their own hardware.",
        ("who is llama4-edge for", "who llama4-edge is for"),
        ("for whom is llama4-edge made", "for whom llama4-edge is made"),
    ),
    _ask(
        "llama4-edge is MIT licensed.",
        ("which licence does llama4-edge have", "which licence llama4-edge has"),
        ("under which licence is llama4-edge", "under which licence llama4-edge is"),
        ("which license does llama4-edge have", "which license llama4-edge has"),
    ),
    _ask(
        "llama4-edge needs Python 3.10 or newer.",
        ("which Python does llama4-edge need", "which Python llama4-edge needs"),
        ("which version of Python do I need", "which version of Python I need"),
    ),
    _ask(
        "make demo and make test need Python, a C++ compiler and make.",
        ("what do make demo and make test need", "what make demo and make test need"),
        ("what must I install before make demo", "what I must install before make demo"),
    ),
    _ask(
        "The first build of llama.cpp takes about 5 minutes on 2 cores.",
        ("how long does the first build take", "how long the first build takes"),
        ("how long does llama.cpp take to build", "how long llama.cpp takes to build"),
    ),
    _same(
        "llama4-edge runs its models with llama.cpp.",
        "which engine runs the models of llama4-edge",
        "what engine is under llama4-edge",
    ),
    _ask(
        "The commands are convert, pull, inspect, plan, run, chat, bench, worker and doctor.",
        ("which commands are there in llama4-edge", "which commands there are in llama4-edge"),
        ("which commands does llama4-edge have", "which commands llama4-edge has"),
    ),
    _does("llama4 convert", "llama4 convert turns a checkpoint into a GGUF file in one pass."),
    _does("llama4 pull", "llama4 pull fetches a GGUF that somebody has made already."),
    _does("llama4 inspect", "llama4 inspect shows what a GGUF or a checkpoint holds."),
    _does("llama4 plan", "llama4 plan says what fits where before anything is downloaded."),
    _does("llama4 run", "llama4 run prints one answer to one prompt."),
    _does("llama4 chat", "llama4 chat opens a conversation with a model."),
    _does("llama4 bench", "llama4 bench measures prefill and decode, as llama-bench does."),
    _does("llama4 worker", "llama4 worker lends this machine to a model on another machine."),
    _does(
        "llama4 doctor", "llama4 doctor says what is installed, what is missing, and how to add it."
    ),
    _does(
        "make demo", "make demo sets up, converts a small model, shows its plan and talks with it."
    ),
    _does("make test", "make test sets everything up and runs the tests."),
    _does("make clean", "make clean removes the environment and what the demo wrote."),
    _does("make lint", "make lint runs ruff and mypy over the code."),
    _recipe("int4", "int4 keeps experts in 4 bits and everything else in 8 bits."),
    _recipe("int8", "int8 keeps experts and everything else in 8 bits."),
    _recipe("bf16", "bf16 keeps the weights as published, with nothing lost."),
    _recipe("f16", "f16 gives half precision, as llama-quantize makes it."),
    _recipe("q4_0", "q4_0 is a recipe with 4 bits that is fast to convert."),
    _recipe("q4_k_m", "q4_k_m gives what llama-quantize makes as Q4_K_M."),
    _recipe("q8_0", "q8_0 gives what llama-quantize makes as Q8_0."),
    _ask(
        "The default recipe is int4.",
        ("what is the default recipe", "what the default recipe is"),
        ("which recipe is the default", "which recipe is the default"),
    ),
    _ask(
        "Scout weighs 66 GB with the recipe int4.",
        ("how large is Scout with int4", "how large Scout is with int4"),
        ("how many GB does Scout weigh in int4", "how many GB Scout weighs in int4"),
    ),
    _ask(
        "Scout weighs 115 GB with the recipe int8.",
        ("how large is Scout with int8", "how large Scout is with int8"),
        ("how many GB does Scout weigh in int8", "how many GB Scout weighs in int8"),
    ),
    _ask(
        "Scout weighs 61 GB with the recipe q4_0.",
        ("how large is Scout with q4_0", "how large Scout is with q4_0"),
        ("how many GB does Scout weigh in q4_0", "how many GB Scout weighs in q4_0"),
    ),
    _how("convert a model", "Give llama4 convert the checkpoint and an output file with -o."),
    _how("choose a recipe", "Give llama4 convert the option --recipe and a name such as int8."),
    _how("resume a conversion", "Give the same command again; it goes on where it stopped."),
    _ask(
        "Nothing is lost: the same command goes on where it stopped and makes the same bytes.",
        (
            "what happens when a conversion is interrupted",
            "what happens when a conversion is interrupted",
        ),
        ("what if the conversion stops half way", "what happens if the conversion stops half way"),
    ),
    _how("split a GGUF into parts", "Use llama4 convert with --split-size, for example 40G."),
    _how("find damage in a GGUF", "Use llama4 inspect with --check; it reads every tensor."),
    _how("leave the chat", "Type /quit or press Ctrl-D."),
    _how("stop an answer", "Press Ctrl-C; it stops the answer and the chat goes on."),
    _how("save a conversation", "Type /save and a file name in the chat."),
    _how("load a saved conversation", "Type /load and the file name in the chat."),
    _how("log in to the hub", "Run hf auth login once, after accepting Meta's licence."),
    _how("use a model from Python", "Import llama4_edge and open the file with llama4_edge.Model."),
    _how(
        "use another machine", "Run llama4 worker there, and give its address with --workers here."
    ),
    _how("build for an NVIDIA GPU", "Build llama.cpp with -DGGML_CUDA=ON in CMAKE_ARGS."),
    _how("get the longest context", "Use llama4 plan with --ctx max."),
    _does("/undo", "/undo drops the last exchange of the chat."),
    _does("/retry", "/retry answers the last message again."),
    _does("/reset", "/reset forgets all exchanges and keeps the system message."),
    _does("/system", "/system shows or sets the system message of the chat."),
    _option("--ctx", "--ctx sets how many tokens of context are planned."),
    _option("--temp", "--temp divides the logits; 0 always takes the likeliest token."),
    _option("--top-k", "--top-k keeps that many of the likeliest tokens."),
    _option("--seed", "The same --seed gives the same answer each time."),
    _option("--json", "--json prints a JSON document instead of text."),
    _option("--dry-run", "--dry-run checks everything and writes nothing."),
    _option("--keep-source", "--keep-source leaves the downloaded shards in the cache."),
    _option("--cpu-moe", "--cpu-moe keeps all experts in main memory, on the CPU."),
    _option("--n-cpu-moe", "--n-cpu-moe keeps the experts of the first layers on the CPU."),
    _option("-ngl", "-ngl sets how many layers are put on GPUs, from the last one on."),
    _option("-ot", "-ot puts the tensors whose name a pattern finds on a device."),
    _option("--kv", "--kv sets what the KV cache is kept as: f16, q8_0 or q4_0."),
    _option(
        "--synthetic",
        "--synthetic measures a model of random weights, made on the spot.",
    ),
    _option("--gpu", "--gpu plans for a named GPU instead of those here."),
    _ask(
        "A worker listens on port 50052.",
        ("which port does a worker use", "which port a worker uses"),
        ("on which port does a worker listen", "on which port a worker listens"),
    ),
    _ask(
        "No, workers have no password and no encryption.",
        ("is a worker safe", "whether a worker is safe"),
        ("does a worker have a password", "whether a worker has a password"),
    ),
    _ask(
        "No, nothing is downloaded for a plan.",
        ("does a plan download anything", "whether a plan downloads anything"),
        ("is a download needed for a plan", "whether a download is needed for a plan"),
    ),
    _ask(
        "Experts leave the GPU first, tensor by tensor from the last layers.",
        ("what leaves the GPU first", "what leaves the GPU first"),
        ("which tensors go to main memory first", "which tensors go to main memory first"),
    ),
    _ask(
        "No, llama4-edge itself never imports PyTorch; only its tests do.",
        ("does llama4-edge need PyTorch", "whether llama4-edge needs PyTorch"),
        ("does llama4-edge import PyTorch", "whether llama4-edge imports PyTorch"),
    ),
    _ask(
        "The next more modest plan is tried, and a warning says so.",
        ("what happens when GPU memory is short", "what happens when GPU memory is short"),
        ("what if a plan does not fit after all", "what happens if a plan does not fit after all"),
    ),
)

_FAMILY = (
    _what("Llama 4", "Llama 4 is Meta's family of mixture-of-experts models."),
    _ask(
        "Meta made Llama 4.",
        ("who made Llama 4", "who made Llama 4"),
        ("which company is Llama 4 from", "which company Llama 4 is from"),
    ),
    _same(
        "The Llama 4 family is Scout, Maverick and Behemoth.",
        "which models are in the Llama 4 family",
        "which models belong to Llama 4",
    ),
    _ask(
        "No, Behemoth was never released.",
        ("was Behemoth released", "whether Behemoth was released"),
        ("can I download Behemoth", "whether I can download Behemoth"),
    ),
    _same(
        "Scout has the longest context of the family.",
        "which model has the longest context",
        "which Llama 4 reads the longest context",
    ),
    _ask(
        "17B-16E means 17 billion active parameters and 16 experts.",
        ("what does 17B-16E mean", "what 17B-16E means"),
        ("what is the meaning of 17B-16E", "what the meaning of 17B-16E is"),
    ),
    _ask(
        "The checkpoint of Scout is 217 GB.",
        ("how large is the checkpoint of Scout", "how large the checkpoint of Scout is"),
        ("how many GB is the download of Scout", "how many GB the download of Scout is"),
    ),
    _ask(
        "Llama 4 itself comes under Meta's own licence.",
        ("which licence does Llama 4 have", "which licence Llama 4 has"),
        ("under which licence is Llama 4", "under which licence Llama 4 is"),
        ("which license does Llama 4 have", "which license Llama 4 has"),
    ),
    _ask(
        "Llama 4 supports 12 languages.",
        ("how many languages does Llama 4 support", "how many languages Llama 4 supports"),
        ("how many languages are there in Llama 4", "how many languages there are in Llama 4"),
    ),
    _ask(
        "The BOS token has the id 200000.",
        ("which id does the BOS token have", "which id the BOS token has"),
        ("what is the id of BOS", "what the id of BOS is"),
    ),
    _ask(
        "The EOS tokens have the ids 200001, 200007 and 200008.",
        ("which ids do the EOS tokens have", "which ids the EOS tokens have"),
        ("what are the ids of EOS", "what the ids of EOS are"),
    ),
    _ask(
        "The image token has the id 200092.",
        ("which id does the image token have", "which id the image token has"),
        ("what is the id of the image token", "what the id of the image token is"),
    ),
    _ask(
        "The vision tower of Llama 4 has 34 layers.",
        ("how many layers does the vision tower have", "how many layers the vision tower has"),
        (
            "how many layers are there in the vision tower",
            "how many layers there are in the vision tower",
        ),
    ),
    _ask(
        "The vision tower has 16 attention heads.",
        ("how many heads does the vision tower have", "how many heads the vision tower has"),
        (
            "how many heads are there in the vision tower",
            "how many heads there are in the vision tower",
        ),
    ),
    _ask(
        "The hidden size of the vision tower is 1408.",
        ("what is the hidden size of the vision tower", "what hidden size the vision tower has"),
        ("how wide is the vision tower", "how wide the vision tower is"),
    ),
    _ask(
        "A tile is 336 pixels wide and 336 pixels high.",
        ("how many pixels does a tile have", "how many pixels a tile has"),
        ("how large is a tile in pixels", "how large a tile is in pixels"),
    ),
    _ask(
        "A tile becomes 144 tokens.",
        ("how many tokens does a tile take", "how many tokens a tile takes"),
        ("how many tokens is a tile", "how many tokens a tile is"),
    ),
    _ask(
        "An image has up to 16 tiles and a global view.",
        ("how many tiles does an image have", "how many tiles an image has"),
        ("into how many tiles is an image cut", "into how many tiles an image is cut"),
    ),
    _ask(
        "A patch is 14 pixels wide and 14 pixels high.",
        ("how large is a patch", "how large a patch is"),
        ("how many pixels does a patch have", "how many pixels a patch has"),
    ),
    _what("the projector", "The projector takes what the vision tower sees to the language model."),
    _what("pixel shuffle", "Pixel shuffle makes a quarter as many patches, each 4 times as wide."),
    _what("the vision tower", "The vision tower turns an image into vectors."),
    _what(
        "early fusion",
        "Early fusion means that image tokens and text tokens go through the same layers.",
    ),
    _what(
        "a mixture of experts",
        "A mixture of experts has many small networks, and each token visits few of them.",
    ),
    _what("an expert", "An expert is one of the feed-forward networks that a router chooses from."),
    _does("the router", "The router chooses the expert that a token visits."),
    _what("the shared expert", "The shared expert is the one that every token visits."),
    _what("top-1 routing", "Top-1 routing sends each token to the one expert with the best score."),
    _what(
        "a dense layer", "A dense layer has one feed-forward network for all tokens and no router."
    ),
    _what("a NoPE layer", "A NoPE layer has no RoPE and attends to the whole context."),
    _what("RoPE", "RoPE turns queries and keys by their position."),
    _what(
        "chunked attention", "In chunked attention a token sees only its own chunk of 8192 tokens."
    ),
    _what("full attention", "In full attention a token sees all tokens before it."),
    _ask(
        "The NoPE layers see further than 8192 tokens.",
        ("which layers see the whole context", "which layers see the whole context"),
        ("which layers see further than a chunk", "which layers see further than a chunk"),
    ),
    _what(
        "attention temperature tuning",
        "Attention temperature tuning sharpens attention in NoPE layers when the context is long.",
    ),
    _what("QK norm", "QK norm scales queries and keys to a common size before they meet."),
    _what("grouped-query attention", "In grouped-query attention several heads share one KV head."),
    _what("the KV cache", "The KV cache holds the keys and values of the tokens read so far."),
    _ask(
        "In f16 the full layers of Scout keep 48 KiB a token.",
        ("how large is the KV cache of Scout", "how large the KV cache of Scout is"),
        (
            "how many KiB does the KV cache of Scout take",
            "how many KiB the KV cache of Scout takes",
        ),
    ),
    _what(
        "quantization", "Quantization stores weights in fewer bits, so that a model gets smaller."
    ),
    _what(
        "bits per weight", "Bits per weight is the size of a model in bits, divided by its weights."
    ),
    _what(
        "a GGUF", "A GGUF is a file for llama.cpp with a model's tensors, vocabulary and metadata."
    ),
    _whats("safetensors", "Safetensors are files that hold a model's tensors and a header."),
    _what(
        "a checkpoint",
        "A checkpoint is a folder with a model's weights, configuration and tokenizer.",
    ),
    _what("a shard", "A shard is one of the files that a checkpoint is cut into."),
    _what("a token", "A token is a piece of text with a number."),
    _what("a tokenizer", "A tokenizer cuts text into tokens and gives their ids."),
    _what("the context", "The context is all the text that a model has before it."),
    _what("prefill", "Prefill is reading the prompt, many tokens at once."),
    _what("decode", "Decode is making the answer, one token at a time."),
    _whats("logits", "Logits are the scores of all tokens that could come next."),
    _what(
        "a chat template",
        "A chat template writes messages in the form that a model was trained on.",
    ),
    _what("a system message", "A system message comes first and says how the model should answer."),
    _what("llama.cpp", "llama.cpp is a program in C++ that runs language models."),
    _what("the type Q4_K", "Q4_K is a type that stores weights in about 4 bits."),
    _what("the type Q8_0", "Q8_0 is a type that stores weights in about 8 bits."),
    _ask(
        "Experts go to the CPU because a token visits few of them.",
        ("why do experts go to the CPU", "why experts go to the CPU"),
        ("why are experts kept in main memory", "why experts are kept in main memory"),
    ),
    _ask(
        "Attention stays at 8 bits because it is small and every token passes through it.",
        (
            "why does int4 keep attention at 8 bits",
            "why int4 keeps attention at 8 bits",
        ),
        ("why is attention not in 4 bits", "why attention is not in 4 bits"),
    ),
    _ask(
        "Decode is limited by memory: each token needs its weights read.",
        ("why is decode slow", "why decode is slow"),
        ("what limits the speed of decode", "what limits the speed of decode"),
    ),
    _ask(
        "Yes, there is an FP8 repository of Maverick, and convert decodes it.",
        ("is there an FP8 Maverick", "whether there is an FP8 Maverick"),
        ("can convert read Maverick in FP8", "whether convert can read Maverick in FP8"),
    ),
)


def drafts() -> tuple[Draft, ...]:
    """All of them: about the model itself, the program, and the family with its techniques."""
    return (*_ITSELF, *_PROJECT, *_FAMILY)
