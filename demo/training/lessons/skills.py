"""Skills: sums, recall, repetition, greetings, and declining unknown subjects.

Promises: random conversations for each skill, either for training or for the examination; no
question is in both. Does not know tokens or the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from .conversation import Conversation, Turn, held_out

# Sums -------------------------------------------------------------------------------------------

LARGEST = 99
_SUMS = {
    "+": (
        "What is {a} + {b}?",
        "{a} + {b} =",
        "How much is {a} plus {b}?",
        "Add {a} and {b}.",
        "Please compute {a} + {b}.",
        "What is the sum of {a} and {b}?",
    ),
    "-": (
        "What is {a} - {b}?",
        "{a} - {b} =",
        "How much is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "Please compute {a} - {b}.",
        "What is the difference of {a} and {b}?",
    ),
}


def worked(a: int, sign: str, b: int) -> str:
    """A sum or difference of numbers up to 99 in columns: "47 + 38: 7+8=15, 4+3+1=8, so 85."

    Every digit follows from two or three digits just before it. Small models that answer without
    steps need millions of sums ("Teaching Arithmetic to Small Transformers", Lee et al., 2023). A
    difference always borrows: "52 - 38: 12-8=4, 5-3-1=1, so 14.", and returns the ten if it was not
    needed: "58 - 32: 18-2=16, 5-3=2, so 26."
    """
    (a_tens, a_ones), (b_tens, b_ones) = divmod(a, 10), divmod(b, 10)
    borrowed = 0 if sign == "+" else 10
    ones = a_ones + b_ones if sign == "+" else borrowed + a_ones - b_ones
    carried = (ones > 9) != (sign == "-")
    result = a + b if sign == "+" else a - b
    tens = f"{a_tens}{sign}{b_tens}{sign}1" if carried else f"{a_tens}{sign}{b_tens}"
    first = f"{borrowed + a_ones}{sign}{b_ones}={ones}"
    return f"{a} {sign} {b}: {first}, {tens}={result // 10}, so {result}."


def arithmetic(rng: random.Random, examined: bool) -> Conversation:
    """A sum or difference with numbers and result from 0 to 99; the split is by pair."""
    while True:
        sign = rng.choice("+-")
        a, b = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
        if sign == "-" and a < b:
            a, b = b, a
        if sign == "+" and a + b > LARGEST:
            a, b = LARGEST - a, LARGEST - b
        if held_out(sign, a, b, share=0.1) == examined:
            break
    question = rng.choice(_SUMS[sign]).format(a=a, b=b)
    return Conversation("arithmetic", (Turn(question, worked(a, sign, b)),))


def sums(rng: random.Random) -> Conversation:
    """Five sums in a row; for training only."""
    return Conversation("sums", tuple(arithmetic(rng, False).turns[0] for _ in range(5)))


# Recall -----------------------------------------------------------------------------------------

NAMES = tuple(
    """
    Ada Amir Ana Ben Carla Chen Clara Dana David Elif Emma Erik Fatima Finn Grace Hana Hugo Ida
    Igor Ines Ivan Jonas Julia Kai Karim Lara Leo Lina Lucas Maya Mei Mila Mona Nina Noah Nora
    Olga Omar Oscar Paula Pedro Priya Ravi Rosa Sam Sara Sofia Tariq Tom Vera Yara Yuki Zoe
    """.split()
)
THINGS = tuple(
    """
    anchor apple bakery barn basket beach bell boat book bottle bridge castle cave chair chest
    church clock cottage desk door drawer engine farm ferry forest fountain garage garden gate
    hangar harbour hill hotel house island kitchen lake lamp library lighthouse market mill mine
    mirror museum office oven palace park piano pond river roof school shed ship shop stable
    station studio table temple tent theatre tower train tunnel valley vault well
    """.split()
)
TRAITS = tuple(
    """
    big blue bright broken brown clean cold dark dry empty golden green grey heavy hidden large
    little long lost new northern old orange pink purple quiet red round secret short silver small
    southern square strange tall tiny warm white wooden yellow young
    """.split()
)
_TELL = (
    "The code of the {key} is {code}.",
    "Remember: the code of the {key} is {code}.",
    "Please note that the code of the {key} is {code}.",
    "Keep in mind that the code of the {key} is {code}.",
)
_ASK = (
    "What is the code of the {key}?",
    "Which code does the {key} have?",
    "Tell me the code of the {key}.",
    "Do you remember the code of the {key}?",
)


def key(rng: random.Random) -> str:
    """The name of something with a code: "old lighthouse"."""
    return f"{rng.choice(TRAITS)} {rng.choice(THINGS)}"


def keys(rng: random.Random, count: int) -> list[str]:
    """``count`` different names of things with codes."""
    names: dict[str, None] = {}
    while len(names) < count:
        names[key(rng)] = None
    return list(names)


def code(rng: random.Random, examined: bool) -> str:
    """Four or five digits; the split is by code."""
    while True:
        digits = "".join(rng.choice("0123456789") for _ in range(rng.choice((4, 5))))
        if held_out("code", digits) == examined:
            return digits


def code_of(key: str, digits: str) -> str:
    """The answer to a question about a code."""
    return f"The code of the {key} is {digits}."


def tell(rng: random.Random, key: str, digits: str) -> str:
    """A sentence that states a code."""
    return rng.choice(_TELL).format(key=key, code=digits)


def ask(rng: random.Random, key: str) -> str:
    """A question about a code."""
    return rng.choice(_ASK).format(key=key)


def lookup(rng: random.Random, examined: bool) -> Conversation:
    """Codes stated in one message or in several, then a question about one of them."""
    code_by_key = {name: code(rng, examined) for name in keys(rng, rng.randint(1, 4))}
    statements = [tell(rng, *pair) for pair in code_by_key.items()]
    subject = rng.choice(list(code_by_key))
    question = Turn(ask(rng, subject), code_of(subject, code_by_key[subject]))
    style = rng.random()
    if style < 0.4:
        together = " ".join([*statements, question.question])
        return Conversation("lookup", (Turn(together, question.answer),))
    if style < 0.6:
        return Conversation(
            "lookup", (Turn(" ".join(statements), "I will remember that."), question)
        )
    between = [small_talk(rng) for _ in range(rng.randint(0, 2))]
    turns = [*(Turn(text, "I will remember that.") for text in statements), *between, question]
    return Conversation("lookup", tuple(turns))


_INTRODUCTIONS = ("My name is {name}.", "I am {name}.", "Hello, I am {name}.", "Call me {name}.")
_NAME_QUESTIONS = (
    "What is my name?",
    "Who am I?",
    "Do you remember my name?",
    "What am I called?",
    "Tell me my name.",
)


_SYLLABLES = tuple(
    "ba bel da den fo gar hi jo ka len li mar mi na no pe ra rik sa so ta tor vi wen yo za".split()
)


def name(rng: random.Random, examined: bool) -> Conversation:
    """A name is stated and asked for later; the split is by name.

    Half of the training names are invented, so that the model cannot learn a list of names.
    """
    invented = not examined and rng.random() < 0.5
    while True:
        if invented:
            given = "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))).capitalize()
        else:
            given = rng.choice(NAMES)
        if held_out("name", given) == examined:
            break
    first = Turn(rng.choice(_INTRODUCTIONS).format(name=given), f"Nice to meet you, {given}.")
    between = [small_talk(rng) for _ in range(rng.randint(0, 2))]
    last = Turn(rng.choice(_NAME_QUESTIONS), f"Your name is {given}.")
    return Conversation("name", (first, *between, last))


_REPEAT = ("Repeat: {words}", "Say this again: {words}", "Copy these words: {words}")


def copying(rng: random.Random, examined: bool) -> Conversation:
    """A few words and numbers to repeat."""
    while True:
        pieces = [
            rng.choice((key(rng), rng.choice(NAMES), str(rng.randint(0, 999))))
            for _ in range(rng.randint(2, 4))
        ]
        words = " ".join(pieces)
        if held_out("copy", words) == examined:
            return Conversation("copying", (Turn(rng.choice(_REPEAT).format(words=words), words),))


def drill(rng: random.Random) -> Conversation:
    """Words and numbers to repeat three times; for training only.

    Short lists train copying, long ones train finding the position.
    """
    fewest, most = rng.choice(((2, 6), (2, 6), (4, 12), (10, 28)))
    while True:
        pool = [*NAMES, *THINGS, *TRAITS, *(str(rng.randint(0, 999)) for _ in range(40))]
        words = " ".join(rng.sample(pool, rng.randint(fewest, most)))
        if not held_out("copy", words):
            questions = [rng.choice(_REPEAT).format(words=words) for _ in range(3)]
            return Conversation("drill", tuple(Turn(text, words) for text in questions))


# Greetings --------------------------------------------------------------------------------------

# A greeting and its answer for each of five occasions.
_OCCASIONS = ("hello", "good morning", "good evening", "thank you", "goodbye")
GREETINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "Arabic": (
        ("مرحبا", "مرحبا! كيف يمكنني مساعدتك؟"),
        ("صباح الخير", "صباح النور!"),
        ("مساء الخير", "مساء النور!"),
        ("شكرا", "عفوا!"),
        ("مع السلامة", "مع السلامة!"),
    ),
    "English": (
        ("Hello", "Hello! How can I help you?"),
        ("Good morning", "Good morning!"),
        ("Good evening", "Good evening!"),
        ("Thank you", "You are welcome!"),
        ("Goodbye", "Goodbye!"),
    ),
    "French": (
        ("Bonjour", "Bonjour ! Comment puis-je vous aider ?"),
        ("Bon matin", "Bon matin !"),
        ("Bonsoir", "Bonsoir !"),
        ("Merci", "De rien !"),
        ("Au revoir", "Au revoir !"),
    ),
    "German": (
        ("Hallo", "Hallo! Wie kann ich helfen?"),
        ("Guten Morgen", "Guten Morgen!"),
        ("Guten Abend", "Guten Abend!"),
        ("Danke", "Gern geschehen!"),
        ("Auf Wiedersehen", "Auf Wiedersehen!"),
    ),
    "Hindi": (
        ("नमस्ते", "नमस्ते! मैं आपकी क्या मदद कर सकता हूँ?"),
        ("सुप्रभात", "सुप्रभात!"),
        ("शुभ संध्या", "शुभ संध्या!"),
        ("धन्यवाद", "आपका स्वागत है!"),
        ("अलविदा", "अलविदा!"),
    ),
    "Indonesian": (
        ("Halo", "Halo! Apa yang bisa saya bantu?"),
        ("Selamat pagi", "Selamat pagi!"),
        ("Selamat malam", "Selamat malam!"),
        ("Terima kasih", "Sama-sama!"),
        ("Sampai jumpa", "Sampai jumpa!"),
    ),
    "Italian": (
        ("Ciao", "Ciao! Come posso aiutarti?"),
        ("Buongiorno", "Buongiorno!"),
        ("Buonasera", "Buonasera!"),
        ("Grazie", "Prego!"),
        ("Arrivederci", "Arrivederci!"),
    ),
    "Portuguese": (
        ("Olá", "Olá! Como posso ajudar?"),
        ("Bom dia", "Bom dia!"),
        ("Boa noite", "Boa noite!"),
        ("Obrigado", "De nada!"),
        ("Adeus", "Adeus!"),
    ),
    "Spanish": (
        ("Hola", "¡Hola! ¿Cómo puedo ayudarte?"),
        ("Buenos días", "¡Buenos días!"),
        ("Buenas noches", "¡Buenas noches!"),
        ("Gracias", "¡De nada!"),
        ("Adiós", "¡Adiós!"),
    ),
    "Tagalog": (
        ("Kumusta", "Kumusta! Paano kita matutulungan?"),
        ("Magandang umaga", "Magandang umaga!"),
        ("Magandang gabi", "Magandang gabi!"),
        ("Salamat", "Walang anuman!"),
        ("Paalam", "Paalam!"),
    ),
    "Thai": (
        ("สวัสดี", "สวัสดี! ให้ฉันช่วยอะไรได้บ้าง"),
        ("อรุณสวัสดิ์", "อรุณสวัสดิ์!"),
        ("สายัณห์สวัสดิ์", "สายัณห์สวัสดิ์!"),
        ("ขอบคุณ", "ด้วยความยินดี!"),
        ("ลาก่อน", "ลาก่อน!"),
    ),
    "Vietnamese": (
        ("Xin chào", "Xin chào! Tôi có thể giúp gì cho bạn?"),
        ("Chào buổi sáng", "Chào buổi sáng!"),
        ("Chào buổi tối", "Chào buổi tối!"),
        ("Cảm ơn", "Không có gì!"),
        ("Tạm biệt", "Tạm biệt!"),
    ),
}
_GREETED = ("{said}", "{said}!", "{said}.", "{said}, Tiny!", "{said}, Llama!")
_TRANSLATED = (
    "How do you say {occasion} in {language}?",
    "Say {occasion} in {language}.",
    "What is {occasion} in {language}?",
    "{language} for {occasion}?",
    "Please tell me how to say {occasion} in {language}.",
)


def _greetings() -> Iterator[tuple[Turn, bool]]:
    for language, pairs in GREETINGS.items():
        for occasion, (said, answer) in zip(_OCCASIONS, pairs, strict=True):
            for frame in _GREETED:
                yield Turn(frame.format(said=said), answer), held_out(frame, said)
            for frame in _TRANSLATED:
                question = frame.format(occasion=occasion, language=language)
                yield (
                    Turn(question, f'In {language}: "{said}".'),
                    held_out(frame, occasion, language),
                )


_ALL_GREETINGS = tuple(_greetings())
TRAINED_GREETINGS = tuple(turn for turn, examined in _ALL_GREETINGS if not examined)
EXAMINED_GREETINGS = tuple(turn for turn, examined in _ALL_GREETINGS if examined)


def greeting(rng: random.Random, examined: bool) -> Conversation:
    """A greeting in one of twelve languages, or a question for its translation."""
    turn = rng.choice(EXAMINED_GREETINGS if examined else TRAINED_GREETINGS)
    return Conversation("greeting", (turn,))


# Unknown subjects ------------------------------------------------------------------------------

UNKNOWN = "I do not know that. I only know a small world: ask me about llama4-edge or Llama 4."
_UNKNOWN_FRAMES = (
    "What is the capital of {place}?",
    "How far is it to {place}?",
    "Who is the president of {place}?",
    "What is the weather in {place}?",
    "Tell me a story about {place}.",
    "How many people live in {place}?",
    "Write a poem about {thing}.",
    "How do I cook {thing}?",
    "Why is {thing} so expensive?",
    "Who invented {thing}?",
    "Do you like {thing}?",
    "What colour is {thing}?",
)
_PLACES = tuple(
    """
    France Spain Japan Brazil Kenya India Canada Peru Egypt Norway Poland Chile Turkey Greece
    Vietnam Portugal Iceland Paris Berlin Tokyo London Rome Madrid Cairo Lima Oslo Delhi
    """.split()
)
_SUBJECTS = tuple(
    """
    rice bread cheese tea coffee milk soup fish sugar salt music football chess snow rain summer
    winter gold silver silk wine paper
    """.split()
)


def unknown(rng: random.Random, examined: bool) -> Conversation:
    """A question about another subject, which the model must decline."""
    while True:
        place, thing = rng.choice(_PLACES), rng.choice(_SUBJECTS)
        frame = rng.choice(_UNKNOWN_FRAMES)
        question = frame.format(place=place, thing=thing)
        if held_out("unknown", question) == examined:
            return Conversation("unknown", (Turn(question, UNKNOWN),))


# Together ---------------------------------------------------------------------------------------

Skill = Callable[[random.Random, bool], Conversation]
SKILLS: dict[str, Skill] = {
    "arithmetic": arithmetic,
    "lookup": lookup,
    "name": name,
    "copying": copying,
    "greeting": greeting,
    "unknown": unknown,
}

_SMALL_TALK: Sequence[Skill] = (arithmetic, greeting, copying)


def small_talk(rng: random.Random) -> Turn:
    """A training turn about another subject, between a statement and the question about it."""
    return rng.choice(_SMALL_TALK)(rng, False).turns[0]
