"""2,000 strings to try a tokenizer with: all planes and kinds of characters, and what breaks tokenizers."""

# ruff: noqa: RUF001, SIM905

import random

SPECIAL = "<|endoftext|> </s> <s> <pad> <unk> [CLS] [SEP] [MASK] [UNK] <|im_end|> <0x41> <extra_id_0> ##ing".split()
SPECIAL += "[sep] \uff1c/s\uff1e \uff1c|endoftext|\uff1e </S> <0x0A> ▁ ▁▁ Ġ Ċ".split()
WHITE = [*" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u200a\u2028\u2029\u202f\u205f\u3000"]
UNSEEN = [*"\x00\x01\x07\x1b\x7f\x80\x9f\xad\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\ufeff\ufffd"]
UNSEEN += [*"\ufdd0\ufffe\U0001fffe\U0010ffff\U000e0001\ue000\U000f0000\U00100000\ufe0f"]
COMBINING = [
    *"\u0300\u0301\u0307\u0308\u0323\u0328\u034f\u0489\u05b0\u064b\u0670\u093c\u094d\u0e31\u1ab0\u20d0\u302a\u3099"
]
EMOJI = "🙂 \U0001f469\u200d\U0001f469\u200d\U0001f467 👍🏽 🇩🇪 🇩 \u2764\ufe0f ☃ 1\ufe0f\u20e3".split()
EMOJI += "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f".split()
EMOJI += "\U0001f9d1\U0001f3ff\u200d\U0001f680".split()
SCRIPTS = (
    "Σίσυφος ΣΑΣ İstanbul ǅ ß ﬁﬀ Ⅷ ① ２０ ｱﾊﾟ 日本語 中文字 한국어 각 \u1112\u1161\u11ab שָׁלוֹם العَرَبِيَّة हिन्दी".split()
)
SCRIPTS += "ภาษาไทย தமிழ் Ångström e\u0301 q\u0307\u0323 \u2126 \u212b \ufb2c ﷺ".split()
NUMBERS = "0 12 1234567 3.14 1,000 ½ ² ٣٤ ௧ Ⅻ 1e-5 0x1F 𝟘𝟙 〇".split()
ENGLISH = "to be or not that is the question it's we'll I'M they've DON'T 'S cats and dogs, (well) "
ENGLISH += "state-of-the-art e.g. a_b x=y; http://x.y/z?q=1"


def odd_texts(count: int = 2000, seed: int = 0) -> list[str]:
    """The same strings each time; none holds a lone surrogate, which is not text."""
    draw = random.Random(seed)
    words = ENGLISH.split(" ")
    fixed = [
        "",
        " ",
        "  ",
        "\n",
        "\r",
        "\r\n",
        "\n\n\n",
        "\t",
        " a",
        "a ",
        "  a  b  ",
        " \n \n  x",
        "a\rb",
        "a\r\nb\n\rc",
    ]
    fixed += [*SPECIAL, *WHITE, *UNSEEN, *COMBINING, *EMOJI, *SCRIPTS, *NUMBERS, ENGLISH, ENGLISH.upper()]
    fixed += [f"cats{token}dogs" for token in SPECIAL] + [f"a {token} b" for token in SPECIAL]
    fixed += [f"a{character}b {character} c{character}" for character in WHITE + UNSEEN + COMBINING]
    fixed += [
        "a" * 300,
        "ab" * 200,
        " " * 50,
        "\n" * 30,
        "!?" * 50,
        "9" * 60,
        "猫" * 120,
        "é" * 90,
        "e\u0301" * 60,
        "🙂" * 40,
    ]
    groups = [
        words,
        words,
        [" "],
        [" "],
        [*"\n  "],
        SPECIAL,
        WHITE,
        UNSEEN,
        COMBINING,
        EMOJI,
        SCRIPTS,
        NUMBERS,
        [*"'.,-!?()"],
    ]
    texts = fixed
    while len(texts) < count:
        kind = len(texts) % 4
        if kind == 0:  # words as people write them
            texts.append(" ".join(draw.choices(words, k=draw.randint(1, 12))))
        elif kind == 1:  # any characters of any plane
            texts.append("".join(_any_character(draw) for _ in range(draw.randint(1, 20))))
        elif kind == 2:  # characters of one block, as a language has them
            start = draw.randrange(0x0, 0x3400) if draw.random() < 0.8 else draw.randrange(0x10000, 0x1FA00)
            texts.append("".join(chr(start + draw.randrange(64)) for _ in range(draw.randint(1, 30))))
        else:
            texts.append("".join(draw.choice(draw.choice(groups)) for _ in range(draw.randint(1, 25))))
    return texts[:count]


def _any_character(draw: random.Random) -> str:
    while True:
        code = draw.choice(
            (draw.randrange(0x80), draw.randrange(0x3000), draw.randrange(0x10000), draw.randrange(0x110000))
        )
        if not 0xD800 <= code < 0xE000:
            return chr(code)
