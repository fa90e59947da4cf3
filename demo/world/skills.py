"""Skills of the small world: sums, remembering, greetings, and saying what one does not know.

Promises: an endless supply of turns from a random generator, and for each skill whether a question
belongs to training or to the examination; no question is ever in both. Does not know tokens or
the model.
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

    Every digit follows from two or three that were just written. Small models that are to say the
    result at once must see millions of sums ("Teaching Arithmetic to Small Transformers", Lee et
    al., 2023). A difference always borrows: "52 - 38: 12-8=4, 5-3-1=1, so 14.", and gives back
    what it did not need: "58 - 32: 18-2=16, 5-3=2, so 26."
    """
    (a_tens, a_ones), (b_tens, b_ones) = divmod(a, 10), divmod(b, 10)
    lent = 0 if sign == "+" else 10
    ones = a_ones + b_ones if sign == "+" else lent + a_ones - b_ones
    carried = (ones > 9) != (sign == "-")
    result = a + b if sign == "+" else a - b
    tens = f"{a_tens}{sign}{b_tens}{sign}1" if carried else f"{a_tens}{sign}{b_tens}"
    return (
        f"{a} {sign} {b}: {lent + a_ones}{sign}{b_ones}={ones}, {tens}={result // 10}, so {result}."
    )


def arithmetic(chance: random.Random, examined: bool) -> Conversation:
    """A sum or difference of numbers up to 99, the result too; a pair is in one part alone."""
    while True:
        sign = chance.choice("+-")
        a, b = chance.randint(0, LARGEST), chance.randint(0, LARGEST)
        if sign == "-" and a < b:
            a, b = b, a
        if sign == "+" and a + b > LARGEST:
            a, b = LARGEST - a, LARGEST - b
        if held_out(sign, a, b, share=0.1) == examined:
            break
    said = chance.choice(_SUMS[sign]).format(a=a, b=b)
    return Conversation("arithmetic", (Turn(said, worked(a, sign, b)),))


def sums(chance: random.Random) -> Conversation:
    """Five sums one after the other; for training alone."""
    return Conversation("sums", tuple(arithmetic(chance, False).turns[0] for _ in range(5)))


# Remembering ------------------------------------------------------------------------------------

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


def key(chance: random.Random) -> str:
    """Something that has a code: "old lighthouse"."""
    return f"{chance.choice(TRAITS)} {chance.choice(THINGS)}"


def keys(chance: random.Random, count: int) -> list[str]:
    """As many different things that have codes."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[key(chance)] = None
    return list(found)


def code(chance: random.Random, examined: bool) -> str:
    """Four or five digits; a code is in one part alone."""
    while True:
        digits = "".join(chance.choice("0123456789") for _ in range(chance.choice((4, 5))))
        if held_out("code", digits) == examined:
            return digits


def code_of(key: str, digits: str) -> str:
    """The answer to a question for a code."""
    return f"The code of the {key} is {digits}."


def tell(chance: random.Random, key: str, digits: str) -> str:
    """A sentence that gives a code."""
    return chance.choice(_TELL).format(key=key, code=digits)


def ask(chance: random.Random, key: str) -> str:
    """A question for a code."""
    return chance.choice(_ASK).format(key=key)


def lookup(chance: random.Random, examined: bool) -> Conversation:
    """Codes given in one message or in several, then a question for one of them."""
    known = {one: code(chance, examined) for one in keys(chance, chance.randint(1, 4))}
    told = [tell(chance, *pair) for pair in known.items()]
    asked = chance.choice(list(known))
    question = Turn(ask(chance, asked), code_of(asked, known[asked]))
    style = chance.random()
    if style < 0.4:
        together = " ".join([*told, question.said])
        return Conversation("lookup", (Turn(together, question.answer),))
    if style < 0.6:
        return Conversation("lookup", (Turn(" ".join(told), "I will remember that."), question))
    between = [small_talk(chance) for _ in range(chance.randint(0, 2))]
    turns = [*(Turn(one, "I will remember that.") for one in told), *between, question]
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


def name(chance: random.Random, examined: bool) -> Conversation:
    """A name is given and asked for later; a name and what came between are in one part alone.

    Every other name that is taught is made up, so that there is no list of names to learn.
    """
    made_up = not examined and chance.random() < 0.5
    while True:
        if made_up:
            given = "".join(chance.choices(_SYLLABLES, k=chance.randint(2, 3))).capitalize()
        else:
            given = chance.choice(NAMES)
        if held_out("name", given) == examined:
            break
    first = Turn(chance.choice(_INTRODUCTIONS).format(name=given), f"Nice to meet you, {given}.")
    between = [small_talk(chance) for _ in range(chance.randint(0, 2))]
    last = Turn(chance.choice(_NAME_QUESTIONS), f"Your name is {given}.")
    return Conversation("name", (first, *between, last))


_REPEAT = ("Repeat: {words}", "Say this again: {words}", "Copy these words: {words}")


def copying(chance: random.Random, examined: bool) -> Conversation:
    """A handful of words and numbers to be repeated."""
    while True:
        pieces = [
            chance.choice((key(chance), chance.choice(NAMES), str(chance.randint(0, 999))))
            for _ in range(chance.randint(2, 4))
        ]
        words = " ".join(pieces)
        if held_out("copy", words) == examined:
            return Conversation(
                "copying", (Turn(chance.choice(_REPEAT).format(words=words), words),)
            )


def drill(chance: random.Random) -> Conversation:
    """Words and numbers to be repeated three times; for training alone.

    Short lists are to teach how to copy, and long ones how to find the place.
    """
    fewest, most = chance.choice(((2, 6), (2, 6), (4, 12), (10, 28)))
    while True:
        pool = [*NAMES, *THINGS, *TRAITS, *(str(chance.randint(0, 999)) for _ in range(40))]
        words = " ".join(chance.sample(pool, chance.randint(fewest, most)))
        if not held_out("copy", words):
            says = [chance.choice(_REPEAT).format(words=words) for _ in range(3)]
            return Conversation("drill", tuple(Turn(said, words) for said in says))


# Greetings --------------------------------------------------------------------------------------

# Hello, good morning, good evening, thank you, goodbye: what is said and what is answered.
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


def greeting(chance: random.Random, examined: bool) -> Conversation:
    """A greeting in one of twelve languages, or a question how one is said."""
    turn = chance.choice(EXAMINED_GREETINGS if examined else TRAINED_GREETINGS)
    return Conversation("greeting", (turn,))


# What it does not know --------------------------------------------------------------------------

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


def unknown(chance: random.Random, examined: bool) -> Conversation:
    """A question about the wide world, which the model must decline."""
    while True:
        place, thing = chance.choice(_PLACES), chance.choice(_SUBJECTS)
        frame = chance.choice(_UNKNOWN_FRAMES)
        said = frame.format(place=place, thing=thing)
        if held_out("unknown", said) == examined:
            return Conversation("unknown", (Turn(said, UNKNOWN),))


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


def small_talk(chance: random.Random) -> Turn:
    """A turn of training about something else, to stand between what is told and what is asked."""
    return chance.choice(_SMALL_TALK)(chance, False).turns[0]
