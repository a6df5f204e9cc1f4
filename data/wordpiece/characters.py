"""What BERT takes each character for, and tables for str.translate made of that."""

import bisect
import functools
import unicodedata


def _borders(ranges):
    """[first, last + 1, first, last + 1, ...] of ranges such as "41-5A 5F", for _within."""
    pairs = [(first, last or first) for first, _, last in (item.partition("-") for item in ranges.split())]
    return [border for first, last in pairs for border in (int(first, 16), int(last, 16) + 1)]


def _within(borders, code):
    return bisect.bisect_right(borders, code) % 2 == 1


# Chinese characters. One range starts at 2B920 in Hugging Face's list, at 2B820 in the release's.
_CHINESE = _borders(
    "3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B920-2CEAF 2F800-2FA1F"
)
_CIRCLED = _borders("24B6-24E9 1F130-1F149 1F150-1F169 1F170-1F189")  # letters in circles and squares
# Punctuation, accents and format characters that Hugging Face's tables (Unicode 8) do not know as such:
# letters to it.
_NEWER = _borders(
    "61D 7FD 890-8E2 9FD-9FE A76 AFA-AFF B55 C04-C3C C77 C84 D00 D3B-D3C D81 EBA ECE 180F-1886 1ABF-1ACE "
    "1B7D-1B7E 1DF6-1DFB 2E43-2E5D A82C A8C5 A8FF A9BD 10D24-10F89 11070-11074 110C2-110CD 111CF 1123E-11241 "
    "1133B 11438-1145E 11660-1166C 116B9 1182F-11FFF 12FF1-13455 16E97-16F4F 16FE2-16FE4 1CF00-1CF46 "
    "1E000-1E4EF 1E944-1E95F"
)
# Characters that have changed their category since.
_ONCE = {"\u166d": "alone", "\U000111c9": "alone", "\u1734": "accent"}


def _role(char):
    """What BERT takes a character for: "drop", "space", "alone" (a word of its own), "accent" or "letter"."""
    code, category = ord(char), unicodedata.category(char)
    if char in _ONCE or _within(_NEWER, code):
        return _ONCE.get(char, "letter")
    if char in "\t\n\r" or category[0] == "Z":
        return "space"
    if char == "\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
        return "drop"
    if category[0] == "P" or ("!" <= char <= "~" and not char.isalnum()) or _within(_CHINESE, code):
        return "alone"
    return "accent" if category == "Mn" else "letter"


class _Table(dict):
    """A table for str.translate, {code point: text}; `replace(char, role)` is asked once for each one."""

    def __init__(self, replace):
        self.replace = replace

    def __missing__(self, code):
        char = chr(code)
        self[code] = self.replace(char, _role(char))
        return self[code]


_VISIBLE = _Table(lambda char, role: role in ("alone", "letter"))
CLEAN = _Table(lambda char, role: "" if role == "drop" else char)


def has_visible(text):
    """Whether a text has a visible character, one that some tokenizer makes a token of.

    Else it is empty to every command.

    Blanks, format characters such as U+200B, and accents and variation selectors that stand on nothing are
    not visible.
    """
    return any(_VISIBLE[ord(char)] for char in text)


@functools.lru_cache(None)
def translation_table(lower, strip, chinese, punctuation):
    """The _Table that cleans a text, as the four flags say.

    Chinese characters and punctuation marks that are to stand alone get blanks around them, accents are
    stripped, and letters are lower-cased.
    """

    def replace(char, role):
        if role == "alone" and not (chinese if _within(_CHINESE, ord(char)) else punctuation):
            role = "letter"
        if role == "drop" or role == "accent" and strip:
            return ""
        char = char.lower() if lower else char
        return {"space": " ", "alone": f" {char} "}.get(role, char)

    return _Table(replace)


def pieces_to_sort(text, size=256):
    """Yields the text in pieces whose accents can be sorted each for itself.

    The time that takes grows with the square of their number.

    A piece ends before a character that is no accent, and only a senseless run of more than `size` accents is
    torn.
    """
    start = 0
    while start < len(text):
        end = start + size
        while end < min(len(text), start + 2 * size) and unicodedata.combining(text[end]):
            end += 1
        yield text[start:end]
        start = end


def is_word_char(char):
    """Whether a character, or none, counts as part of a word in the library `tokenizers`."""
    if not char:
        return False
    category = unicodedata.category(char)
    return (
        category[0] in "LM"
        or category in ("Nd", "Nl", "Pc")
        or char in "\u200c\u200d"
        or _within(_CIRCLED, ord(char))
    )
