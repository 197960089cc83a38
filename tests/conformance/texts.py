"""Texts that tokenizers are compared on: written ones of many languages and kinds, and random ones
made of their parts. The same list in every run."""

import random

WRITTEN = [
    "",
    " ",
    "  ",
    "\n",
    "\t\n \r\n",
    "Hello, world!",
    " Hello  world ",
    "The quick brown fox jumps over the lazy dog. It's what he'd done, and they'll say I'm wrong.",
    "ÀÉÎÕÜ naïve café – “quotes” … ¿qué? ¡sí! straße ŒUVRE œuvre ĳ ﬁ ﬂ",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "今日は良い天気ですね。東京タワーへ行きました。ﾊﾝｶｸ ｶﾅ ガギグ",
    "我能吞下玻璃而不伤身体。繁體中文測試，標點；符號！",
    "나는 유리를 먹을 수 있어요. 그래도 아프지 않아요 한글",
    "أنا قادر على أكل الزجاج و هذا لا يؤلمني. ١٢٣٤",
    "אני יכול לאכול זכוכית וזה לא מזיק לי",
    "मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती. १२३",
    "ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ",
    "Tôi có thể ăn thủy tinh mà không hại gì. Tiếng Việt",
    "e\u0301 a\u0308\u0323 o\u0302\u0301 n\u0303 \u1100\u1161\u11a8 \u0915\u094d\u0937",
    "👍 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 🤷🏽‍♀️ ☺️ 😀😁😂 1️⃣",
    "x² + y³ = ½ ∑∫√∞ ≠ ≤ ℝ 𝔸𝓑𝕔 ① ⅷ ㎞ ﷺ",
    "def f(x):\n    if x > 0:\n\treturn x ** 2  # squared\n    return None\n\n\nclass A: pass\n",
    "for (int i=0;i<n;++i) { a[i] = b[i]*0x1F + 3.14e-10f; } // done\r\n",
    '{"key": [1, 2.5, null, true], "text": "a\\nb"}',
    "https://example.org/a/b?c=d&e=%20#frag user@example.com C:\\Users\\x",
    "1 12 123 1234 12345 1234567890 3.14 1,000,000 2024-01-31 0x7fff 1e9",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ABCabcABC iPhone McDonald's XMLHttpRequest snake_case kebab-case",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE I'M you'Ll ’s",
    "<s> </s> <unk> <pad> <|endoftext|> <0x0A> <0xFF> [UNK] [CLS]",
    "▁ ▁▁ a▁b ▁a \u2581\u2581x Ġ Ċ",
    "\u00a0 \u2003 \u3000 \u200b \u200d \ufeff \u2028 \u2029 \u0085 \x0b \x0c",
    "\x00 \x01\x02 \x1b[0m \x7f \x80\x9f",
    "\ufffd \ufffe \U0010ffff \ue000 \U000f0000 \u0378",
    "!!!! ??? ... --- === *** ~~~ ``` $$$ %^& @@@ ;;;;;;",
    "\n\n\n\n  \n\t\t x \n\n",
    "end with spaces   ",
    "   begin with spaces",
]

# What random texts are made of.
PARTS = [
    [" "],
    ["  ", "   ", "     "],
    ["\n", "\n\n", "\r\n", "\t", "\t\t"],
    list("abcdefghijklmnopqrstuvwxyz"),
    list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    list("0123456789"),
    list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    list("äöüßéèàçñøåłžčğ"),
    list("абвгдежзийклмноп"),
    list("αβγδεζηθικλμ"),
    list("的一是不了人我在有他这中大来上国"),
    list("あいうえおかきくけこアイウエオ"),
    list("가나다라마바사아자차"),
    list("ابتثجحخد"),
    list("אבגדה"),
    list("कखगघङिीुूे्"),
    list("กขคงจฉชซ"),
    list("\u0300\u0301\u0302\u0308\u0323\u0327\u200d\ufe0f"),
    list("😀😁👍🏽🎉❤🔥🇩🇪👩"),
    list("①②½²³ﬁﬂ㎞Ａｂ１"),
    list("\u00a0\u2003\u3000\u200b\u2028"),
    ["▁", "▁▁", "Ġ"],
    ["<s>", "</s>", "<0x41>", "<unk>"],
    ["the", "The", " the", " and", "ing", "tion", " of", "don't", " I'm", "you'll"],
    ["function", "return", "    ", "();", "!=", "->", "::", "//", "self.", "0x", "\\n"],
]  # fmt: skip


def random_text(rng: random.Random) -> str:
    kinds = rng.sample(PARTS, rng.randint(1, 5))
    length = rng.choice([1, 2, 3, 5, 8, 13, 30, 80])
    return "".join(rng.choice(rng.choice(kinds)) for _ in range(length))


def random_points(rng: random.Random) -> str:
    """Any characters at all, but surrogates."""
    points = [
        rng.choice([0x80, 0x800, 0x3000, 0x10000, 0x110000]) for _ in range(rng.randint(1, 30))
    ]
    chosen = [rng.randrange(point) for point in points]
    return "".join(chr(point) for point in chosen if not 0xD800 <= point < 0xE000)


def texts(count: int = 5000) -> list[str]:
    """So many, none twice."""
    rng = random.Random(20240328)
    long = [
        "supercalifragilistic" * 200,
        "字" * 3000,
        "a b" * 2000,
        "\u0301" * 500,
        " " * 4000,
        "🎉" * 700,
        "".join(chr(rng.randrange(0x61, 0x7B)) for _ in range(20000)),
    ]
    found = dict.fromkeys(WRITTEN + long)
    while len(found) < count:
        found[random_text(rng) if rng.random() < 0.8 else random_points(rng)] = None
    return list(found)


def broken(count: int = 500) -> list[bytes]:
    """Byte strings of which few are UTF-8."""
    rng = random.Random(20240520)
    found = [
        b"\xff", b"a\x80b", b"\xc3", b"\xe2\x96", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\x80"
    ]
    while len(found) < count:
        text = bytearray(random_text(rng).encode())
        for _ in range(rng.randint(1, 4)):
            where = rng.randrange(len(text))
            text[where] = rng.randrange(256)
        found.append(bytes(text[: rng.randint(1, len(text))]))
    return found
