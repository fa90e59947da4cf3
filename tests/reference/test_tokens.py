"""Token ids are those of Meta's own tokenizer, for every text here, read back out of a GGUF.

Meta's tokenizer is tiktoken with Llama 4's 200000 merges and 2048 special tokens. Ours is what the
converter wrote into a GGUF from a published repository's ``tokenizer.json``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from llama_models.llama4.tokenizer import Tokenizer as MetaTokenizer
from tokenizers import Tokenizer

from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.runtime.files.gguf_file import read_gguf

# ruff: noqa: RUF001 (many scripts have letters that look like Latin ones)

SCRIPTS = {
    "latin": "Žluťoučký kůň úpěl ďábelské ódy; L'été, où ça? Straße ÄÖÜ, İstanbul'da ığdır.",
    "vietnamese": "Tiếng Việt có nhiều dấu: Nguyễn Huệ, Trường Sơn, đường phố.",
    "cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю. МОСКВА́ КиЇв",
    "greek": "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία· ΑΘΗΝΑ Καλημέρα.",
    "armenian": "Բարեւ ձեզ, ինչպե՞ս եք։ ՀԱՅԱՍՏԱՆ",
    "georgian": "გამარჯობა, როგორ ხარ? ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ",
    "hebrew": "שָׁלוֹם עוֹלָם, מה שלומך היום?",
    "arabic": "السَّلامُ عَلَيْكُم ورحمة الله، كيف حالك؟ ١٢٣٤٥",
    "persian": "می‌خواهم به خانه بروم؛ ۱۲۳۴۵",
    "devanagari": "नमस्ते दुनिया, हिन्दी में क्षत्रिय और ज्ञान। १२३४",
    "bengali": "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। ক্ষমা",
    "gurmukhi": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ ਦੁਨੀਆ",
    "gujarati": "નમસ્તે વિશ્વ, કેમ છો?",
    "tamil": "வணக்கம் உலகம், எப்படி இருக்கிறீர்கள்?",
    "telugu": "నమస్కారం ప్రపంచం, ఎలా ఉన్నారు?",
    "kannada": "ನಮಸ್ಕಾರ ಪ್ರಪಂಚ, ಹೇಗಿದ್ದೀರಿ?",
    "malayalam": "നമസ്കാരം ലോകമേ, സുഖമാണോ?",
    "sinhala": "ආයුබෝවන් ලෝකය, ඔබට කොහොමද?",
    "thai": "สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง น้ำแข็ง ๑๒๓",
    "lao": "ສະບາຍດີ ຊາວໂລກ",
    "khmer": "សួស្តី​ពិភពលោក តើអ្នកសុខសប្បាយទេ?",
    "burmese": "မင်္ဂလာပါ ကမ္ဘာလောက",
    "tibetan": "བཀྲ་ཤིས་བདེ་ལེགས།",
    "amharic": "ሰላም ዓለም፣ እንዴት ነህ?",
    "han": "天地玄黃,宇宙洪荒。日月盈昃,辰宿列張。简体中文测试:你好,世界!𠮷野家",
    "japanese": "いろはにほへと ちりぬるを。カタカナ、ｶﾀｶﾅ、東京タワー、プログラミング!",
    "hangul": "안녕하세요 세계, 오늘 날씨가 좋네요. 한국어",
    "mongolian": "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ",
    "cherokee": "ᎣᏏᏲ ᎡᎶᎯ ꭰꮿ",
    "thaana": "އައްސަލާމު ޢަލައިކުމް",
    "syriac": "ܫܠܡܐ ܥܠܟܘܢ",
    "tifinagh": "ⴰⵣⵓⵍ ⴰⵎⴰⴹⴰⵍ",
    "gothic": "𐌷𐌰𐌹𐌻𐌰 𐍆𐌰𐌹𐍂𐍈𐌿𐍃",
    "deseret": "𐐔𐐯𐑅𐐨𐑉𐐯𐐻 𐐀𐐁𐐂",
}

TEXTS = {
    "empty": "",
    "code": "def f(x: int) -> str:\n\treturn f'{x!r:>{10}}'  # ok\n\n\nclass A_b2(C):\n    pass\n",
    "c": '#include <stdio.h>\r\nint main(void){for(int i=0;i<10;++i)printf("%d\\n",i);}\r\n',
    "html": "<div class='a-b'>&nbsp;&#8217;</div><!-- x -->\n</body>",
    "paths": "https://example.org/a/b?c=d&e=%20f#g C:\\Users\\x ./../etc//passwd",
    "newlines after punctuation": "end.\n\n/next!\r\n//a;\n/\n",
    "spaces": " a  b   c    d     e      f       g",
    "trailing spaces": "word   ",
    "leading spaces": "    word",
    "only spaces": "                                                   ",
    "tabs and newlines": "\t\t\ta\n \n  \n\n\n\t\n b\r\r\n\n",
    "exotic spaces": "a\u00a0b\u2003c\u3000d\u2028e\u2029f\u0085g\u200bh\u202fi\ufeffj",
    "digits": "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 0x1F 1e-10 ²³ ⅷ ½ ٣٤٥ 四五",
    "contractions": "I'm you're he's we'll they'd I've don't 'tis o'clock rock'n'roll d's",
    "upper contractions": "I'M YOU'RE HE'S WE'LL THEY'D I'VE DON'T It'S wE'Ll",
    "unicode contractions": "I\u2019m don\u2019t it'\u017f we'\u212a",
    "camel case": "camelCase PascalCase HTTPServer XMLHttpRequest iPhone eBay macOS snake_c aBCdEF",
    "camel cyrillic": "камелКейс ПаскальКейс ХТТПСервер",
    "camel greek": "καμήλαΘήκη ΠασκάλΘήκη",
    "camel armenian": "ուղտՊատյան",
    "titlecase letters": "ǅungla ǈ ǋ ǲ ᾈ ᾘ",
    "modifier letters": "aʰbʷcˠ ʻokina ˈstress ⁿ ª º",
    "combining marks": "e\u0301 a\u0308\u0323 n\u0303 \u0301alone Z\u0351\u036b\u0343a\u0321l",
    "emoji": "\U0001f600 \U0001f44d\U0001f3fd \u2764\ufe0f 1\ufe0f\u20e3 \u263a\ufe0e\U0001fae0",
    "joined emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308",
    "flags": "\U0001f1e9\U0001f1ea\U0001f1ef\U0001f1f5 \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "mathematics": "∀x∈ℝ: ∑ᵢ xᵢ² ≥ 0 ⇒ √2 ≠ 1.41 𝒜𝓑𝔠 αβγ ∂f/∂x",
    "symbols": "!@#$%^&*()_+-=[]{}|;':\",./<>?`~ §±™©® «»„“” … — –",
    "repeats": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!!!!!!!!!!!!!!======------",
    "null and controls": "a\x00b\x01c\x1bd\x7fe\x80f",
    "lone surrogate": "a\ud800b\udc00",
    "private use": "\ue000\uf8ff\U000f0000\U0010ffff",
    "special token names": "<|begin_of_text|>x<|eot|><|header_start|>a<|header_end|>\n\n<|patch|>",
    "parts of special tokens": "<|eot|<|eot|>|> <|e<|eom|>ot|> <| |> <|nothing|>",
}


@pytest.fixture(scope="module")
def meta() -> MetaTokenizer:
    return MetaTokenizer.get_instance()


@pytest.fixture(scope="module")
def ours(full_vocabulary_bf16: Path) -> Vocabulary:
    return Vocabulary(read_gguf(full_vocabulary_bf16).metadata)


@pytest.mark.parametrize("name", [*SCRIPTS, *TEXTS])
def test_a_text_has_metas_ids(name: str, meta: MetaTokenizer, ours: Vocabulary) -> None:
    text = (SCRIPTS | TEXTS)[name]
    assert ours.encode(text) == meta.encode(text, bos=False, eos=False)


def test_all_texts_in_one_have_metas_ids(meta: MetaTokenizer, ours: Vocabulary) -> None:
    text = " ".join([*SCRIPTS.values(), *TEXTS.values()])
    assert ours.encode(text, add_bos=True) == meta.encode(text, bos=True, eos=False)


@pytest.mark.parametrize(
    "text",
    [
        "A" * 25_000,
        "A" * 25_001,
        "word " + "A" * 70_000 + " word",
        "x" + " " * 60_000 + "y",
        "\u3000\n" * 20_000 + "日本" * 20_000,
        ("word " * 90_000 + "B" * 30_000) * 2,
        "na\u00efve " * 130_000,
    ],
    ids=["limit", "beyond", "a word", "spaces", "wide", "two stretches", "long"],
)
def test_a_word_without_end_is_cut_as_meta_cuts_it(
    text: str, meta: MetaTokenizer, ours: Vocabulary
) -> None:
    assert ours.encode(text) == meta.encode(text, bos=False, eos=False)


def test_texts_survive_a_round_trip(ours: Vocabulary) -> None:
    for name, text in (SCRIPTS | TEXTS).items():
        if name != "lone surrogate":
            assert ours.decode(ours.encode(text)) == text


def test_all_special_tokens_have_metas_ids(meta: MetaTokenizer, ours: Vocabulary) -> None:
    assert len(meta.special_tokens) == 2048
    assert dict(ours.control_tokens) == meta.special_tokens
    text = "".join(f" a{token}\n" for token in meta.special_tokens)
    expected = meta.encode(text, bos=False, eos=False, allowed_special="all")
    assert set(meta.special_tokens.values()) <= set(expected)
    assert ours.encode(text, special=True) == expected


def test_special_tokens_in_plain_text_stay_text(meta: MetaTokenizer, ours: Vocabulary) -> None:
    # With spaces, because Meta's tokenizer also cuts after 25000 characters without one.
    text = " ".join(meta.special_tokens)
    ids = ours.encode(text)
    assert ids == meta.encode(text, bos=False, eos=False)
    assert not set(ids) & set(meta.special_tokens.values())


def test_every_character_of_the_basic_plane_has_metas_ids(
    meta: MetaTokenizer, ours: Vocabulary
) -> None:
    for start in range(0, 0x10000, 64):
        characters = [chr(code) for code in range(start, start + 64) if not 0xD800 <= code < 0xE000]
        text = "".join(
            f"a{character}B {character}1{character}{character}" for character in characters
        )
        assert ours.encode(text) == meta.encode(text, bos=False, eos=False), hex(start)


def test_random_strings_have_metas_ids(meta: MetaTokenizer, ours: Vocabulary) -> None:
    rng = np.random.default_rng(4)
    for _ in range(4000):
        text = random_text(rng)
        assert ours.encode(text) == meta.encode(text, bos=False, eos=False), ascii(text)


def random_text(rng: np.random.Generator) -> str:
    """Up to 40 characters: ASCII, spaces, letters of all scripts, and any code point at all."""
    pieces = []
    for _ in range(rng.integers(1, 40)):
        kind = rng.integers(5)
        if kind == 0:
            pieces.append(chr(rng.integers(0x20, 0x7F)))
        elif kind == 1:
            pieces.append(rng.choice(list(" \t\n\r\u00a0\u3000'")))
        elif kind == 2:
            pieces.append(chr(rng.integers(0xA0, 0x3100)))
        elif kind == 3:
            pieces.append(rng.choice(list(EVERY_SCRIPT)))
        else:
            code = int(rng.integers(0x110000))
            pieces.append(chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd")
    return "".join(pieces)


EVERY_SCRIPT = sorted(set("".join(SCRIPTS.values())))

# llama.cpp knows a tokenizer by the SHA-256 of its ids, in Python's notation, for this text
# (convert_hf_to_gguf.py, get_vocab_base_pre); this hash is the one it calls "llama4".
CHECK_HASH = "d353350c764d8c3b39c763113960e4fb4919bea5fbf208a0e3b22e8469dc7406"
CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n\U0001f680 (normal) \U0001f636\u200d"
    "\U0001f32b\ufe0f (multiple emojis concatenated) \u2705 \U0001f999\U0001f999 3 33 333 3"
    "333 33333 333333 3333333 33333333 3.3 3..3 3...3 \u1780\u17b6\u1793\u17cb\u178f\u17c2"
    "\u1796\u17b7\u179f\u17c1\u179f\u17a2\u17b6\u1785\U0001f601 ?\u6211\u60f3\u5728apple"
    "\u5de5\u4f5c1314151\u5929\uff5e ------======= \u043d\u0435\u0449\u043e \u043d\u0430 "
    "\u0411\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438 ''''''```````\"\"\"\"......!!"
    "!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you "
    "like some tea? We'Ve a'lL"
)


def test_the_reference_tokenizer_is_the_one_llama_cpp_knows(real_tokenizer_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(real_tokenizer_dir / "tokenizer.json"))
    assert digest(tokenizer.encode(CHECK_TEXT).ids) == CHECK_HASH


def test_our_tokenizer_is_the_one_llama_cpp_knows(ours: Vocabulary) -> None:
    assert digest(ours.encode(CHECK_TEXT, add_bos=True)) == CHECK_HASH


def digest(ids: list[int]) -> str:
    return hashlib.sha256(str(ids).encode()).hexdigest()
